"""What the sources of image files have in common."""

from pathlib import Path

from ltexp.data.files.split import SourceFiles
from ltexp.data.types import Source, Unreadable


class FileSource(Source):
    """Image files below one folder.

    Attributes:
        folder: the images lie in it: below the data root, or absolute.
    """

    folder: str | None

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


def read_names(path: Path) -> tuple[tuple[str, ...] | None, list[str]]:
    """(class names, problems) of a file with one name a line."""
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    except (UnicodeDecodeError, OSError) as error:
        return None, [f"{path}: cannot be read ({error})"]
    if len(names) < 2 or not all(names):
        blank = next((number for number, name in enumerate(names, start=1) if not name), None)
        return None, [f"{path}: " + (f"line {blank} is blank" if blank else f"{len(names)} class names")]
    if len(set(names)) < len(names):
        return None, [f"{path}: a class is named twice: {next(name for name in names if names.count(name) > 1)}"]
    return names, []
