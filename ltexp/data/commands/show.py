"""`ltexp data show`: the long tail of a dataset, in numbers and as a figure."""

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ltexp.data.tail.profile import compact_counts
from ltexp.data.tail.selection import GIVEN
from ltexp.data.types import Ints, LongTailedData
from ltexp.evaluation.shots import ShotRule

RULE = ShotRule()
MOST_BARS = 500  # beyond, an outline takes a tenth of the time and looks the same
MOST_COUNTS = 100  # runs of equal counts that are printed in label order

_BAR = "#0072B2"  # Okabe and Ito's blue: safe for the colour-blind, dark grey in print
_BANDS = {"many": "#ffffff", "medium": "#ececec", "few": "#d4d4d4"}


def shots(counts: Ints) -> dict[str, Ints]:
    """The labels of the many-shot (over 100 images), medium-shot and few-shot (under 20) classes."""
    masks = RULE.groups(counts)
    return {name: np.flatnonzero(mask).astype(np.int64) for name, mask in masks.items()}


def print_summary(data: LongTailedData, console: Console) -> None:
    """Prints sizes, class counts, ratio, shots and hashes."""
    counts = data.class_counts
    unit = data.train.unit
    held_out = f", {len(data.validation):,} validation {unit}" if data.validation is not None else ""
    lines = [
        f"{_title(data)} "
        f"(largest class {counts.max():,}, smallest {counts.min():,}, so {counts.max() / counts.min():.4g})",
        f"{len(data.train):,} train {unit}{held_out}, {len(data.test):,} test {unit}, "
        f"{data.num_classes} classes, {data.train.describe()}",
        f"{unit} of each class: {_counts_text(counts)}",
        f"subset {data.subset_hash}, content {data.content_hash}",
    ]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    left_out = data.facts.get("left_out")
    if left_out and left_out["first"]:
        parts = [f"{left_out[split]:,} {split}" for split in data.splits if left_out.get(split)]
        console.print(
            f"left out: {', '.join(parts)} {unit}, such as {left_out['first'][0]}", highlight=False, markup=False
        )
    table = Table("shots", f"training {unit}")
    for column in ("classes", unit, "of all"):
        table.add_column(column, justify="right")
    rules = (f"> {RULE.many_above}", f"{RULE.few_below} to {RULE.many_above}", f"< {RULE.few_below}")
    for rule, (name, labels) in zip(rules, shots(counts).items(), strict=True):
        images = int(counts[labels].sum())
        table.add_row(name, rule, str(len(labels)), f"{images:,}", f"{images / counts.sum():.1%}")
    console.print(table)


def draw(data: LongTailedData, path: Path) -> None:
    """Draws the class-frequency plot: classes by falling count, counts on a log axis, shots shaded.

    Raises:
        ConfigError: if the figure cannot be written, or matplotlib does not know the ending of `path`.
    """
    from ltexp.report.classes import MOST_WIDE
    from ltexp.report.drawing import LINE, fill, new_figure
    from ltexp.report.saving import save
    from ltexp.report.text import shorten

    order = np.argsort(-data.class_counts, kind="stable")
    counts = data.class_counts[order]
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    if len(counts) <= MOST_BARS:
        axes.bar(np.arange(len(counts)), counts, width=0.8 if len(counts) <= 30 else 1.0, color=_BAR, zorder=2)
    else:
        axes.fill_between(np.arange(len(counts)), counts, step="mid", color=_BAR, linewidth=0, zorder=2)
    start = -0.5
    for name, labels in shots(data.class_counts).items():
        if len(labels):
            axes.axvspan(start, start + len(labels), color=_BANDS[name], zorder=0)
            middle = start + len(labels) / 2
            axes.text(middle, 1.02, f"{name} ({len(labels)})", ha="center", transform=axes.get_xaxis_transform())
            start += len(labels)
    for bound in (RULE.many_above, RULE.few_below):
        axes.axhline(bound, color="black", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.set(yscale="log", xlim=(-0.5, len(counts) - 0.5), ylim=(0.8, 1.6 * counts.max()))
    axes.set(xlabel=f"class, by number of {data.train.unit}", ylabel=f"training {data.train.unit}")
    ticks = _ticks(int(counts.min()), int(counts.max()))
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_title(fill(_title(data), 2 * LINE), pad=20)
    if len(counts) <= 20:
        axes.set_xticks(
            np.arange(len(counts)), [shorten(data.class_names[label], MOST_WIDE) for label in order], rotation=30
        )
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _title(data: LongTailedData) -> str:
    kind = "" if data.imbalance == GIVEN else f"{data.imbalance}, "
    return f"{data.name}: {kind}imbalance ratio {data.imbalance_ratio:g}"


def _counts_text(counts: Ints) -> str:
    """In label order; of very many classes, at every tenth of them by size."""
    if int((np.diff(counts) != 0).sum()) < MOST_COUNTS:
        return compact_counts(counts.tolist())
    tenths = np.sort(counts)[::-1][np.linspace(0, len(counts) - 1, 11).astype(int)]
    return f"{', '.join(map(str, tenths))} (at every tenth of the {len(counts):,} classes by size)"


def _ticks(least: int, most: int) -> list[int]:
    """Powers of ten, the shot bounds and the extremes where their labels do not touch."""
    ticks = {RULE.few_below, RULE.many_above, *(10**power for power in range(7))}
    ticks |= {end for end in (least, most) if all(max(end / tick, tick / end) > 1.5 for tick in ticks)}
    return sorted(tick for tick in ticks if tick <= 1.5 * most)
