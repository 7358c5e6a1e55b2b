"""A metric over the keys that a sweep varied: points and lines for one key, a heat map for two.

With two keys of which one holds names (method and ratio, say) there is a line for each name; further keys make panels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.errors import ConfigError
from ltexp.names import unknown_name
from ltexp.report.drawing import MARKERS, MOST_PANELS, common, new_figure, stroke
from ltexp.report.groups import Group, Statistic, group_runs, statistic
from ltexp.report.records import Run
from ltexp.report.saving import save
from ltexp.report.scale import places
from ltexp.report.swept import in_place_of, number, short_names, sort_key, swept_values
from ltexp.report.text import wrap

METRICS = {
    "all": "accuracy",
    "many": "many-shot accuracy",
    "medium": "medium-shot accuracy",
    "few": "few-shot accuracy",
}
METRICS |= {"ece": "ECE", "mce": "MCE"}
TITLE = 56  # characters of a line above a panel, which is about as wide
Point = tuple[tuple[str, ...], Statistic]


@dataclass(frozen=True)
class Axes:
    """Which key is along x, which makes rows (heat map) or lines, and which make panels."""

    across: str
    other: str | None
    panels: tuple[str, ...]
    heat_map: bool


def draw(runs: Sequence[Run], path: Path, metric: str = "all") -> None:
    """Draws mean and standard deviation over seeds to `path`.

    Args:
        runs: those of one sweep.
        path: the figure's file.
        metric: all | many | medium | few | ece | mce.

    Raises:
        ConfigError: for another metric, if the runs differ by no key but their seed, or by more than a page can show.
    """
    if metric not in METRICS:
        raise ConfigError(unknown_name("metric", metric, METRICS))
    groups = group_runs(runs)
    columns = in_place_of(groups, swept_values(groups))
    if not columns:
        raise ConfigError("these runs differ by no key but their seed: figure=sweep needs a sweep over another one")
    axes = choose_axes(columns)
    short = {key: key for key in (*columns, "")} | short_names(groups)
    points = _points(groups, columns, metric)
    order = list(columns)
    others = [order.index(key) for key in axes.panels]
    shown = sorted({tuple(values[place] for place in others) for values, _ in points}, key=_tuple_key)
    if len(shown) > MOST_PANELS:
        raise ConfigError(f"{len(shown)} panels are too many for one figure ({', '.join(axes.panels)} vary as well)")
    columns_of_panels = min(len(shown), 3)
    rows_of_panels = -(-len(shown) // columns_of_panels)
    figure = new_figure(4.6 * columns_of_panels, 3.6 * rows_of_panels)
    drawn = figure.subplots(rows_of_panels, columns_of_panels, squeeze=False, sharey=not axes.heat_map).ravel().tolist()
    for unused in drawn[len(shown) :]:
        unused.set_visible(False)
    across, other = order.index(axes.across), order.index(axes.other) if axes.other else None
    names = sorted(set(columns[axes.other or axes.across]), key=sort_key)
    means = [found.mean for _, found in points]
    for axis, values in zip(drawn, shown, strict=False):
        inside = [
            (point[across], point[other] if other is not None else "", found)
            for point, found in points
            if tuple(point[place] for place in others) == values
        ]
        if axes.heat_map:
            _heat_map(axis, inside, (min(means), max(means)))
        else:
            _lines(axis, inside, names)
            if axes.other:
                axis.legend(title=short[axes.other], fontsize=8, title_fontsize=8, frameon=False)
        note = "" if axes.heat_map else places([across for across, _, _ in inside]).note
        axis.set_xlabel(", ".join(part for part in (short[axes.across], note) if part), fontsize=9)
        axis.set_ylabel(short[axes.other or ""] if axes.heat_map else f"{METRICS[metric]} (%)", fontsize=9)
        panel = ", ".join(f"{short[key]}={value}" for key, value in zip(axes.panels, values, strict=True))
        axis.set_title("\n".join(wrap(panel or _heading(groups), TITLE)), fontsize=9)  # whole: it tells panels apart
    if len(shown) > 1:
        figure.suptitle(_heading(groups), fontsize=9)
    if axes.heat_map:
        bar = figure.colorbar(drawn[0].images[0], ax=drawn[: len(shown)], shrink=0.9, pad=0.02)
        bar.set_label(f"{METRICS[metric]} (%)", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    save(figure, path)


def choose_axes(columns: dict[str, list[str]]) -> Axes:
    """Numbers go along the axes, the key with most values across; names make lines, or a heat map of names alone."""
    numeric = [key for key, values in columns.items() if _mostly_numbers(set(values))]
    names = [key for key in columns if key not in numeric]
    by_size = sorted(numeric, key=lambda key: -len(set(columns[key])))
    ordered = [*by_size, *sorted(names, key=lambda key: -len(set(columns[key])))]
    across, rest = ordered[0], ordered[1:]
    if not rest:
        return Axes(across, None, (), heat_map=False)
    lines = [key for key in names if key != across and len(set(columns[key])) <= len(MARKERS)]
    if len(numeric) == 1 and lines:
        return Axes(across, lines[0], tuple(key for key in rest if key != lines[0]), heat_map=False)
    return Axes(across, rest[0], tuple(rest[1:]), heat_map=True)


def _mostly_numbers(values: set[str]) -> bool:
    return 2 * sum(number(value) is not None for value in values) > len(values)


def _points(groups: Sequence[Group], columns: dict[str, list[str]], metric: str) -> list[Point]:
    found: dict[tuple[str, ...], Statistic] = {}
    for place, group in enumerate(groups):
        values = tuple(column[place] for column in columns.values())
        value = statistic([run.record["metrics"].get(metric) for run in group.runs])
        if value is None:
            continue
        if values in found:
            raise ConfigError(
                "two experiments have the same "
                + ", ".join(f"{key}={text}" for key, text in zip(columns, values, strict=True))
                + ": they differ by what no key tells (see `ltexp report`), so one figure would mix them"
            )
        found[values] = value
    if not found:
        raise ConfigError(f"no run has the metric {metric}")
    return list(found.items())


def _lines(axis: Any, points: Sequence[tuple[str, str, Statistic]], names: Sequence[str]) -> None:
    """A line for each of the names, which look the same in all panels, or one without a name."""
    along = places([across for across, _, _ in points])
    for name in sorted({other for _, other, _ in points}, key=sort_key):
        color, marker = MARKERS[names.index(name) % len(MARKERS) if name else 0]
        own = [(across, found) for across, other, found in points if other == name]
        # names have no order, so no line leads from one to the next
        for number_like in (True, False):
            line = sorted((along.of[across], found) for across, found in own if along.ordered(across) == number_like)
            deviation = [found.deviation or 0.0 for _, found in line]
            axis.errorbar(
                [x for x, _ in line],
                [found.mean for _, found in line],
                yerr=deviation if any(deviation) else None,
                **(stroke(color) if number_like else {"color": color, "linestyle": ""}),
                marker=marker,
                markersize=5,
                capsize=3,
                label=(name or None) if line and (number_like or not any(along.ordered(x) for x, _ in own)) else None,
            )
    if along.logarithmic:
        axis.set_xscale("log")
    if along.ticks is not None:
        texts = list(along.ticks.values())
        axis.set_xticks(list(along.ticks), texts, rotation=30 if max(map(len, texts)) > 8 else 0)
        axis.minorticks_off()
    axis.grid(axis="y", color="#b0b0b0", linewidth=0.4)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _heat_map(axis: Any, points: Sequence[tuple[str, str, Statistic]], limits: tuple[float, float]) -> None:
    across = sorted({x for x, _, _ in points}, key=sort_key)
    other = sorted({y for _, y, _ in points}, key=sort_key)
    grid = np.full((len(other), len(across)), np.nan)
    for x, y, found in points:
        grid[other.index(y), across.index(x)] = found.mean
    low, high = limits
    # light to dark in one hue: readable in print, and without red against green
    axis.imshow(grid, cmap="Blues", vmin=low, vmax=max(high, low + 1e-9), aspect="auto", origin="lower")
    axis.set_facecolor("#dddddd")  # what was not run
    for x, y, found in points:
        dark = found.mean > low + 0.6 * (high - low)
        text = f"{found.mean:.1f}" if found.deviation is None else f"{found.mean:.1f}\n±{found.deviation:.1f}"
        place = across.index(x), other.index(y)
        axis.text(*place, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axis.set_xticks(range(len(across)), across, rotation=30 if max(map(len, across)) > 8 else 0)
    axis.set_yticks(range(len(other)), other)
    axis.tick_params(labelsize=8)


def _heading(groups: Sequence[Group]) -> str:
    first = [group.runs[0] for group in groups]
    methods = {str(run.record["method"]) for run in first}
    parts = [common(first), methods.pop() if len(methods) == 1 else ""]
    return ", ".join(part for part in parts if part)


def _tuple_key(values: tuple[str, ...]) -> list[tuple[bool, float, str]]:
    return [sort_key(value) for value in values]
