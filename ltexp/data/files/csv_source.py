"""Images named by tables, a row for each, as ISIC and Kaggle ship them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.config.require import require
from ltexp.data.files.decode import MOST_PIXELS
from ltexp.data.files.folder_source import in_label_order, labels_note
from ltexp.data.files.lists import ImageList, Problems, list_hash, repeated_problems, shared_problems, shown
from ltexp.data.files.source import FileSource, read_names, read_splits
from ltexp.data.files.split import ROWS, FileSplit, SourceFiles
from ltexp.data.files.tables import SEPARATORS, Table, TableForm, read_table

NAMED = 5  # classes without an image that are named


class ImageTables(FileSource):
    """Images named by CSV files with a column of names and one of classes, or a column of marks for each class.

    Labels are 0 to C - 1 in the order of `classes`; without it, classes are those of the training table, in the order
    of their numbers where all are whole numbers, else sorted as text; of columns of marks in the columns' order.

    Args:
        folder: the images lie in it: below the data root, or absolute.
        train, validation, test: the tables, in the folder or absolute; null: there is none.
        path: the column of the images' names, paths below `images`.
        label: the column of their classes; a list: the columns of marks, 1 in that of an image's class and 0 or nothing
            elsewhere.
        images: by split the folder below `folder` that goes before each name; null: none.
        ending: what goes behind each name, such as `.jpg` where tables name images without it.
        separator: of the fields.
        classes: a file with a class a line, in label order, in the folder or absolute: the values of the column
            `label`, or names for its numbers from 0 (of marks: names for the columns); null: see above.
        exif_orientation, max_pixels: see `Reading`.

    Raises:
        ConfigError: for a setting out of range.
    """

    def __init__(
        self,
        folder: str | None,
        train: str | None,
        validation: str | None = None,
        test: str | None = None,
        path: str = "image",
        label: str | Sequence[str] = "label",
        images: Mapping[str, str | None] | None = None,
        ending: str = "",
        separator: str = ",",
        classes: str | None = None,
        exif_orientation: bool = False,
        max_pixels: int = MOST_PIXELS,
    ) -> None:
        super().__init__(folder, exif_orientation, max_pixels)
        require(separator in SEPARATORS, "separator", separator, "one of " + " ".join(map(repr, SEPARATORS)))
        columns = [label] if isinstance(label, str) else list(label)
        marks = isinstance(label, str) or (len(columns) > 1 and len(set(columns)) == len(columns))
        require(marks, "label", label, "a column, or a list of two or more that differ")
        require(path not in columns, "path", path, "another column than label's")
        self.tables = {"train": train, "validation": validation, "test": test}
        self.images = {split: folder or "" for split, folder in (images or {}).items()}
        unknown = sorted(self.images.keys() - self.tables.keys())
        require(not unknown, "images", unknown, "folders by split: train, validation, test")
        for split, name in self.tables.items():
            idle = bool(self.images.get(split)) and name is None
            require(not idle, f"images.{split}", self.images.get(split), f"null, or {split} to name a table")
        self.form = TableForm(path, label if isinstance(label, str) else tuple(columns), separator, "", ending)
        self.classes = classes

    def inspect(self, root: Path) -> tuple[SourceFiles | None, list[str]]:
        folder, problems = self.find(root)
        if self.tables["train"] is None:
            problems.append("no table of training images is given: set dataset.source.train")
        if problems:
            return None, problems
        tables, problems = read_splits(
            self.tables,
            folder,
            lambda split, file: read_table(file, self.form._replace(folder=self.images.get(split, ""))),
        )
        names, wrong = self._names(folder, tables.get("train"))
        problems += wrong
        if problems or names is None:
            return None, problems
        lists: dict[str, ImageList] = {}
        for split, table in tables.items():
            lists[split], wrong = self._listed(table, names)
            problems += wrong
        problems += self._list_problems(lists, names)
        if problems:
            return None, problems
        hashes = {split: list_hash(found.paths, found.labels) for split, found in lists.items()}
        splits = {split: self._split(found, folder) for split, found in lists.items()}
        return SourceFiles(splits["train"], splits.get("validation"), splits.get("test"), names, hashes), []

    def notes(self, opened: SourceFiles) -> list[str]:
        hashes = [f"hash of the {split} table: {found}" for split, found in opened.hashes.items()]
        marks = "dataset.source.label" if not isinstance(self.form.label, str) else None
        return [labels_note(opened.class_names, self.classes or marks), *hashes]

    def _names(self, folder: Path, train: Table | None) -> tuple[tuple[str, ...] | None, list[str]]:
        """(class names in label order, what is wrong with them)."""
        columns = None if isinstance(self.form.label, str) else tuple(self.form.label)
        if self.classes is not None:
            names, problems = read_names(folder / Path(self.classes).expanduser())
            if names and columns and len(names) != len(columns):
                counts = f"{len(names):,} classes, and dataset.source.label {len(columns):,} columns"
                return None, [f"{self.classes} names {counts}"]
            return names, problems
        if columns is not None or train is None:
            return columns, []
        names = in_label_order(set(train.classes))
        return (names, []) if len(names) > 1 else (None, [f"{train.name}: all images are of class {names[0]!r}"])

    def _listed(self, table: Table, names: Sequence[str]) -> tuple[ImageList, list[str]]:
        """(paths and labels of a table, what is wrong with its classes)."""
        if isinstance(self.form.label, str):
            labels = {name: label for label, name in enumerate(names)}
            if self.classes is not None and not any(name.isdecimal() for name in names):
                labels |= {str(label): label for label in range(len(names))}
            origin = self.classes or self.tables["train"]
        else:
            labels, origin = {column: label for label, column in enumerate(self.form.label)}, ""
        complaints = Problems(table.name, ROWS.word)
        for number, value in enumerate(table.classes, start=ROWS.first):
            if value not in labels:
                complaints.add("such classes", number, f"class {shown(value.encode())} is none of {origin}")
        found = np.array([labels.get(value, 0) for value in table.classes], dtype=np.int64)
        paths = np.array([path.encode() for path in table.paths], dtype=np.bytes_)
        return ImageList(table.name, paths, found, ROWS), complaints.texts()

    def _list_problems(self, lists: Mapping[str, ImageList], names: Sequence[str]) -> list[str]:
        problems = [line for found in lists.values() for line in repeated_problems(found)]
        train = lists["train"]
        there = np.bincount(train.labels, minlength=len(names)) > 0
        empty = [name for name, found in zip(names, there, strict=True) if not found]
        if empty:
            further = f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
            problems.append(f"{train.name}: no image of {len(empty)} classes: {', '.join(empty[:NAMED])}{further}")
        for split in ("validation", "test"):
            if split in lists:
                problems += shared_problems(train, lists[split])
        return problems

    def _split(self, found: ImageList, folder: Path) -> FileSplit:
        settings: dict[str, Any] = {"listing": found.name, "reading": self.reading, "numbering": found.numbering}
        index = np.arange(len(found.labels), dtype=np.int64)
        return FileSplit(paths=found.paths, labels=found.labels, index=index, root=str(folder), **settings)
