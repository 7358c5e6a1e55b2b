"""Error rate of each class or of ten frequency groups, runs side by side (thesis, Figs. 3.7, 3.8)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltexp.evaluation.arrays import Ints
from ltexp.report.classes import check_same_classes, frequency_groups
from ltexp.report.drawing import MARKERS, common, experiments, legend_below, new_figure
from ltexp.report.records import Run
from ltexp.report.saving import save

HATCHES = ("", "////", "", "\\\\\\\\", "", "....", "xxxx")


def draw(runs: Sequence[Run], path: Path, groups: str | None = None) -> None:
    """Draws a bar for each class or group and each experiment to `path`, from the most to the least frequent class.

    Seeds of one experiment are averaged, with their standard deviation as a line.

    Args:
        groups: how many groups of equally many classes, or none: each class; default: each up to 20 classes, else ten.

    Raises:
        ConfigError: for runs of other class counts, too many experiments, or groups that cannot be.
    """
    check_same_classes(runs)
    found = experiments(runs)
    members, labels = frequency_groups(runs[0], groups)
    figure = new_figure(min(max(6.0, 0.15 * len(members) * (len(found) + 1)), 12.0), 3.6)
    axis = figure.subplots()
    width = 0.8 / len(found)
    for number, ((name, seeds), (color, _), hatch) in enumerate(zip(found, MARKERS, HATCHES, strict=False)):
        rates = np.asarray([error_rates(run, members) for run in seeds])
        place = np.arange(len(members)) + (number - (len(found) - 1) / 2) * width
        spread = rates.std(axis=0, ddof=1) if len(seeds) > 1 else None
        error = {"elinewidth": 0.8, "capsize": 1.5}
        axis.bar(
            place,
            rates.mean(axis=0),
            width,
            yerr=spread,
            color=color,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.4,
            label=name,
            zorder=2,
            error_kw=error,
        )
    axis.set_xticks(np.arange(len(members)), labels, fontsize=7)
    what = "class" if all(len(group) == 1 for group in members) else "group of classes"
    axis.set_xlabel(f"{what}, from the most to the least frequent, with its training images", fontsize=9)
    axis.set_ylabel("error rate (%)", fontsize=9)
    axis.set_xlim(-0.6, len(members) - 0.4)
    axis.grid(axis="y", color="#b0b0b0", linewidth=0.4, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(common(runs), fontsize=9)
    legend_below(figure, [name for name, _ in found])
    save(figure, path)


def error_rates(run: Run, members: Sequence[Ints]) -> list[float]:
    """100 less the mean accuracy of each group's classes that have test images, in percent; NaN if none has."""
    accuracy = np.asarray(run.record["metrics"]["per_class"], dtype=np.float64)  # None becomes NaN
    known = [accuracy[labels][~np.isnan(accuracy[labels])] for labels in members]
    return [100 - float(values.mean()) if len(values) else float("nan") for values in known]
