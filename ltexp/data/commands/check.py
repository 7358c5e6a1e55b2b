"""`ltexp data check`: what is missing or wrong with a dataset's files, all of it at once."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.config.build import build
from ltexp.config.require import within
from ltexp.data.intake import own_errors_told, take_in
from ltexp.data.tail.profile import class_sizes, workable
from ltexp.data.types import Ints, LongTailedData, RawDataset, Source, Unreadable
from ltexp.errors import ConfigError, DataError

MOST_NAMED = 3  # samples that cannot be read


def check(config: dict[str, Any], root: Path, decode: bool = False) -> tuple[list[str], list[str], list[Unreadable]]:
    """Looks at a dataset's source.

    Args:
        config: the dataset's config, as in conf/dataset/.
        root: the data root.
        decode: whether image files are decoded as well, which takes long.

    Returns:
        (problems, facts, unreadable): what keeps it from being used; what there is, unless the lists, folders or arrays
        are wrong; and the samples that cannot be read, which are among the problems.
    """
    # as a part of the dataset, so that an error in its constructor reads as in training
    source: Source = build({"_target_": "builtins.dict", "source": config["source"]}, path="dataset")["source"]
    try:
        with within("dataset"):
            found, problems = take_in(source, root)
            if found is None:
                return problems, [], []
            opened: RawDataset = found
            with own_errors_told(source):
                unreadable, notes = source.unreadable(opened, decode), source.notes(opened)
    except ConfigError as error:
        return [str(error)], [], []
    facts = [_describe(opened), *notes]
    largest = config.get("max_per_class")
    facts += _size_note(opened, int(largest)) if largest is not None else []
    sizes = {split: len(labels) for split, labels in opened.labels.items()}
    return describe_unreadable(unreadable, sizes, opened.unit), facts, unreadable


def require_present(data: LongTailedData) -> None:
    """Raises a DataError if any sample of a run's data is missing; of files, folders are listed and nothing is read."""
    absent = [
        Unreadable(name, b"", "are missing", split.where(row))
        for name, split in data.splits.items()
        for row in split.missing().tolist()
    ]
    if absent:
        sizes = {name: len(split) for name, split in data.splits.items()}
        lines = describe_unreadable(absent, sizes, data.train.unit)
        raise DataError(
            f"{data.name}: {'; '.join(lines)}; `ltexp data check {data.name} unreadable=FILE` with the same "
            "dataset keys lists them, and dataset.leave_out=FILE goes on without them"
        )


def describe_unreadable(unreadable: list[Unreadable], sizes: Mapping[str, int], unit: str) -> list[str]:
    """One line for each split and kind: how many, and the first few."""
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for sample in unreadable:
        kinds[sample.split, sample.what].append(sample.text)
    lines = []
    for (split, what), texts in kinds.items():
        further = f", and {len(texts) - MOST_NAMED:,} more" if len(texts) > MOST_NAMED else ""
        named = ", ".join(texts[:MOST_NAMED]) + further
        lines.append(f"{len(texts):,} of {sizes[split]:,} {split} {unit} {what}: {named}")
    return lines


def _describe(opened: RawDataset) -> str:
    classes = len(opened.class_names)
    parts = []
    for split, labels in opened.labels.items():
        counts = np.bincount(labels, minlength=classes)
        each = f"{counts.min():,}" if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,}"
        parts.append(f"{counts.sum():,} {split} {opened.unit} ({each} a class)")
    return f"{', '.join(parts)}, {classes:,} classes, {opened.describe()}"


def _size_note(opened: RawDataset, max_per_class: int) -> list[str]:
    available: Ints = np.bincount(opened.labels["train"], minlength=len(opened.class_names)).astype(np.int64)
    wanted = np.array(class_sizes(max_per_class, len(available), "balanced"))
    if (available >= wanted).all():
        return []
    lowest, largest = workable(available, max_per_class, "longtail", 1.0)
    enough = f"imbalance_ratio={lowest} or more" if lowest is not None else f"max_per_class={largest} or less"
    return [f"note: {int((available < wanted).sum())} classes hold fewer than {max_per_class:,}: enough for {enough}"]
