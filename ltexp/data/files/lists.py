"""List files as the field ships them: a line for each image, its path below the dataset's folder and its label."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltexp.data.files.split import LINES, Numbering, Paths
from ltexp.data.types import Ints
from ltexp.text_files import utf8_lines

MOST_DIGITS = 9  # of a label
HEADER = "; if it names the columns, delete it"
MOST_LINES = 3  # of a kind of problem that are listed


class Problems:
    """What is wrong with a list: of each kind the first lines and how many there are.

    Args:
        name: the list's.
        word: what one of its entries is called.
    """

    def __init__(self, name: str, word: str = LINES.word) -> None:
        self._name, self._word = name, word
        self._found: dict[str, list[str]] = defaultdict(list)
        self._count: dict[str, int] = defaultdict(int)

    def add(self, kind: str, line: int, text: str) -> None:
        """A line's number and what is wrong with it; `kind` says so of many, after "more lines with"."""
        self._count[kind] += 1
        if len(self._found[kind]) < MOST_LINES:
            self._found[kind].append(f"{self._name}, {self._word} {line}: {text}")

    def texts(self) -> list[str]:
        """One line each."""
        texts = []
        for kind, listed in self._found.items():
            further = self._count[kind] - len(listed)
            texts += listed + ([f"{self._name}: {further:,} more {self._word}s with {kind}"] if further else [])
        return texts


@dataclass(frozen=True, eq=False)
class ImageList:
    """A list that was read.

    Attributes:
        name: its file's name.
        paths: (N,) in their order, relative to the dataset's folder, see `plain_path`.
        labels: int64 (N,).
        numbering: of its entries.
    """

    name: str
    paths: Paths
    labels: Ints
    numbering: Numbering = LINES


def list_hash(paths: Paths, labels: Ints) -> str:
    """Of paths and labels in their order; how lines end and what stands between path and label does not matter."""
    state = hashlib.blake2b(b"\n".join(paths.tolist()), digest_size=10)
    state.update(labels.astype("<i8").tobytes())
    return state.hexdigest()


def read_list(path: Path, folder: Path) -> tuple[ImageList | None, list[str]]:
    """(the list, what is wrong with its lines, each by itself); no list if anything is.

    A line is a path, blanks, a tab or a comma, and a label. The path may hold blanks, stand in double quotes, and be
    absolute below `folder`. Lines may end as on Windows; at the end of the file there may be blank ones.

    Args:
        path: the list file's path.
        folder: that the paths are relative to.
    """
    found: list[bytes] = []
    labels: list[int] = []
    complaints = Problems(path.name)
    prefix = str(folder).encode() + b"/"
    blank = 0
    try:
        for number, line in enumerate(utf8_lines(path), start=1):
            name, label = _parts(line)
            name = plain_path(name, prefix)
            if not label and not name:
                blank = blank or number
            elif problem := _problem(name, label, line):
                complaints.add(problem[0], number, problem[1] + (HEADER if _is_header(number, name, label) else ""))
            else:
                if blank:
                    complaints.add("nothing in them", blank, "it is blank")
                    blank = 0
                found.append(name)
                labels.append(int(label))
    except OSError as error:
        return None, [f"{path}: {error.strerror or error}"]
    texts = complaints.texts()
    if not found and not texts:
        texts = [f"{path} is empty"]
    if texts:
        return None, texts
    return ImageList(path.name, np.array(found, dtype=np.bytes_), np.array(labels, dtype=np.int64)), []


def _parts(line: bytes) -> tuple[bytes, bytes]:
    """(path, label) of a line, empty where there is none: the label is what stands behind the last blank or comma."""
    *rest, label = line.rsplit(None, 1) or [b""]  # blanks of any kind
    name = rest[0] if rest else b""
    if not label.isdigit() and b"," in line:
        before, _, last = line.strip().rpartition(b",")
        if last.strip(b' "').isdigit() or not rest:
            name, label = before.rstrip(), last.strip(b' "')
    name = name.removesuffix(b",").rstrip()  # of "path, label"
    if len(name) > 2 and name[:1] == name[-1:] == b'"':
        name = name[1:-1].replace(b'""', b'"')
    return name, label


def _is_header(number: int, name: bytes, label: bytes) -> bool:
    """Whether line 1 names columns: words alone, without the ending of a file."""
    return number == 1 and label.isalpha() and b"." not in name and b"/" not in name


def _problem(name: bytes, label: bytes, line: bytes) -> tuple[str, str] | None:
    """(kind, text) of what is wrong with a line, if anything is."""
    if b"\0" in line:
        return "zero bytes", "it holds zero bytes; is the list UTF-16? save it as UTF-8"
    if b"\r" in name:
        return "carriage returns", "lines end as on old Macs: save the list with the line ends of Unix or Windows"
    if not name:
        return "no path and label", f"expected a path and a label, found {shown(line.strip())}"
    if not label.isdigit() or len(label) > MOST_DIGITS:
        return "no label", f"expected a label from 0 at its end, found {shown(label)}"
    if problem := path_problem(name):
        return problem
    if not name.isascii() and not is_utf8(name):
        return "paths that are not UTF-8", f"{shown(name)} is not UTF-8"
    return None


