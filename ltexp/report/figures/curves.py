"""Training curves: test accuracy and training loss by epoch, stage after stage (as DaSL's Fig. 4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.errors import ConfigError, DataError
from ltexp.report.drawing import MARKERS, common, legend_below, new_figure, stroke, titles
from ltexp.report.groups import group_runs, statistic
from ltexp.report.records import Run
from ltexp.report.saving import save
from ltexp.run_folder import METRICS, read_metrics

PANELS = (("test_all", "test accuracy (%)"), ("train_loss", "training loss"))
Curve = dict[int, float]  # by epoch, from 1, over all stages


@dataclass(frozen=True)
class Curves:
    """What a run's stages wrote by epoch.

    Attributes:
        columns: a curve for each column of `PANELS`.
        ends: the epochs after which a stage ended, the last stage's left out.
    """

    columns: dict[str, Curve]
    ends: tuple[int, ...]


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draws a line for each experiment, with a band of one standard deviation over its seeds, to `path`.

    Raises:
        DataError: if a run has no metrics by epoch.
        ConfigError: for more experiments than there are colours to tell apart.
    """
    groups = group_runs(runs)
    if len(groups) > len(MARKERS):
        raise ConfigError(f"{len(groups)} experiments are too many for one figure: choose at most {len(MARKERS)}")
    figure = new_figure(9.0, 3.6)
    axes = figure.subplots(1, len(PANELS))
    names = titles([group.runs[0] for group in groups], seeds=False)
    ends: set[int] = set()
    for group, name, (color, marker) in zip(groups, names, MARKERS, strict=False):
        seeds = [read_curves(run) for run in group.runs]
        ends.update(*(curves.ends for curves in seeds))
        label = name if len(seeds) == 1 else f"{name} (mean of {len(seeds)} seeds)"
        for axis, (column, _) in zip(axes, PANELS, strict=True):
            _line(axis, [curves.columns[column] for curves in seeds], color, marker)
        axes[0].plot([], [], marker=marker, markersize=4, **stroke(color), label=label)
    for axis, (_, text) in zip(axes, PANELS, strict=True):
        for end in ends:  # a stage begins
            axis.axvline(end + 0.5, color="#888888", linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)
        axis.set(xlabel="epoch", ylabel=text)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(axis="y", color="#b0b0b0", linewidth=0.4, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    legend_below(figure, names)
    figure.suptitle(common([group.runs[0] for group in groups]), fontsize=9)
    save(figure, path)


def read_curves(run: Run) -> Curves:
    """The curves of a run; the accuracy at a stage's end is the record's.

    Raises:
        DataError: if none of its stages has metrics by epoch.
    """
    columns: dict[str, Curve] = {column: {} for column, _ in PANELS}
    ends, start, found = [], 0, False
    for stage in run.record["stages"]:
        epochs = int(stage.get("stopped_after", stage.get("epochs")) or 0)
        rows = read_metrics(run.folder / stage["name"] / METRICS)
        found |= bool(rows)  # a stage that came from a checkpoint has none
        pretext = "num_classes" in stage  # how well it tells labels of its own is no accuracy on the classes
        for row in rows:
            for column, curve in columns.items():
                if row.get(column) and not (pretext and column == "test_all"):
                    curve[start + int(row["epoch"]) + 1] = float(row[column])
        start += epochs
        if (
            start and not pretext
        ):  # a stage without epochs has no place on the axis of its own: it changes the accuracy at its epoch
            columns["test_all"][start] = float(stage["metrics"]["all"])
        ends.append(start)
    if not found:
        raise DataError(f"this figure needs {run.folder}/stage*/{METRICS}, which are missing or empty")
    return Curves(columns, tuple(ends[:-1]))


def _line(axis: Any, seeds: Sequence[Curve], color: str, marker: str) -> None:
    """The mean over the epochs that all seeds have, and its band."""
    epochs = sorted(set.intersection(*(set(curve) for curve in seeds)))
    found = [statistic([curve[epoch] for curve in seeds]) for epoch in epochs]
    mean = np.asarray([value.mean for value in found if value])
    deviation = np.asarray([value.deviation or 0.0 for value in found if value])
    few = len(epochs) <= 30
    axis.plot(epochs, mean, **stroke(color), marker=marker if few else None, markersize=4, zorder=3)
    if len(seeds) > 1:
        axis.fill_between(epochs, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0, zorder=2)
