"""`python -m ltexp.data check`: what is missing or wrong with a dataset's files, all of it at once."""

from pathlib import Path
from typing import Any

import numpy as np

from ltexp.build import build
from ltexp.data.longtail import class_sizes, workable
from ltexp.data.types import Ints, Source


def check(config: dict[str, Any], root: Path) -> tuple[list[str], list[str]]:
    """Looks at a dataset's source.

    Args:
        config: of the dataset, as in conf/dataset/.
        root: the data root.

    Returns:
        (problems, facts): what keeps it from being used, or, if nothing does, what there is and what to know about it.
    """
    source: Source = build(config["source"])
    problems = source.problems(root)
    if problems:
        return problems, []
    opened = source.open(root)
    facts = [_describe(opened), *source.notes(opened)]
    largest = config.get("max_per_class")
    return [], facts + (_size_note(opened, int(largest)) if largest is not None else [])


def _describe(opened: Any) -> str:
    classes = len(opened.class_names)
    parts = []
    for split, labels in opened.labels.items():
        counts = np.bincount(labels, minlength=classes)
        each = f"{counts.min():,}" if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,}"
        parts.append(f"{counts.sum():,} {split} {opened.unit} ({each} a class)")
    return f"{', '.join(parts)}, {classes:,} classes, {opened.describe()}"


def _size_note(opened: Any, max_per_class: int) -> list[str]:
    available: Ints = np.bincount(opened.labels["train"], minlength=len(opened.class_names)).astype(np.int64)
    wanted = np.array(class_sizes(max_per_class, len(available), "balanced"))
    if (available >= wanted).all():
        return []
    lowest, largest = workable(available, max_per_class, "longtail", 1.0)
    enough = f"imbalance_ratio={lowest} or more" if lowest is not None else f"max_per_class={largest} or less"
    return [f"note: {int((available < wanted).sum())} classes hold fewer than {max_per_class:,}: enough for {enough}"]
