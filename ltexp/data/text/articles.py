"""Text datasets at rest as CSV files: one article a line, its class (counted from 1) and then its text in some fields.

This is the form of AG's News as its authors publish it (Zhang et al., NeurIPS 2015): class index, title, description.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ltexp.data.images.arrays import default_root
from ltexp.data.types import Ints, Source
from ltexp.text_files import utf8_lines

FILES = ("train.csv", "test.csv")
PREPARED_BY_COMMAND = ("ag_news",)
MOST_LETTERS = 2**31 - 1  # of a field: any length
HEADERS = ("class", "class index", "label", "category", "target")  # of a first column
MOST_PROBLEMS = 5  # of a file that are listed


@dataclass(frozen=True, eq=False)
class SourceTexts:
    """A whole text dataset in its own order, before any subset is taken.

    Attributes:
        train_texts: N texts; so is `test_texts`.
        train_labels: int64 (N,), positions in `class_names`; so is `test_labels`.
        class_names: one for each label.
        unit: what one sample is called, in the plural.
    """

    train_texts: list[str]
    train_labels: Ints
    test_texts: list[str]
    test_labels: Ints
    class_names: tuple[str, ...]
    unit: ClassVar[str] = "articles"

    def describe(self) -> str:
        """What a sample is like, in a few words."""
        words = sum(len(text.split()) for text in self.train_texts) / len(self.train_texts)
        return f"{words:.0f} words on average"

    @property
    def labels(self) -> dict[str, Ints]:
        """By split."""
        return {"train": self.train_labels, "test": self.test_labels}


class CsvArticles(Source):
    """`train.csv` and `test.csv` in `<data root>/<folder>`.

    Args:
        folder: its name, e.g. `ag_news`.
        class_names: the names of the classes, in the order of their indices.
        text_fields: the number of fields of text after the class index of an article; AG's News: title and description.
    """

    def __init__(self, folder: str, class_names: Sequence[str], text_fields: int = 2) -> None:
        self.folder = folder
        self.class_names = tuple(class_names)
        self.text_fields = text_fields

    def inspect(self, root: Path) -> tuple[SourceTexts | None, list[str]]:
        """The articles and everything that is missing or wrong."""
        found, problems = self.read(root / self.folder)
        return found, [*problems, self.remedy(root)] if problems else []

    def place(self, root: Path) -> str:
        return f"{root / self.folder}: "

    def remedy(self, root: Path) -> str:
        """What to do."""
        if self.folder not in PREPARED_BY_COMMAND:
            return f"it must hold {' and '.join(FILES)} (see `ltexp data check --help`)"
        where = "" if root == default_root() else f" root={root}"
        return f"run `ltexp data prepare {self.folder} source=PATH{where}`"

    def read(self, folder: Path) -> tuple[SourceTexts | None, list[str]]:
        """The articles in `folder` and what is wrong with them; articles only if nothing is."""
        missing = [name for name in FILES if not (folder / name).is_file()]
        problems = [f"missing {', '.join(missing)}"] if missing else []
        found: list[tuple[list[str], list[int]]] = []
        for name in FILES:
            if name not in missing:
                texts, labels, wrong = read_articles(folder / name, len(self.class_names), self.text_fields)
                found.append((texts, labels))
                problems += wrong
        if problems:
            return None, problems
        (train, train_labels), (test, test_labels) = found
        as_array = [np.array(labels, dtype=np.int64) for labels in (train_labels, test_labels)]
        return SourceTexts(train, as_array[0], test, as_array[1], self.class_names), []


def read_articles(path: Path, num_classes: int, text_fields: int) -> tuple[list[str], list[int], list[str]]:
    """(texts, labels from 0, problems): each problem names the file and the line; all lines are looked at.

    Args:
        path: the CSV file's path.
        num_classes: class indices go from 1 to this.
        text_fields: the number of fields of each line; they are joined by a blank.
    """
    texts: list[str] = []
    labels: list[int] = []
    problems: list[str] = []
    try:
        for line, fields in _rows(path):
            problem = _problem(fields, num_classes, text_fields)
            if problem:
                problems.append(f"{path.name}, line {line}: {problem}")
            else:
                labels.append(int(fields[0]) - 1)
                texts.append(" ".join(fields[1:]))
    except _UnreadableError as error:
        problems.append(f"{path.name}, line {error}")
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror or error}")
    if not texts and not problems:
        problems = [f"{path.name} is empty"]
    further = len(problems) - MOST_PROBLEMS
    listed = problems[:MOST_PROBLEMS] + ([f"{path.name}: {further} more such lines"] if further > 0 else [])
    return texts, labels, listed


class _UnreadableError(Exception):
    """Nothing after this line can be read."""


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of each article."""
    previous = csv.field_size_limit(MOST_LETTERS)
    try:
        reader = csv.reader(_decoded(utf8_lines(path)), strict=True)
        start = 1
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise _UnreadableError(
                    f"{start}: not CSV ({error}): fields stand between commas, text in double quotes, a double quote "
                    "in it is written twice"
                ) from None
            if not _is_header(start, fields):
                yield start, fields
            start = reader.line_num + 1
    finally:
        csv.field_size_limit(previous)


def _is_header(line: int, fields: list[str]) -> bool:
    """Whether line 1 names the columns, as copies of these datasets have it (`Class Index,Title,Description`)."""
    return line == 1 and bool(fields) and fields[0].strip().lower().replace("_", " ") in HEADERS


def _decoded(lines: Iterator[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise _UnreadableError(f"{number}: byte {error.start + 1} of the line is not UTF-8") from None


def _problem(fields: list[str], num_classes: int, text_fields: int) -> str | None:
    if len(fields) == 1 and fields[0].count("\t") == text_fields:
        return "fields stand between tabs: write commas, and text in double quotes"
    if len(fields) != text_fields + 1:
        expected = f"the class index and {text_fields} of text" if text_fields > 1 else "the class index and the text"
        return f"{len(fields)} fields, expected {text_fields + 1} ({expected})"
    if not (fields[0].isascii() and fields[0].isdigit() and 1 <= int(fields[0]) <= num_classes):
        return f"class index {fields[0]!r}, expected 1 to {num_classes}"
    if not any(field.strip() for field in fields[1:]):
        return "no text"
    return None
