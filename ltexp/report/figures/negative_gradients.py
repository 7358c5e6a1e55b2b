"""Sum of the gradient that each class's logit gets from samples of other classes (BKD, Fig. 2b)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ltexp.errors import DataError
from ltexp.report.classes import check_same_classes, frequency_groups
from ltexp.report.drawing import MARKERS, common, experiments, legend_below, new_figure, stroke
from ltexp.report.records import Run
from ltexp.report.saving import save
from ltexp.run_folder import GRADIENTS, read_metrics

EVALUATED = "gradients"


def draw(runs: Sequence[Run], path: Path, groups: str | None = None) -> None:
    """Draws a line for each experiment to `path`, from the most to the least frequent class; seeds are averaged.

    Args:
        groups: how many groups of equally many classes, or none: each class; default: each up to 20 classes, else ten.

    Raises:
        ConfigError: for runs of other class counts, or too many experiments.
        DataError: for runs whose gradients were not measured.
    """
    check_same_classes(runs)
    found = experiments(runs)
    members, labels = frequency_groups(runs[0], groups)
    figure = new_figure(max(6.0, 0.4 * len(members)), 3.6)
    axis = figure.subplots()
    place = np.arange(len(members))
    for (name, seeds), (color, marker) in zip(found, MARKERS, strict=False):
        sums = np.mean([read(run) for run in seeds], axis=0)
        axis.plot(
            place, [sums[group].sum() for group in members], marker=marker, markersize=4, **stroke(color), label=name
        )
    axis.set_xticks(place, labels, fontsize=7)
    what = "class" if all(len(group) == 1 for group in members) else "group of classes"
    axis.set_xlabel(f"{what}, from the most to the least frequent, with its training samples", fontsize=9)
    axis.set_ylabel("sum of gradient from other classes", fontsize=9)
    axis.set_ylim(bottom=0)
    axis.grid(axis="y", color="#b0b0b0", linewidth=0.4, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(common(runs), fontsize=9)
    legend_below(figure, [name for name, _ in found])
    save(figure, path)


def read(run: Run) -> npt.NDArray[np.float64]:
    """(C,) the sums from other classes, of the run's last stage that they were measured for.

    Raises:
        DataError: if they were not measured, or the file is damaged.
    """
    for stage in reversed(run.record["stages"]):
        rows = read_metrics(run.folder / stage["name"] / GRADIENTS)
        try:
            values = [float(row["negative"]) for row in rows]
        except (KeyError, TypeError, ValueError):
            values = []
        if len(values) == len(run.record["class_counts"]):
            return np.asarray(values)
        if rows:
            file = run.folder / stage["name"] / GRADIENTS
            raise DataError(f"{file} is damaged: measure anew with ltexp evaluate {run.folder} gradients=true")
    raise DataError(f"{run.folder}: no gradients measured: ltexp evaluate {run.folder} gradients=true")
