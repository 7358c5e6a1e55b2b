"""Accuracy of each class against how many training images it has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.evaluation.arrays import Floats
from ltexp.evaluation.shots import ShotRule
from ltexp.report.drawing import MARKERS, SHADES, common, experiments, legend_below, new_figure, number_ticks, stroke
from ltexp.report.records import Run
from ltexp.report.saving import save

MOST_VERTICES = 12  # of a line; more distinct class sizes are averaged in groups


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draws a point for each class and a line through their means to `path`; seeds of one experiment are averaged.

    Raises:
        ConfigError: for more experiments than there are colours to tell apart.
    """
    groups = experiments(runs)
    figure = new_figure(6.0, 3.8)
    axis = figure.subplots()
    for (name, group), (color, marker) in zip(groups, MARKERS, strict=False):
        _draw_experiment(axis, group, name, color, marker)
    counts = np.concatenate([run.record["class_counts"] for run in runs])
    _limit(axis, counts[counts > 0].astype(np.float64))
    if len(rules := {run.record["shot_rule"] for run in runs}) == 1:
        _shade(axis, rules.pop())
    axis.set(ylim=(-2, 102), xlabel="training images of the class", ylabel="test accuracy (%)")
    axis.grid(axis="y", color="#b0b0b0", linewidth=0.4, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    legend_below(figure, [name for name, _ in groups])
    axis.set_title(common(runs), fontsize=9, pad=20)
    save(figure, path)


def _draw_experiment(axis: Any, runs: Sequence[Run], name: str, color: str, marker: str) -> None:
    counts = np.asarray(runs[0].record["class_counts"], dtype=np.float64)
    values = np.asarray([run.record["metrics"]["per_class"] for run in runs], dtype=np.float64)  # None becomes NaN
    # a class without training images has no place on a log axis, and one without test images no accuracy
    known = (counts > 0) & ~np.isnan(values).any(axis=0)
    counts, accuracy = counts[known], values[:, known].mean(axis=0)
    few_points = len(counts) <= 30
    axis.plot(*_line(counts, accuracy), **stroke(color), zorder=4)
    axis.plot(
        counts,
        accuracy,
        linestyle="",
        marker=marker,
        markersize=5 if few_points else 3.5,
        color=color,
        alpha=0.9 if few_points else 0.45,
        markeredgewidth=0,
        zorder=3,
    )
    axis.plot([], [], marker=marker, markersize=5, **stroke(color), label=name)


def _line(counts: Floats, accuracy: Floats) -> tuple[Floats, Floats]:
    """The vertices of a line through the mean accuracy of each class size, or of neighbouring sizes if many.

    Args:
        counts: (C,) training images.
        accuracy: (C,).
    """
    sizes = np.unique(counts)
    groups = np.array_split(sizes, min(len(sizes), MOST_VERTICES))
    members = [np.isin(counts, group) for group in groups if len(group)]
    middles = [float(np.exp(np.log(counts[member]).mean())) for member in members]
    return np.asarray(middles), np.asarray([float(accuracy[member].mean()) for member in members])


def _limit(axis: Any, counts: Floats) -> None:
    axis.set_xscale("log")
    if len(counts) == 0:
        return
    low, high = counts.min() / 1.25, counts.max() * 1.25
    axis.set_xlim(low, high)
    number_ticks(axis.xaxis, low, high)


def _shade(axis: Any, rule: str) -> None:
    """Marks the groups of classes as `rule` bounds them; nothing for a rule of another form."""
    if (bounds := ShotRule.from_text(rule)) is None:
        return
    low, high = axis.get_xlim()
    # class sizes are whole, so the bounds lie half an image off
    spans = {
        "few": (low, bounds.few_below - 0.5),
        "medium": (bounds.few_below - 0.5, bounds.many_above + 0.5),
        "many": (bounds.many_above + 0.5, high),
    }
    for name, (start, end) in spans.items():
        start, end = max(start, low), min(end, high)
        if start >= end:
            continue
        axis.axvspan(start, end, color=SHADES[name], linewidth=0, zorder=-1)
        axis.text((start * end) ** 0.5, 1.02, name, ha="center", fontsize=8, transform=axis.get_xaxis_transform())
