"""Images and labels from a folder for each class."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltexp.data.file_source import FileSource, read_names
from ltexp.data.files import FileSplit, SourceFiles
from ltexp.data.lists import list_hash

ENDINGS = (b".jpg", b".jpeg", b".png", b".bmp", b".gif", b".webp", b".tif", b".tiff", b".ppm", b".pgm")


class ImageFolders(FileSource):
    """A folder for each class: in `train/` and, if they are there, `val/` and `test/` below `folder`, or in it itself.

    Labels follow the sorted names of the class folders, as torchvision's ImageFolder. Whatever lies below a class
    folder and ends as an image file does is an image; names that start with a dot are passed over.

    Args:
        folder: below the data root, or absolute.
        classes: a file with the names of the class folders, one a line, in label order, in the folder or absolute;
            null: all, sorted.
    """

    def __init__(self, folder: str | None, classes: str | None = None) -> None:
        self.folder = folder
        self.classes = classes

    def inspect(self, root: Path) -> tuple[SourceFiles | None, list[str]]:
        folder, problems = self.find(root)
        if problems:
            return None, problems
        names: tuple[str, ...] | None = None
        if self.classes is not None:
            names, problems = read_names(folder / Path(self.classes).expanduser())
            if names is None:
                return None, problems
        train = folder / "train" if (folder / "train").is_dir() else folder
        names = names or class_names_of(train)
        if len(names) < 2:
            return None, [f"{train}: {len(names)} class folders, expected two or more"]
        splits = {"train": train}
        if train != folder:
            splits |= {split: place for split in ("val", "test") if (place := folder / split).is_dir()}
        found: dict[str, FileSplit] = {}
        for split, place in splits.items():
            problems += _unknown_folders(place, names)
            found[split], empty = _read_folders(folder, place, names)
            if empty and split == "train":
                listed = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
                problems.append(f"{place}: no images of {len(empty)} classes: {listed}")
            elif len(empty) == len(names):
                problems.append(f"{place}: no images")
        if problems:
            return None, problems
        named = {{"val": "validation"}.get(split, split): part for split, part in found.items()}
        hashes = {split: list_hash(part.paths, part.labels) for split, part in named.items()}
        return SourceFiles(named["train"], named.get("validation"), named.get("test"), names, hashes), []


def class_names_of(place: Path) -> tuple[str, ...]:
    """The sorted names of the folders in `place`."""
    return tuple(sorted(entry.name for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith(".")))


def _unknown_folders(place: Path, names: Sequence[str]) -> list[str]:
    known = set(names)
    unknown = [name for name in class_names_of(place) if name not in known]
    if not unknown:
        return []
    listed = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
    return [f"{place}: {len(unknown)} folders that are no training class: {listed}"]


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
