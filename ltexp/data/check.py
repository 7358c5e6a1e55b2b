"""`python -m ltexp.data check`: what is missing or wrong with a dataset's files, all of it at once."""

from pathlib import Path

import numpy as np

from ltexp.build import build
from ltexp.data.arrays import PreparedArrays
from ltexp.data.articles import CsvArticles, SourceTexts
from ltexp.data.catalog import dataset_config
from ltexp.data.longtail import class_sizes, workable
from ltexp.data.official import OFFICIAL
from ltexp.data.types import Ints, Source, SourceArrays


def check(name: str, root: Path) -> tuple[list[str], list[str]]:
    """Looks at a dataset's source.

    Args:
        name: of a file in conf/dataset/.
        root: the data root.

    Returns:
        (problems, facts): what keeps it from being used, or, if nothing does, what there is and what to know about it.
    """
    config = dataset_config(name)
    source: Source = build(config["source"])
    problems = source.problems(root)
    if problems:
        remedy = [source.remedy(root).removeprefix("; ")] if isinstance(source, PreparedArrays | CsvArticles) else []
        return [*problems, *remedy], []
    arrays = source.open(root)
    facts = [_describe(arrays)]
    if isinstance(source, PreparedArrays):
        facts += _order_note(source.folder, arrays)
    return [], facts + _size_note(arrays, int(config["max_per_class"]))


def _describe(arrays: SourceArrays | SourceTexts) -> str:
    classes = len(arrays.class_names)
    parts = []
    for split in ("train", "test"):
        counts = np.bincount(getattr(arrays, f"{split}_labels"), minlength=classes)
        each = f"{counts.min():,}" if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,}"
        parts.append(f"{counts.sum():,} {split} {arrays.unit} ({each} a class)")
    return f"{', '.join(parts)}, {classes} classes, {arrays.describe()}"


def _order_note(folder: str, arrays: SourceArrays) -> list[str]:
    official = OFFICIAL.get(folder)
    if official is None or tuple(arrays.train_labels[: len(official.first_labels)]) == official.first_labels:
        return []
    return ["note: not in the published order, so a subset holds other images than the same one elsewhere"]


def _size_note(arrays: SourceArrays | SourceTexts, max_per_class: int) -> list[str]:
    available: Ints = np.bincount(arrays.train_labels, minlength=len(arrays.class_names)).astype(np.int64)
    wanted = np.array(class_sizes(max_per_class, len(available), "balanced"))
    if (available >= wanted).all():
        return []
    lowest, largest = workable(available, max_per_class, "longtail", 1.0)
    enough = f"imbalance_ratio={lowest} or more" if lowest is not None else f"max_per_class={largest} or less"
    return [f"note: {int((available < wanted).sum())} classes hold fewer than {max_per_class:,}: enough for {enough}"]
