"""Images and labels from a folder for each class."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltexp.data.files.lists import is_utf8, list_hash
from ltexp.data.files.source import FileSource, read_names
from ltexp.data.files.split import FileSplit, SourceFiles

ENDINGS = (b".jpg", b".jpeg", b".png", b".bmp", b".gif", b".webp", b".tif", b".tiff", b".ppm", b".pgm")

MISNAMED = frozenset({"training", "validation", "valid", "testing"})


class ImageFolders(FileSource):
    """A folder for each class: in `train/` and, if they are there, `val/` and `test/` below `folder`, or in it itself.

    Labels follow the sorted names of the class folders, as torchvision's ImageFolder. Whatever lies below a class
    folder and ends as an image file does is an image; names that start with a dot are passed over.

    Args:
        folder: below the data root, or absolute.
        classes: a file with the names of the class folders that count, one a line, in label order, in the folder or
            absolute; null: all, sorted.
    """

    def __init__(self, folder: str | None, classes: str | None = None) -> None:
        self.folder = folder
        self.classes = classes

    def inspect(self, root: Path) -> tuple[SourceFiles | None, list[str]]:
        folder, problems = self.find(root)
        if problems:
            return None, problems
        train = folder / "train" if (folder / "train").is_dir() else folder
        names, problems = self._class_names(folder, train)
        if names is None:
            return None, problems
        places = {"train": train}
        if train != folder:
            found = {"validation": folder / "val", "test": folder / "test"}
            places |= {split: place for split, place in found.items() if place.is_dir()}
        splits: dict[str, FileSplit] = {}
        for split, place in places.items():
            problems += [] if self.classes is not None else _unknown_folders(place, names)
            splits[split], empty = _read_folders(folder, place, names)
            problems += _undecodable_names(splits[split])
            if empty and (split == "train" or len(empty) == len(names)):
                problems.append(f"{place}: no images of {len(empty)} classes: {_listed(empty)}")
        if problems:
            return None, problems
        hashes = {split: list_hash(part.paths, part.labels) for split, part in splits.items()}
        return SourceFiles(splits["train"], splits.get("validation"), splits.get("test"), names, hashes), []

    def _class_names(self, folder: Path, train: Path) -> tuple[tuple[str, ...] | None, list[str]]:
        """(the class folders in label order, the problem with them if there is one)."""
        if self.classes is not None:
            return read_names(folder / Path(self.classes).expanduser())
        if misnamed := MISNAMED.intersection(class_names_of(folder)):
            return None, [f"{folder / min(misnamed)}: folders of splits are called train, val and test"]
        names = class_names_of(train)
        if len(names) < 2:
            return None, [f"{train}: {len(names)} class folders, expected two or more"]
        return names, []


def class_names_of(place: Path) -> tuple[str, ...]:
    """The sorted names of the folders in `place`."""
    return tuple(sorted(entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


def _unknown_folders(place: Path, names: Sequence[str]) -> list[str]:
    known = set(names)
    unknown = [name for name in class_names_of(place) if name not in known]
    if not unknown:
        return []
    return [f"{place}: {len(unknown)} folders that are no training class: {_listed(unknown)}"]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _undecodable_names(split: FileSplit) -> list[str]:
    names = [path for path in split.paths.tolist() if not path.isascii() and not is_utf8(path)]
    return [f"{split.root}: {len(names)} names of files that are not UTF-8: {names[0]!r}"] if names else []


def _read_folders(folder: Path, place: Path, names: Sequence[str]) -> tuple[FileSplit, list[str]]:
    """The images in the class folders of `place`, by class and path, and the classes that have none."""
    paths: list[bytes] = []
    labels: list[int] = []
    empty = []
    for label, name in enumerate(names):
        own = _images_below(folder, place / name)
        paths += own
        labels += [label] * len(own)
        if not own:
            empty.append(name)
    index = np.arange(len(labels), dtype=np.int64)
    values = (np.array(paths, dtype=np.bytes_), np.array(labels, dtype=np.int64))
    return FileSplit(paths=values[0], labels=values[1], index=index, root=str(folder)), empty


def _images_below(folder: Path, place: Path) -> list[bytes]:
    """Sorted paths relative to `folder`."""
    found = []
    start = len(os.fsencode(folder)) + 1
    for here, folders, files in os.walk(os.fsencode(place), followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        images = [name for name in files if name.lower().endswith(ENDINGS) and not name.startswith(b".")]
        found += [os.path.join(here, name)[start:] for name in images]
    return sorted(found)
