"""Images and labels from list files, as the field ships ImageNet-LT, Places-LT and iNaturalist 2018."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.data.files.decode import MOST_PIXELS
from ltexp.data.files.lists import (
    ImageList,
    class_folders,
    gap_problems,
    label_problems,
    list_hash,
    names_of_folders,
    read_list,
    repeated_problems,
    shared_problems,
)
from ltexp.data.files.source import FileSource, read_names, read_splits
from ltexp.data.files.split import FileSplit, Paths, SourceFiles
from ltexp.data.types import Ints


class ImageLists(FileSource):
    """Images named by list files, "path label" lines with labels from 0.

    Args:
        folder: that the paths are relative to: below the data root, or absolute.
        train, validation, test: list files, in the folder or absolute; null: there is none.
        num_classes: C; null: one more than the largest label of the training list.
        classes: a file with one class name a line, in label order, in the folder or absolute; null: the names of the
            folders of the training images where each class has one of its own, else numbers.
        published: what the lists hold by their papers, by split: `images`, `smallest` and `largest` class, and `hash`
            where it is known (see `list_hash`). Another hash is only noted.
        exif_orientation, max_pixels: see `Reading`.
    """

    def __init__(
        self,
        folder: str | None,
        train: str | None,
        validation: str | None = None,
        test: str | None = None,
        num_classes: int | None = None,
        classes: str | None = None,
        published: Mapping[str, Mapping[str, Any]] | None = None,
        exif_orientation: bool = False,
        max_pixels: int = MOST_PIXELS,
    ) -> None:
        super().__init__(folder, exif_orientation, max_pixels)
        self.lists = {"train": train, "validation": validation, "test": test}
        self.num_classes = num_classes
        self.classes = classes
        self.published = published or {}

    def inspect(self, root: Path) -> tuple[SourceFiles | None, list[str]]:
        folder, problems = self.find(root)
        if self.lists["train"] is None:
            problems.append("no list of training images is given: set dataset.source.train")
        if problems:
            return None, problems
        lists, problems = read_splits(self.lists, folder, lambda _, file: read_list(file, folder))
        names: tuple[str, ...] | None = None
        if self.classes is not None:
            names, wrong = read_names(folder / Path(self.classes).expanduser())
            problems += wrong
            if names and self.num_classes not in (None, len(names)):
                problems.append(f"{self.classes} names {len(names):,} classes, and num_classes is {self.num_classes:,}")
        problems += self._list_problems(lists, names)
        if problems:
            return None, problems
        names = names or self.names_of(lists["train"])
        splits = {split: self._split(found, folder, names) for split, found in lists.items()}
        hashes = {split: list_hash(self.canonical(found.paths), found.labels) for split, found in lists.items()}
        return SourceFiles(splits["train"], splits.get("validation"), splits.get("test"), names, hashes), []

    def notes(self, opened: SourceFiles) -> list[str]:
        notes = []
        for split, found in opened.hashes.items():
            published = self.published.get(split, {}).get("hash")
            same = (
                "the published one"
                if published == found
                else f"not the published one, {published}: other images or order"
            )
            notes.append(f"hash of the {split} list: {found}" + (f" ({same})" if published else ""))
        return notes

    def _list_problems(self, lists: Mapping[str, ImageList], names: Sequence[str] | None) -> list[str]:
        problems = [line for found in lists.values() for line in repeated_problems(found)]
        problems += [line for split, found in lists.items() for line in self._count_problems(split, found)]
        train = lists.get("train")
        if train is None:
            return problems
        known = self.num_classes or (len(names) if names else None)
        most = int(train.labels.max()) + 1
        if known is None and most > len(train.labels):
            return [*problems, f"{train.name}: label {most - 1} is higher than there are lines; labels count from 0"]
        origin = "num_classes" if self.num_classes else f"{self.classes}" if names else train.name
        for found in lists.values():
            problems += label_problems(found, known or most, origin)
        problems += gap_problems(train, known or most)
        for split in ("validation", "test"):
            if split in lists:
                problems += shared_problems(train, lists[split])
        return problems

    def _count_problems(self, split: str, found: ImageList) -> list[str]:
        """One line if the list does not hold what the published one does."""
        published = self.published.get(split)
        if not published:
            return []
        counts = np.unique(found.labels, return_counts=True)[1]
        has = (len(found.labels), int(counts.min()), int(counts.max()))
        should = (int(published["images"]), int(published["smallest"]), int(published["largest"]))
        if has == should:
            return []
        text = "{:,} images, {:,} to {:,} a class"
        return [f"{found.name}: {text.format(*has)}, and the published {split} list has {text.format(*should)}"]

    def _split(self, found: ImageList, folder: Path, names: Sequence[str]) -> FileSplit:
        index = np.arange(len(found.labels), dtype=np.int64)
        paths = self.resolved(found.paths, found.labels, folder, names)
        return FileSplit(
            paths=paths, labels=found.labels, index=index, root=str(folder), listing=found.name, reading=self.reading
        )

    def resolved(self, paths: Paths, labels: Ints, folder: Path, names: Sequence[str]) -> Paths:
        """The paths as they are on the disk; here: as the list has them."""
        return paths

    def canonical(self, paths: Paths) -> Paths:
        """The paths in the one spelling that is hashed; here: as the list has them."""
        return paths

    def names_of(self, train: ImageList) -> tuple[str, ...]:
        """Class names, by the folders of the training images."""
        folders = class_folders(train.paths.tolist(), train.labels.tolist())
        names = names_of_folders(folders) if folders else None
        return names or tuple(map(str, range(int(train.labels.max()) + 1)))
