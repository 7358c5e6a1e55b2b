"""Images and labels from a folder for each class."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ltexp.data.files.decode import MOST_PIXELS
from ltexp.data.files.lists import is_utf8, list_hash
from ltexp.data.files.source import FileSource, read_names
from ltexp.data.files.split import FileSplit, SourceFiles, passed_over_note

# what Pillow reads; any other file in a class folder is passed over, and counted
ENDINGS = (
    *(b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".webp", b".tif", b".tiff", b".bmp", b".gif"),
    *(b".ppm", b".pgm", b".pbm", b".pnm", b".jp2", b".avif"),
)
# folders that file servers, archivers and operating systems put between the user's
OF_SYSTEMS = frozenset(
    {
        *("@eaDir", "#recycle", "@Recycle", "#snapshot", "@Recently-Snapshot", "$RECYCLE.BIN"),
        *("System Volume Information", "lost+found", "__MACOSX", "__pycache__"),
    }
)
MISNAMED = frozenset({"training", "validation", "valid", "testing"})
SPLITS = ("train", "val", "test")
LISTED = 3  # classes at each end whose labels `data check` names


class ImageFolders(FileSource):
    """A folder for each class: in `train/` and, if they are there, `val/` and `test/` below `folder`, or in it itself.

    Labels follow the names of the class folders: in the order of their numbers where all are whole numbers, else sorted
    as text (as torchvision's ImageFolder sorts all). Whatever lies below a class folder and ends as an image file does
    is an image; names that start with a dot, and the folders of file servers and archivers, are passed over.

    Args:
        folder: below the data root, or absolute.
        classes: a file with the names of the class folders that count, one a line, in label order, in the folder or
            absolute; null: all, sorted.
        exif_orientation, max_pixels: see `Reading`.
    """

    def __init__(
        self,
        folder: str | None,
        classes: str | None = None,
        exif_orientation: bool = False,
        max_pixels: int = MOST_PIXELS,
    ) -> None:
        super().__init__(folder, exif_orientation, max_pixels)
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
        others: Counter[str] = Counter()
        for split, place in places.items():
            problems += [] if self.classes is not None else _unknown_folders(place, names)
            splits[split], empty = self._read_folders(folder, place, names, others)
            problems += _undecodable_names(splits[split])
            if empty and (split == "train" or len(empty) == len(names)):
                problems.append(f"{place}: no images of {len(empty)} classes: {_listed(empty)}")
        if problems:
            return None, [*problems, *passed_over_note(others)]
        hashes = {split: list_hash(part.paths, part.labels) for split, part in splits.items()}
        return SourceFiles(splits["train"], splits.get("validation"), splits.get("test"), names, hashes, others), []

    def notes(self, opened: SourceFiles) -> list[str]:
        return [labels_note(opened.class_names, self.classes), *passed_over_note(opened.passed_over)]

    def _read_folders(
        self, folder: Path, place: Path, names: Sequence[str], others: Counter[str]
    ) -> tuple[FileSplit, list[str]]:
        """The images in the class folders of `place`, by class and path, and the classes that have none.

        Args:
            others: further files are counted here, by their endings.
        """
        paths: list[bytes] = []
        labels: list[int] = []
        empty = []
        for label, name in enumerate(names):
            own = images_below(folder, place / name, others)
            paths += own
            labels += [label] * len(own)
            if not own:
                empty.append(name)
        if loose := [name for name in os.listdir(os.fsencode(place)) if _is_image(name)]:
            others["images in no class folder"] += len(loose)
        index = np.arange(len(labels), dtype=np.int64)
        values = (np.array(paths, dtype=np.bytes_), np.array(labels, dtype=np.int64))
        split = FileSplit(paths=values[0], labels=values[1], index=index, root=str(folder), reading=self.reading)
        return split, empty

    def _class_names(self, folder: Path, train: Path) -> tuple[tuple[str, ...] | None, list[str]]:
        """(the class folders in label order, the problem with them if there is one)."""
        if self.classes is not None:
            return read_names(folder / Path(self.classes).expanduser())
        misnamed = [
            name
            for name in class_names_of(folder)
            if name.lower() in MISNAMED or (name not in SPLITS and name.lower() in SPLITS)
        ]
        if misnamed:
            return None, [f"{folder / misnamed[0]}: folders of splits are called train, val and test"]
        names = class_names_of(train)
        if len(names) < 2:
            return None, [f"{train}: {len(names)} class folders, expected two or more"]
        return names, []


def class_names_of(place: Path) -> tuple[str, ...]:
    """The names of the folders in `place` in label order."""
    return in_label_order(
        entry.name
        for entry in place.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in OF_SYSTEMS
    )


def in_label_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class folders by label: by number where all are whole numbers, else sorted as text."""
    found = sorted(names)
    return tuple(sorted(found, key=int)) if are_numbers(found) else tuple(found)


def are_numbers(names: Sequence[str]) -> bool:
    """Whether all names are whole numbers; labels are others than these, unless they run from 0 to C - 1."""
    return all(name.isascii() and name.isdecimal() for name in names)


def labels_note(names: Sequence[str], classes: str | None = None) -> str:
    """One line that says which class has which label, and why.

    Args:
        names: in label order.
        classes: the file that gave them, if one did.
    """
    order = f"as {classes} has them" if classes else "by number" if are_numbers(names) else "sorted as text"
    named = [f"{label} is {name}" for label, name in enumerate(names)]
    if len(named) > 2 * LISTED:
        named = [*named[:LISTED], "...", *named[-LISTED:]]
    return f"labels, {order}: {', '.join(named)}"


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


def _is_image(name: bytes) -> bool:
    return name.lower().endswith(ENDINGS) and not name.startswith(b".")


def images_below(folder: Path, place: Path, others: Counter[str]) -> list[bytes]:
    """Sorted paths relative to `folder`; other files are counted in `others` by their endings."""
    found = []
    start = len(os.fsencode(folder)) + 1
    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(os.fsencode(place), followlinks=True):
        facts = os.stat(here)
        if (facts.st_dev, facts.st_ino) in seen:  # a link leads back: its images have been counted
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders[:] = [name for name in folders if not name.startswith(b".") and os.fsdecode(name) not in OF_SYSTEMS]
        for name in files:
            if _is_image(name):
                found.append(os.path.join(here, name)[start:])
            elif not name.startswith(b"."):
                others[os.fsdecode(os.path.splitext(name)[1].lower()) or "without an ending"] += 1
    return sorted(found)
