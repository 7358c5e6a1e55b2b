"""Mean feature norm of some classes over epochs, and the norms of all over the test set (thesis, Figs. 4.2 and 4.3)."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.errors import ConfigError, DataError
from ltexp.evaluation.arrays import Floats, Ints
from ltexp.report.classes import check_same_classes, chosen_classes, frequency_groups, shown_names
from ltexp.report.drawing import MARKERS, common, experiments, legend_below, load_feature_norms, new_figure, stroke
from ltexp.report.records import Run
from ltexp.report.saving import save
from ltexp.run_folder import FEATURE_NORMS

MOST_CURVES = 8  # panels of the upper row
LOW, HIGH = 5, 95  # percentiles that the thin lines span


def draw(
    runs: Sequence[Run], path: Path, classes: str | None = None, stage: str = "stage1", groups: str | None = None
) -> None:
    """Draws a panel for each chosen class, its mean norm by epoch, and below them the distribution over the test set.

    The curves are of test images, measured at every evaluation while training. The distribution is the final model's:
    the median, the middle half (thick) and 90 % (thin) of the norms of each class, or group of classes if there are
    more than 20. Seeds of one experiment are put together.

    Args:
        classes: labels or names, 0,1,8,9; default: four, from the most to the least frequent.
        stage: whose training the curves show; default: stage1.
        groups: how many groups of equally many classes, or none: each class; default: each up to 20 classes, else ten.

    Raises:
        ConfigError: for runs of other class counts, or too many experiments.
        DataError: for runs whose norms were not kept.
    """
    check_same_classes(runs)
    found = experiments(runs)
    shown = chosen_classes(runs[0], classes, default=4)
    if len(shown) > MOST_CURVES:
        raise ConfigError(f"{len(shown)} classes are too many for one figure: choose at most {MOST_CURVES}")
    figure = new_figure(max(7.0, 1.8 * len(shown)), 5.2)
    grid = figure.add_gridspec(2, len(shown))
    upper = [figure.add_subplot(grid[0, 0])]
    upper += [figure.add_subplot(grid[0, place], sharey=upper[0]) for place in range(1, len(shown))]
    curves = [mean_curves(seeds, stage) for _, seeds in found]
    for axis, label in zip(upper, shown, strict=True):
        for (epochs, mean), (color, marker) in zip(curves, MARKERS, strict=False):
            axis.plot(epochs + 1, mean[:, label], marker=marker, markersize=3, **stroke(color, 0.8))
        count = runs[0].record["class_counts"][label]
        axis.set_title(f"class {shown_names(runs[0])[label]}\n{count} images", fontsize=8)
        axis.set_xlabel("epoch", fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
        _plain(axis)
        axis.tick_params(labelleft=axis is upper[0])
    upper[0].set_ylabel("mean feature norm", fontsize=9)
    _distributions(figure.add_subplot(grid[1, :]), found, groups)
    figure.suptitle(common(runs), fontsize=9)
    legend_below(figure, [name for name, _ in found])
    save(figure, path)


def _distributions(axis: Any, found: Sequence[tuple[str, list[Run]]], groups: str | None) -> None:
    members, labels = frequency_groups(found[0][1][0], groups)
    for number, ((name, seeds), (color, marker)) in enumerate(zip(found, MARKERS, strict=False)):
        place = np.arange(len(members)) + (number - (len(found) - 1) / 2) * 0.7 / len(found)
        spread = np.mean([percentiles(run, members) for run in seeds], axis=0)
        axis.vlines(place, spread[:, 0], spread[:, 4], color=color, linewidth=1.0)
        axis.vlines(place, spread[:, 1], spread[:, 3], color=color, linewidth=4.0, alpha=0.55)
        axis.plot(place, spread[:, 2], color=color, marker=marker, markersize=4, linestyle="")
        axis.plot([], [], marker=marker, markersize=4, **stroke(color, 0.8), label=name)
    axis.set_xticks(np.arange(len(members)), labels, fontsize=7)
    what = "class" if all(len(group) == 1 for group in members) else "group of classes"
    axis.set_xlabel(f"{what}, from the most to the least frequent, with its training images", fontsize=8)
    axis.set_ylabel("feature norm over the test set", fontsize=9)
    _plain(axis)


def _plain(axis: Any) -> None:
    axis.tick_params(labelsize=7)
    axis.grid(axis="y", color="#b0b0b0", linewidth=0.4, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)


def percentiles(run: Run, members: Sequence[Ints]) -> Floats:
    """(groups, 5): the 5th, 25th, 50th, 75th and 95th percentile of the norms of each group's test images."""
    norms, labels = load_feature_norms(run)
    within = [norms[np.isin(labels, group)] for group in members]
    levels = (LOW, 25, 50, 75, HIGH)
    return np.asarray([np.percentile(values, levels) if len(values) else [np.nan] * len(levels) for values in within])


def mean_curves(seeds: Sequence[Run], stage: str) -> tuple[Ints, Floats]:
    """As `read_curves`, the mean over the epochs at which all seeds were evaluated.

    Raises:
        DataError: if some were not kept.
    """
    read = [read_curves(run, stage) for run in seeds]
    shared = np.asarray(sorted(set.intersection(*(set(epochs.tolist()) for epochs, _ in read))), dtype=np.int64)
    return shared, np.mean([norms[np.isin(epochs, shared)] for epochs, norms in read], axis=0)


def read_curves(run: Run, stage: str) -> tuple[Ints, Floats]:
    """(epochs (T,) from 0, mean norms (T, C)) of the stage's evaluations while training.

    Raises:
        DataError: if they were not kept.
    """
    path = run.folder / stage / FEATURE_NORMS
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))[1:]
        table = np.asarray([[float(value or "nan") for value in row] for row in rows])
        if table.ndim != 2 or table.shape[1] != len(run.record["class_counts"]) + 1:
            raise ValueError
    except OSError:
        raise DataError(
            f"this figure needs {path}, written while training: train with evaluation.every=10, or choose stage="
        ) from None
    except ValueError:
        raise DataError(f"{path} is damaged: train the stage again") from None
    return table[:, 0].astype(np.int64), table[:, 1:]
