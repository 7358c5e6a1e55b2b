"""The confidence score beta of each tail class by epoch, and at the end against the class's size (GLAG, Sec. 5.3)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.errors import ConfigError, DataError
from ltexp.evaluation.arrays import Floats
from ltexp.report.drawing import BLACK, BLUE, new_figure, number_ticks, titles
from ltexp.report.records import Run
from ltexp.report.saving import save
from ltexp.run_folder import CONFIDENCE, read_metrics

MOST_RUNS = 6


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draws a row for each run to `path`: beta by epoch, a line a class, and the last epoch's against class size.

    Raises:
        DataError: for a run that has no generated features.
        ConfigError: for more runs than a page can hold.
    """
    if len(runs) > MOST_RUNS:
        raise ConfigError(f"{len(runs)} runs are too many for one figure: choose at most {MOST_RUNS}")
    figure = new_figure(8.0, 3.0 * len(runs))
    axes = figure.subplots(len(runs), 2, squeeze=False, width_ratios=(3, 2))
    for (left, right), run, title in zip(axes, runs, titles(runs), strict=True):
        images, betas = read_confidence(run)
        lines = _by_epoch(left, images, betas)
        bar = figure.colorbar(lines, ax=left, label="training images of the class")
        number_ticks(bar.ax.yaxis, images.min(), images.max())
        left.set_title(title, fontsize=9)
        _at_the_end(right, images, betas[-1])
    save(figure, path)


def read_confidence(run: Run) -> tuple[Floats, Floats]:
    """(training images (T,), beta (epochs, T)) of the T tail classes.

    Raises:
        DataError: if the run's stages left none.
    """
    for stage in reversed(run.record["stages"]):
        if rows := read_metrics(run.folder / stage["name"] / CONFIDENCE):
            epochs = int(rows[-1]["epoch"]) + 1
            betas = np.asarray([float(row["beta"]) for row in rows]).reshape(epochs, -1)
            return np.asarray([float(row["images"]) for row in rows[: betas.shape[1]]]), betas
    raise DataError(f"{run.folder} has no {CONFIDENCE}: this figure needs runs with features@STAGE.features=generated")


def _by_epoch(axis: Any, images: Floats, betas: Floats) -> Any:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LogNorm

    epochs = np.arange(1, len(betas) + 1)
    # classes of one beta would hide each other
    shift = np.linspace(-0.008, 0.008, betas.shape[1])
    lines = LineCollection(
        [np.column_stack([epochs, beta + own]) for beta, own in zip(betas.T, shift, strict=True)],
        array=images,
        cmap="viridis_r",
        norm=LogNorm(),
        linewidths=1.0,
    )
    axis.add_collection(lines)
    axis.set(xlim=(1, max(2, len(epochs))), ylim=(-0.03, 1.03), xlabel="generation epoch", ylabel="confidence score β")
    axis.spines[["top", "right"]].set_visible(False)
    return lines


def _at_the_end(axis: Any, images: Floats, beta: Floats) -> None:
    axis.scatter(images, beta, s=14, color=BLUE, alpha=0.7, linewidths=0)
    sizes = np.unique(images)
    groups = [group for group in np.array_split(sizes, min(len(sizes), 6)) if len(group)]
    middles = [float(np.exp(np.log(group).mean())) for group in groups]
    means = [float(beta[np.isin(images, group)].mean()) for group in groups]
    axis.plot(middles, means, color=BLACK, linewidth=1.4, label="mean of neighbouring sizes")
    axis.set(xscale="log", ylim=(-0.03, 1.03), xlabel="training images of the class", ylabel="β in the last epoch")
    number_ticks(axis.xaxis, images.min(), images.max())
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=7, frameon=False)
