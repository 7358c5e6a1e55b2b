"""`ltexp data check`: what is missing or wrong with a dataset's files, all of it at once."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ltexp.config.build import build
from ltexp.config.require import within
from ltexp.data.intake import own_errors_told, take_in
from ltexp.data.tail.profile import class_sizes, workable
from ltexp.data.types import Ints, LongTailedData, RawDataset, Source, Unreadable
from ltexp.errors import ConfigError, DataError
from ltexp.files import write_text

MOST_NAMED = 3  # samples that cannot be read


class Checked(NamedTuple):
    """What a look at a dataset finds.

    Attributes:
        problems: what keeps it from being used, one line each.
        facts: what there is, unless the lists, folders or arrays are wrong.
        unreadable: the samples that cannot be read, which are among the problems; None where none was looked at.
        left_out: paths of the images that were passed over.
    """

    problems: list[str]
    facts: list[str]
    unreadable: list[Unreadable] | None
    left_out: frozenset[bytes] = frozenset()


def check(config: dict[str, Any], root: Path, decode: bool = False, of_a_run: bool = False) -> Checked:
    """Looks at a dataset's source, without the images that it leaves out.

    Args:
        config: the dataset's config, as in conf/dataset/.
        root: the data root.
        decode: whether image files are decoded as well, which takes long.
        of_a_run: whether what a run takes of it is chosen as well, so that keys that no run takes are problems.
    """
    # as a part of the dataset, so that an error in its constructor reads as in training
    source: Source = build({"_target_": "builtins.dict", "source": config["source"]}, path="dataset")["source"]
    facts: list[str] = []
    try:
        with within("dataset"):
            found, problems = take_in(source, root)
            if found is None:
                return Checked(problems, [], None)
            opened, left_out = _without(found, config.get("leave_out"))
            facts = [f"{_counts(opened.labels, opened.class_names, opened.unit)}, {opened.describe()}"]
            with own_errors_told(source):
                facts += source.notes(opened)
        if of_a_run:
            facts.append(f"a run with these keys: {_taken(config, root)}")  # before images are decoded, for its errors
        elif (largest := config.get("max_per_class")) is not None:
            facts += _size_note(opened, int(largest))
        with within("dataset"), own_errors_told(source):
            unreadable = source.unreadable(opened, decode)
    except (ConfigError, DataError) as error:
        return Checked([str(error)], facts, None)
    sizes = {split: len(labels) for split, labels in opened.labels.items()}
    return Checked(describe_unreadable(unreadable, sizes, opened.unit), facts, unreadable, left_out)


def _without(found: Any, leave_out: str | None) -> tuple[Any, frozenset[bytes]]:
    """(the dataset without the images that the file `leave_out` names, their paths)."""
    from ltexp.data.files.left_out import paths_in, without  # which needs Pillow
    from ltexp.data.files.split import SourceFiles

    if leave_out is None or not isinstance(found, SourceFiles):
        return found, frozenset()
    return without(found, leave_out)[0], frozenset(paths_in(leave_out, found.train.root)) - {b""}


def _taken(config: dict[str, Any], root: Path) -> str:
    """What a run takes of the dataset, in a few words. Raises what ends the run if it takes none."""
    data: LongTailedData = build(config, root=root, path="dataset")
    return _counts({name: split.labels for name, split in data.splits.items()}, data.class_names, data.train.unit)


def write_list(file: Path, found: Checked, decoded: bool) -> str:
    """Writes the paths of unreadable images, and of those that are left out already, for `dataset.leave_out`.

    Args:
        file: which is left as it is where no image was looked at, or none is missing and none was decoded.
        found: by a check.
        decoded: whether it decoded images.

    Returns:
        What was done, in one line.
    """
    if found.unreadable is None:
        return f"{file} is not written: no image was looked at"
    paths = {sample.path for sample in found.unreadable}
    if not paths and not decoded:
        return f"{file} is not written: no image is missing, and none was decoded (decode=true)"
    write_text(file, "".join(f"{path.decode()}\n" for path in sorted(paths | found.left_out)))
    what = "unreadable" if decoded else "missing"
    already = f", and of {len(found.left_out)} that are left out already" if found.left_out else ""
    return f"{file}: the paths of {len(paths)} {what} images{already}, for dataset.leave_out={file}"


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


def _counts(labels: Mapping[str, Ints], class_names: Sequence[str], unit: str) -> str:
    """How many samples and classes."""
    parts = []
    for split, own in labels.items():
        counts = np.bincount(own, minlength=len(class_names))
        each = f"{counts.min():,}" if counts.min() == counts.max() else f"{counts.min():,} to {counts.max():,}"
        parts.append(f"{counts.sum():,} {split} {unit} ({each} a class)")
    return f"{', '.join(parts)}, {len(class_names):,} classes"


def _size_note(opened: RawDataset, max_per_class: int) -> list[str]:
    available: Ints = np.bincount(opened.labels["train"], minlength=len(opened.class_names)).astype(np.int64)
    wanted = np.array(class_sizes(max_per_class, len(available), "balanced"))
    if (available >= wanted).all():
        return []
    lowest, largest = workable(available, max_per_class, "longtail", 1.0)
    enough = f"imbalance_ratio={lowest} or more" if lowest is not None else f"max_per_class={largest} or less"
    return [f"note: {int((available < wanted).sum())} classes hold fewer than {max_per_class:,}: enough for {enough}"]
