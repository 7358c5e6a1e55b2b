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
from ltexp.report.drawing import MARKERS, MOST_PANELS, common, literal, new_figure, save
from ltexp.report.groups import Group, Statistic, group_runs, statistic
from ltexp.report.records import Run
from ltexp.report.swept import number, sort_key, swept_values

MOST_TICKS = 8  # values that are each written at the axis
METRICS = {
    "all": "accuracy",
    "many": "many-shot accuracy",
    "medium": "medium-shot accuracy",
    "few": "few-shot accuracy",
}
METRICS |= {"ece": "ECE", "mce": "MCE"}
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
    columns = {key: [literal(value) for value in values] for key, values in swept_values(groups).items()}
    if not columns:
        raise ConfigError("these runs differ by no key but their seed: figure=sweep needs a sweep over another one")
    axes = choose_axes(columns)
    points = _points(groups, columns, metric)
    order = list(columns)
    places = [order.index(key) for key in axes.panels]
    shown = sorted({tuple(values[place] for place in places) for values, _ in points}, key=_tuple_key)
    if len(shown) > MOST_PANELS:
        raise ConfigError(f"{len(shown)} panels are too many for one figure ({', '.join(axes.panels)} vary as well)")
    columns_of_panels = min(len(shown), 3)
    rows_of_panels = -(-len(shown) // columns_of_panels)
    figure = new_figure(4.6 * columns_of_panels, 3.6 * rows_of_panels)
    drawn = figure.subplots(rows_of_panels, columns_of_panels, squeeze=False).ravel().tolist()
    for unused in drawn[len(shown) :]:
        unused.set_visible(False)
    across, other = order.index(axes.across), order.index(axes.other) if axes.other else None
    means = [found.mean for _, found in points]
    for axis, values in zip(drawn, shown, strict=False):
        inside = [
            (point[across], point[other] if other is not None else "", found)
            for point, found in points
            if tuple(point[place] for place in places) == values
        ]
        if axes.heat_map:
            _heat_map(axis, inside, (min(means), max(means)))
        else:
            _lines(axis, inside, axes.other)
        axis.set_xlabel(axes.across, fontsize=9)
        axis.set_ylabel(axes.other if axes.heat_map else f"{METRICS[metric]} (%)", fontsize=9)
        panel = ", ".join(f"{key}={value}" for key, value in zip(axes.panels, values, strict=True))
        axis.set_title(panel or _heading(groups), fontsize=9)
    if len(shown) > 1:
        figure.suptitle(_heading(groups), fontsize=9)
    if axes.heat_map:
        bar = figure.colorbar(drawn[0].images[0], ax=drawn[: len(shown)], shrink=0.9, pad=0.02)
        bar.set_label(f"{METRICS[metric]} (%)", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    save(figure, path)


def choose_axes(columns: dict[str, list[str]]) -> Axes:
    """Numbers go along the axes, the key with most values across; names make lines, or a heat map of names alone."""
    numeric = [key for key, values in columns.items() if all(number(value) is not None for value in values)]
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


def _lines(axis: Any, points: Sequence[tuple[str, str, Statistic]], series: str | None) -> None:
    positions, ticks = _positions([across for across, _, _ in points])
    for place, name in enumerate(sorted({other for _, other, _ in points}, key=sort_key)):
        color, marker = MARKERS[place % len(MARKERS)]
        line = sorted((positions[across], found) for across, other, found in points if other == name)
        deviation = [found.deviation or 0.0 for _, found in line]
        axis.errorbar(
            [x for x, _ in line],
            [found.mean for _, found in line],
            yerr=deviation if any(deviation) else None,
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.6,
            capsize=3,
            # names have no order, so no line leads from one to the next
            linestyle="-" if all(number(across) is not None for across in positions) else "",
            label=name or None,
        )
    if ticks is not None:
        axis.set_xticks(range(len(ticks)), ticks, rotation=30 if max(map(len, ticks)) > 8 else 0)
        axis.set_xlim(-0.5, len(ticks) - 0.5)
    else:
        values = sorted(positions.values())
        if _logarithmic(values):
            axis.set_xscale("log")
        if len(values) <= MOST_TICKS:
            axis.set_xticks(values, [f"{value:g}" for value in values])
            axis.minorticks_off()
    axis.grid(axis="y", color="#b0b0b0", linewidth=0.4)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    if series is not None:
        axis.legend(title=series, fontsize=8, title_fontsize=8, frameon=False)


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


def _positions(values: Sequence[str]) -> tuple[dict[str, float], list[str] | None]:
    """(where each value stands along x, what to write there).

    None to write for numbers in their own places; names, and numbers too close to be read, stand at equal distances.
    """
    numbers = {value: found for value in values if (found := number(value)) is not None}
    if len(numbers) == len(set(values)) and not _crowded(sorted(set(numbers.values()))):
        return numbers, None
    names = sorted(set(values), key=sort_key)
    return {name: float(place) for place, name in enumerate(names)}, names


def _logarithmic(values: Sequence[float]) -> bool:
    """Whether rising `values` belong on a log axis."""
    return values[0] > 0 and values[-1] / values[0] >= 50


def _crowded(values: Sequence[float]) -> bool:
    """Whether two of a few rising `values` would touch on their axis, as 0.99, 0.999 and 0.9999 would."""
    if not 2 < len(values) <= MOST_TICKS:
        return False
    places = np.log(values) if _logarithmic(values) else np.asarray(values)
    return bool(np.diff(places).min() < 0.06 * (places[-1] - places[0]))


def _heading(groups: Sequence[Group]) -> str:
    first = [group.runs[0] for group in groups]
    methods = {literal(str(run.record["method"])) for run in first}
    parts = [common(first), methods.pop() if len(methods) == 1 else ""]
    return ", ".join(part for part in parts if part)


def _tuple_key(values: tuple[str, ...]) -> list[tuple[bool, float, str]]:
    return [sort_key(value) for value in values]
