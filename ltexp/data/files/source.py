"""What the sources of image files have in common."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from ltexp.config.require import is_whole, require
from ltexp.data.files.decode import MOST_PIXELS, Reading
from ltexp.data.files.split import SourceFiles
from ltexp.data.types import Source, Unreadable
from ltexp.text_files import utf8_lines

T = TypeVar("T")


class FileSource(Source):
    """Image files below one folder.

    Args:
        folder: the images lie in it: below the data root, or absolute.
        exif_orientation, max_pixels: see `Reading`.

    Raises:
        ConfigError: for a setting out of range.
    """

    def __init__(self, folder: str | None, exif_orientation: bool = False, max_pixels: int = MOST_PIXELS) -> None:
        require(isinstance(exif_orientation, bool), "exif_orientation", exif_orientation, "true or false")
        require(is_whole(max_pixels, 1), "max_pixels", max_pixels, "a whole number of 1 or more")
        self.folder = folder
        self.reading = Reading(exif_orientation, max_pixels)

    def unreadable(self, opened: SourceFiles, decode: bool) -> list[Unreadable]:
        """Images that are not there or, with `decode`, cannot be decoded, which takes all cores and shows a bar."""
        absent = {name: split.missing() for name, split in opened.splits.items()}
        found = [
            Unreadable(name, opened.splits[name].paths[row], "are missing", opened.splits[name].where(row))
            for name, rows in absent.items()
            for row in rows.tolist()
        ]
        if decode:
            from ltexp.data.files.undecodable import undecodable

            found += undecodable(opened.splits, absent)
        return found

    def find(self, root: Path) -> tuple[Path, list[str]]:
        """(the dataset's folder, the problem with it if there is one)."""
        if self.folder is None:
            return root, ["no folder is given: set dataset.source.folder, below the data root or absolute"]
        folder = (root / Path(self.folder).expanduser()).absolute()
        return folder, [] if folder.is_dir() else [f"{folder}: there is no such folder"]


def read_splits(
    files: Mapping[str, str | None], folder: Path, read: Callable[[str, Path], tuple[T | None, list[str]]]
) -> tuple[dict[str, T], list[str]]:
    """(what the file of each split holds, what is wrong with them).

    Args:
        files: by split, in the folder or absolute; None: there is none.
        folder: of the source.
        read: (content, problems) of a split and its file.
    """
    found: dict[str, T] = {}
    problems: list[str] = []
    for split, name in files.items():
        if name is not None:
            content, wrong = read(split, folder / Path(name).expanduser())
            problems += wrong
            if content is not None:
                found[split] = content
    return found, problems


def read_names(path: Path) -> tuple[tuple[str, ...] | None, list[str]]:
    """(class names, problems) of a file with one name a line."""
    try:
        names = tuple(line.decode().strip() for line in utf8_lines(path))
    except UnicodeDecodeError:
        return None, [f"{path}: not a text file in UTF-8: save it as that"]
    except OSError as error:
        return None, [f"{path}: cannot be read ({error.strerror or error})"]
    if any("\0" in name for name in names):
        return None, [f"{path}: it holds zero bytes; if it is UTF-16, save it as UTF-8"]
    if len(names) < 2 or not all(names):
        blank = next((number for number, name in enumerate(names, start=1) if not name), None)
        return None, [f"{path}: " + (f"line {blank} is blank" if blank else f"{len(names)} class names")]
    if len(set(names)) < len(names):
        return None, [f"{path}: a class is named twice: {next(name for name in names if names.count(name) > 1)}"]
    return names, []
