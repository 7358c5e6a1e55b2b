"""Images that stay in their files: what a split knows of them, and a whole dataset of them."""

import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from ltexp.data.files.decode import AS_STORED, Reading
from ltexp.data.types import Ints, Split

KINDS_NAMED = 5  # endings of files that are passed over

Paths = npt.NDArray[np.bytes_]


class Numbering(NamedTuple):
    """How the entries of a list are counted.

    Attributes:
        word: what one is called.
        first: the number of the first.
    """

    word: str = "line"
    first: int = 1


LINES = Numbering()
ROWS = Numbering("row", first=2)  # of a table, below the names of its columns


@dataclass(frozen=True, eq=False, kw_only=True)
class FileSplit(Split):
    """Image files below one folder.

    Attributes:
        paths: (N,) UTF-8, relative to `root`, as an array of bytes: compact, and nothing in it is written to when a
            forked worker reads it.
        root: absolute.
        listing: the list file that names them; "" if there is none.
        reading: how they are read.
        numbering: of the entries of that file, of which `index` is one's position.
    """

    paths: Paths
    root: str
    listing: str = ""
    reading: Reading = AS_STORED
    numbering: Numbering = LINES
    loader: ClassVar[str] = "ltexp.data.files.loader.FileLoader"
    unit: ClassVar[str] = "images"

    def describe(self) -> str:
        """Where they are."""
        return f"files in {self.root}"

    def where(self, row: int) -> str:
        """The full path of a row, and the line of the list that names it."""
        word, first = self.numbering
        line = f" ({self.listing}, {word} {self.index[row] + first})" if self.listing else ""
        return os.path.join(self.root, os.fsdecode(self.paths[row])) + line

    def missing(self) -> Ints:
        """The rows whose file is not there; listing each folder once is far faster than asking for each file."""
        rows: dict[bytes, list[tuple[bytes, int]]] = defaultdict(list)
        for row, path in enumerate(self.paths.tolist()):
            folder, _, name = path.rpartition(b"/")
            rows[folder].append((name, row))
        absent = []
        for folder, entries in rows.items():
            try:
                there = set(os.listdir(os.path.join(os.fsencode(self.root), folder)))
            except OSError:
                there = set()
            absent += [row for name, row in entries if name not in there]
        return np.array(sorted(absent), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class SourceFiles:
    """A whole dataset of image files in its own order, before any subset is taken.

    Attributes:
        train: labels are positions in `class_names`.
        validation: the official one; None if there is none.
        test: None if there is none.
        class_names: one for each label.
        hashes: a hash of each split's paths and labels, by its name; the same wherever the files lie.
        passed_over: how many files of the folders are no images by their ending, by that.
        unit: what one sample is called, in the plural.
    """

    train: FileSplit
    validation: FileSplit | None
    test: FileSplit | None
    class_names: tuple[str, ...]
    hashes: Mapping[str, str]
    passed_over: Mapping[str, int] = field(default_factory=dict)
    unit: ClassVar[str] = "images"

    def describe(self) -> str:
        """Where the samples are."""
        return self.train.describe()

    @property
    def splits(self) -> dict[str, FileSplit]:
        """Those that there are, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def labels(self) -> dict[str, Ints]:
        """By split."""
        return {name: split.labels for name, split in self.splits.items()}


def passed_over_note(counts: Mapping[str, int]) -> list[str]:
    """One line on files in class folders that are no images by their ending; none if there are none."""
    if not counts:
        return []
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{count:,} {what}" for what, count in most[:KINDS_NAMED])
    further = f" and {len(most) - KINDS_NAMED} more kinds" if len(most) > KINDS_NAMED else ""
    return [f"note: {sum(counts.values()):,} files in class folders are passed over as no images: {named}{further}"]
