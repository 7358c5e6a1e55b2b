"""Images of each class of a dataset, from the most to the least frequent (thesis, Figs. 2.1 and 2.2)."""

from pathlib import Path
from typing import Any

import numpy as np

from ltexp.config.build import build
from ltexp.data.commands.catalog import dataset_config
from ltexp.data.types import Ints, LongTailedData
from ltexp.errors import ConfigError
from ltexp.names import unknown_name
from ltexp.report.drawing import MARKERS, new_figure, stroke
from ltexp.report.plots import numbers, plain
from ltexp.report.saving import save

SPLITS = ("train", "validation", "test")
MOST_POINTS = 30  # classes with a marker each; more are a line alone


def draw(path: Path, dataset: str, ratios: str | None = None, splits: str = "train", root: str = "data") -> None:
    """Draws a line for each ratio, or each split, to `path`; counts on a log axis.

    Classes are in the order of the training set's counts, in every split.

    Args:
        path: the figure's file.
        dataset: a file of conf/dataset/.
        ratios: imbalance ratios with commas; default: the dataset's own.
        splits: train, validation and test, with commas; several with at most one ratio. Default: train.
        root: the data root; default: data.

    Raises:
        ConfigError: for an unknown dataset or split, or more lines than there are colours to tell apart.
        DataError: for data that is not there, or has no such split.
    """
    lines = _lines(dataset, ratios, splits.split(","), root)
    if len(lines) > len(MARKERS):
        raise ConfigError(f"{len(lines)} lines are too many for one figure: choose at most {len(MARKERS)}")
    classes = len(next(iter(lines.values())))
    figure = new_figure(5.2, 3.4)
    axis = figure.subplots()
    for (name, counts), (color, marker) in zip(lines.items(), MARKERS, strict=False):
        places = np.arange(1, classes + 1)
        known = counts > 0  # a class without images has no place on a log axis
        few = classes <= MOST_POINTS
        style: dict[str, Any] = {"marker": marker, "markersize": 5} if few else {}
        axis.plot(places[known], counts[known], **stroke(color), label=name, **style)
    axis.set(yscale="log", xlim=(1 - 0.02 * classes, 1.02 * classes))
    if classes <= MOST_POINTS:
        axis.set_xticks(np.arange(1, classes + 1))
    axis.set_xlabel("class, from the most to the least frequent", fontsize=9)
    axis.set_ylabel("images of the class", fontsize=9)
    axis.set_title(f"{dataset}, {classes:,} classes", fontsize=9)
    _number(axis, min(int(c[c > 0].min()) for c in lines.values()), max(int(c.max()) for c in lines.values()))
    axis.legend(fontsize=8, frameon=False)
    plain(axis)
    save(figure, path)


def _lines(dataset: str, ratios: str | None, splits: list[str], root: str) -> dict[str, Ints]:
    """Counts (C,) by falling number of training images, by what the line is called."""
    for split in splits:
        if split not in SPLITS:
            raise ConfigError(unknown_name("split", split, SPLITS))
    values = [None] if ratios is None else numbers("ratios", ratios)
    if len(values) > 1 and len(splits) > 1:
        raise ConfigError("choose several ratios or several splits, not both")
    found = {}
    for ratio in values:
        changed = {} if ratio is None else {"imbalance_ratio": ratio}
        data: LongTailedData = build(dataset_config(dataset) | changed, root=root, path="dataset")
        order = np.argsort(-data.class_counts, kind="stable")
        for split in splits:
            if split not in data.splits:
                raise ConfigError(unknown_name(f"split of {dataset}", split, data.splits))
            counts = np.bincount(data.splits[split].labels, minlength=data.num_classes)[order]
            images = f"{int(counts.sum()):,} {data.train.unit}"
            name = f"ratio {data.imbalance_ratio:g}" if len(splits) == 1 else split
            found[f"{name} ({images})"] = counts.astype(np.int64)
    return found


def _number(axis: Any, least: int, most: int) -> None:
    """Whole numbers at 1, 2 and 5 times the powers of ten, instead of powers."""
    steps = [step * 10**power for power in range(7) for step in (1, 2, 5)]
    ticks = [step for step in steps if 0.7 * least <= step <= 1.5 * most]
    axis.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
