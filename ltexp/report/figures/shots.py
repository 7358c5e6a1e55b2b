"""Accuracy on all, many-, medium- and few-shot classes, a row for each experiment: what a gain costs whom."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltexp.config.require import require_choice
from ltexp.errors import ConfigError
from ltexp.report.drawing import BLACK, MARKERS, common, experiments, legend_below, new_figure
from ltexp.report.records import Run
from ltexp.report.saving import save

METRICS = ("all", "many", "medium", "few")
LOOKS = ((BLACK, "D"), *MARKERS[:3])  # colour and marker of each metric
MOST = 50  # rows of a page


def draw(runs: Sequence[Run], path: Path, sort: str = "all") -> None:
    """Draws a row of points for each experiment to `path`; seeds are averaged, their standard deviation a bar.

    Args:
        sort: all | many | medium | few: of what the best row is at the top; default: all.

    Raises:
        ConfigError: for another `sort`, runs under different shot rules, or more experiments than a page holds.
    """
    require_choice("sort", sort, METRICS)
    if len(rules := {run.record["shot_rule"] for run in runs}) > 1:
        raise ConfigError(f"the runs have different shot rules ({'; '.join(sorted(rules))}): choose runs with one")
    rows = [(name, accuracies(seeds)) for name, seeds in experiments(runs, MOST)]
    rows.sort(key=lambda row: np.nan_to_num(row[1][:, METRICS.index(sort)].mean(), nan=-1.0))
    heights = np.asarray([1.0 + 0.55 * name.count("\n") for name, _ in rows])
    places = heights.cumsum() - heights / 2
    figure = new_figure(6.4, 1.1 + 0.2 * heights.sum())
    axis = figure.subplots()
    means = np.asarray([found.mean(axis=0) for _, found in rows])
    axis.hlines(places, np.nanmin(means, axis=1), np.nanmax(means, axis=1), color="#b0b0b0", linewidth=0.8, zorder=1)
    for number, (metric, (color, marker)) in enumerate(zip(METRICS, LOOKS, strict=True)):
        spread = [found[:, number].std(ddof=1) if len(found) > 1 else 0.0 for _, found in rows]
        known = ~np.isnan(means[:, number])
        if not known.any():
            continue
        axis.errorbar(
            means[known, number],
            places[known],
            xerr=np.asarray(spread)[known] if any(spread) else None,
            color=color,
            marker=marker,
            markersize=4.5,
            linestyle="",
            elinewidth=0.8,
            capsize=1.5,
            label=metric,
            zorder=6 - number,
        )
    axis.set_yticks(places, [name for name, _ in rows], fontsize=8)
    axis.set_ylim(0, heights.sum())
    axis.tick_params(axis="x", labelsize=8)
    axis.set_xlabel(f"test accuracy (%); {rules.pop()}", fontsize=8)
    axis.grid(axis="x", color="#b0b0b0", linewidth=0.4, zorder=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.set_title(common(runs), fontsize=9)
    legend_below(figure, METRICS)
    save(figure, path)


def accuracies(seeds: Sequence[Run]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """(S, 4) in percent, of the `METRICS`; NaN where there is no such class."""
    return np.asarray([[run.record["metrics"][metric] for metric in METRICS] for run in seeds], dtype=np.float64)
