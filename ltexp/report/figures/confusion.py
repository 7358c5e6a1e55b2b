"""Confusion matrices, with the classes in order of frequency."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ltexp.evaluation.metrics import confusion_matrix
from ltexp.report.classes import class_titles
from ltexp.report.drawing import head, load_predictions, panels, save
from ltexp.report.records import Run

MOST_NAMES = 20  # classes; the names of more would run into each other
MOST_NUMBERS = 12


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draws a matrix for each run to `path`, classes from the most to the least frequent; each row sums to 100%.

    Raises:
        DataError: if a record holds no matrix and the run's predictions cannot be read.
    """
    figure, axes = panels(runs, width=4.2, height=4.0)
    images = [_matrix(axis, run) for axis, run in zip(axes, runs, strict=True)]
    colorbar = figure.colorbar(images[0], ax=axes, shrink=0.8, pad=0.02)
    colorbar.set_label("% of the true class", fontsize=8)
    colorbar.set_ticks([0, 1, 5, 10, 20, 40, 60, 80, 100])
    colorbar.ax.tick_params(labelsize=8)
    head(figure, axes, runs)
    save(figure, path)


def _matrix(axis: Any, run: Run) -> Any:
    from matplotlib.colors import PowerNorm

    order = np.argsort(-np.asarray(run.record["class_counts"]), kind="stable")
    shares = _shares(run, order)
    # light to dark in one hue: large is dark in print as well
    # and by its square root, or a few percent of confusion among a hundred classes would be invisible
    image = axis.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100), interpolation="nearest")
    axis.set_facecolor("#bbbbbb")  # a class without test images
    axis.set_xlabel("predicted class, most to least frequent", fontsize=8)
    axis.set_ylabel("true class, most to least frequent", fontsize=8)
    axis.tick_params(labelsize=7)
    names = class_titles(run)
    if len(order) <= MOST_NAMES:
        shown = [names[label] for label in order]
        turned = 90 if max(map(len, shown)) > 2 else 0
        axis.set_xticks(np.arange(len(order)), shown, rotation=turned)
        axis.set_yticks(np.arange(len(order)), shown)
    if len(order) <= MOST_NUMBERS:
        for row, column in np.argwhere(shares >= 0.5).tolist():
            value = shares[row, column]
            color = "white" if value > 35 else "black"
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
    return image


def _shares(run: Run, order: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(C, C) percent of each label's samples, classes in `order`; NaN in the row of a class without samples."""
    matrix = run.record.get("confusion")
    if matrix is None:
        logits, labels = load_predictions(run)
        matrix = confusion_matrix(labels, logits.argmax(axis=1), len(order))
    counts = np.asarray(matrix, dtype=np.float64)[np.ix_(order, order)]
    total = counts.sum(axis=1, keepdims=True)
    shares: npt.NDArray[np.float64] = np.full_like(counts, np.nan)
    np.divide(100 * counts, total, out=shares, where=total > 0)
    return shares
