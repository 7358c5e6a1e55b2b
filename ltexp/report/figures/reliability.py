"""Reliability diagrams: accuracy by confidence, the gap between them, and how many images (Guo et al., ICML 2017)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.errors import DataError
from ltexp.report.drawing import BLACK, BLUE, head, new_figure, panel_grid
from ltexp.report.records import Run
from ltexp.report.saving import save

LIGHT, OVER, UNDER = "#9BC4E2", "#D55E00", "#009E73"


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draws a diagram for each run to `path`, with its accuracy and ECE in percent.

    A bar ends at the accuracy of its bin; the hatched part lies between it and the bin's mean confidence. Below stands
    the share of the test images that each bin holds.

    Raises:
        ConfigError: for more runs than a page can hold.
        DataError: if a record holds no bins of confidence.
    """
    for run in runs:
        if not run.record.get("reliability"):
            raise DataError(f"the record in {run.folder} has no bins of confidence to draw")
    rows, columns = panel_grid(len(runs))
    figure = new_figure(3.3 * columns, 4.4 * rows)
    axes = figure.subplots(2 * rows, columns, squeeze=False, sharex=True, height_ratios=[4, 1] * rows)
    places = [(2 * (number // columns), number % columns) for number in range(rows * columns)]
    for unused in places[len(runs) :]:
        axes[unused].set_visible(False)
        axes[unused[0] + 1, unused[1]].set_visible(False)
    for (row, column), run in zip(places, runs, strict=False):
        _diagram(axes[row, column], run.record["reliability"])
        _shares(axes[row + 1, column], run.record["reliability"])
    metrics = [run.record["metrics"] for run in runs]
    upper = [axes[place] for place in places[: len(runs)]]
    head(figure, upper, runs, [f"accuracy {values['all']:.1f}%, ECE {values['ece']:.1f}%" for values in metrics])
    handles, labels = upper[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2 if len(runs) == 1 else 4, fontsize=7, frameon=False
    )
    save(figure, path)


def _diagram(axis: Any, bins: dict[str, list[float]]) -> None:
    count, accuracy, confidence = (np.asarray(bins[key]) for key in ("count", "accuracy", "confidence"))
    width, full = 1 / len(count), count > 0
    left = (np.arange(len(count)) * width)[full]
    accuracy, confidence = accuracy[full], confidence[full]
    shared = {"align": "edge", "width": width, "linewidth": 0.5}
    axis.bar(left, accuracy, color=LIGHT, edgecolor=BLACK, label="accuracy", zorder=2, **shared)
    sides = (
        ("overconfident by", OVER, "////", confidence > accuracy),
        ("underconfident by", UNDER, "\\\\\\\\", confidence < accuracy),
    )
    for label, color, hatch, side in sides:
        gap, start = np.abs(confidence - accuracy)[side], np.minimum(confidence, accuracy)[side]
        style = {"facecolor": "none", "edgecolor": color, "hatch": hatch, **shared}
        axis.bar(left[side], gap, bottom=start, zorder=3, **style)
        axis.bar([0], [0], label=label, **style)  # an empty series would lose its colour in the legend
    axis.hlines(accuracy, left, left + width, color=BLACK, linewidth=1.6, zorder=4)
    axis.plot([0, 1], [0, 1], color=BLACK, linestyle=(0, (4, 3)), linewidth=0.9, label="perfect calibration", zorder=5)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.set_ylabel("accuracy", fontsize=9)
    axis.tick_params(labelsize=8)


def _shares(axis: Any, bins: dict[str, list[float]]) -> None:
    count = np.asarray(bins["count"], dtype=np.float64)
    shares, width = 100 * count / max(count.sum(), 1), 1 / len(count)
    axis.bar(
        np.arange(len(count)) * width, shares, align="edge", width=width, color=BLUE, edgecolor="white", linewidth=0.3
    )
    axis.set(xlim=(0, 1), ylim=(0, max(1.15 * float(shares.max()), 1)))
    axis.set_xlabel("confidence", fontsize=9)
    axis.set_ylabel("images (%)", fontsize=7)
    axis.tick_params(labelsize=7, labelbottom=True)
    axis.spines[["top", "right"]].set_visible(False)
