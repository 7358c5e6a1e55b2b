"""Reliability diagrams: accuracy by confidence, and the gap between them (Guo et al., ICML 2017)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.errors import DataError
from ltexp.report.drawing import BLACK, BLUE, head, panels, save
from ltexp.report.records import Run

OVER, UNDER = "#F5C26B", "#A9D8F2"  # lighter than the accuracy bars in print as well


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draws a diagram for each run to `path`, with its accuracy and ECE in percent.

    Raises:
        DataError: if a record holds no bins of confidence.
    """
    for run in runs:
        if not run.record.get("reliability"):
            raise DataError(f"the record in {run.folder} has no bins of confidence to draw")
    figure, axes = panels(runs, width=3.3, height=3.9)
    for axis, run in zip(axes, runs, strict=True):
        _diagram(axis, run.record["reliability"])
    metrics = [run.record["metrics"] for run in runs]
    head(figure, axes, runs, [f"accuracy {values['all']:.1f}%, ECE {values['ece']:.1f}%" for values in metrics])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2 if len(runs) == 1 else 4, fontsize=7, frameon=False
    )
    save(figure, path)


def _diagram(axis: Any, bins: dict[str, list[float]]) -> None:
    count, accuracy, confidence = (np.asarray(bins[key]) for key in ("count", "accuracy", "confidence"))
    width, full = 1 / len(count), count > 0
    left = (np.arange(len(count)) * width)[full]
    accuracy, confidence = accuracy[full], confidence[full]
    shared = {"align": "edge", "width": width, "edgecolor": BLACK, "linewidth": 0.5}
    axis.bar(left, accuracy, color=BLUE, label="accuracy", zorder=2, **shared)
    sides = (
        ("gap, overconfident", OVER, "////", confidence > accuracy),
        ("gap, underconfident", UNDER, "\\\\\\\\", confidence < accuracy),
    )
    for label, color, hatch, side in sides:
        gap, start = np.abs(confidence - accuracy)[side], np.minimum(confidence, accuracy)[side]
        # an empty series would lose its colour in the legend
        axis.bar(left[side], gap, bottom=start, color=color, hatch=hatch, zorder=3, **shared)
        axis.bar([0], [0], color=color, hatch=hatch, label=label, **shared)
    axis.hlines(accuracy, left, left + width, color=BLACK, linewidth=1.6, zorder=4)
    axis.plot([0, 1], [0, 1], color=BLACK, linestyle=(0, (4, 3)), linewidth=0.9, label="perfect calibration", zorder=5)
    axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axis.set_xlabel("confidence", fontsize=9)
    axis.set_ylabel("accuracy", fontsize=9)
    axis.tick_params(labelsize=8)