def plain_path(name: bytes, prefix: bytes) -> bytes:
    """A path in the one spelling of its file: below the folder `prefix`, `i//a.jpg` and `./i/./a.jpg` as `i/a.jpg`.

    Text alone is looked at, and most paths are as they should be: a list may have millions.
    """
    if b"//" in name or b"/./" in name or name.startswith(b"./"):
        root = b"/" if name.startswith(b"/") else b""
        name = root + b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))
    return name.removeprefix(prefix)


def path_problem(name: bytes) -> tuple[str, str] | None:
    """(kind, text) of what is wrong with a path in a list, if anything is."""
    if name.startswith(b"/") or b".." in name.split(b"/"):
        return "paths outside the folder", f"{shown(name)} is outside the dataset's folder"
    if b"\\" in name:
        return "backslashes", f"{shown(name)}: write / between folders"
    return None


def repeated_problems(image_list: ImageList) -> list[str]:
    """What of a list is in it more than once."""
    paths, word, start = image_list.paths.tolist(), image_list.numbering.word, image_list.numbering.first
    if len(set(paths)) == len(paths):
        return []
    first: dict[bytes, int] = {}
    complaints = Problems(image_list.name, word)
    for number, path in enumerate(paths, start=start):
        earlier = first.setdefault(path, number)
        if earlier != number:
            other = image_list.labels[earlier - start]
            also = "" if other == image_list.labels[number - start] else f", there with label {other}"
            complaints.add(f"paths of earlier {word}s", number, f"{shown(path)} is also {word} {earlier}{also}")
    return complaints.texts()


def label_problems(image_list: ImageList, num_classes: int, class_names_from: str) -> list[str]:
    """What is wrong with the labels of a list.

    Args:
        image_list: the list.
        num_classes: labels go from 0 to one less.
        class_names_from: what says so, for messages.
    """
    complaints = Problems(image_list.name)
    for row in np.flatnonzero(image_list.labels >= num_classes).tolist():
        label = image_list.labels[row]
        complaints.add(
            "such labels", row + 1, f"label {label} is not one of 0 to {num_classes - 1} ({class_names_from})"
        )
    return complaints.texts()


def gap_problems(image_list: ImageList, num_classes: int) -> list[str]:
    """One line if some of the labels 0 to `num_classes` - 1 are on no line."""
    there = np.bincount(image_list.labels[image_list.labels < num_classes], minlength=num_classes) > 0
    absent = np.flatnonzero(~there)
    if not len(absent):
        return []
    listed = ", ".join(map(str, absent[:5])) + (f" and {len(absent) - 5:,} more" if len(absent) > 5 else "")
    hint = "; labels count from 0" if absent.tolist() == [0] else ""
    return [f"{image_list.name}: no line has label {listed} (of 0 to {num_classes - 1}){hint}"]


def shared_problems(one: ImageList, other: ImageList) -> list[str]:
    """What of `other` is in `one` as well, and must not be."""
    lines = {path: number for number, path in enumerate(one.paths.tolist(), start=one.numbering.first)}
    complaints = Problems(other.name, other.numbering.word)
    for number, path in enumerate(other.paths.tolist(), start=other.numbering.first):
        if path in lines:
            text = f"{shown(path)} is also in {one.name}, {one.numbering.word} {lines[path]}"
            complaints.add(f"images of {one.name}", number, text)
    return complaints.texts()


def class_folders(paths: Iterable[bytes], labels: Iterable[int]) -> dict[int, bytes] | None:
    """The one folder of each label's images; None unless each label has one and each folder one label."""
    folders: dict[int, bytes] = {}
    for path, label in zip(paths, labels, strict=True):
        folder = path.rpartition(b"/")[0]
        if folders.setdefault(label, folder) != folder:
            return None
    return folders if len(set(folders.values())) == len(folders) else None


def names_of_folders(folders: dict[int, bytes]) -> tuple[str, ...] | None:
    """Class names in label order: the ends of the folders' paths that tell them apart; None if nothing does."""
    parts = [folders[label].decode().split("/") for label in sorted(folders)]
    for last in range(1, max(map(len, parts)) + 1):
        names = tuple("/".join(part[-last:]) for part in parts)
        if all(names) and len(set(names)) == len(names):
            return names
    return None


def is_utf8(name: bytes) -> bool:
    """Whether a path is text."""
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def shown(text: bytes) -> str:
    """Short, and on one line."""
    readable = text.decode(errors="backslashreplace")
    return repr(readable if len(readable) <= 100 else f"{readable[:97]}...")
