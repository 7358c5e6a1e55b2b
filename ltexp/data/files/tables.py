"""Tables of images as ISIC and Kaggle ship them: a CSV file with a row for each image below the columns' names."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ltexp.data.files.lists import Problems, path_problem, plain_path, shown
from ltexp.data.files.split import ROWS
from ltexp.text_files import utf8_lines

SEPARATORS = (",", ";", "\t", "|")


class TableForm(NamedTuple):
    """What is read of a table.

    Attributes:
        path: the column of the images' names.
        label: the column of their classes, or a column of marks for each class.
        separator: of its fields.
        folder: that goes before each name, "" for none.
        ending: that goes behind each name, "" for none.
    """

    path: str
    label: str | Sequence[str]
    separator: str
    folder: str
    ending: str

    @property
    def columns(self) -> tuple[str, ...]:
        """All that are read, that of the names first."""
        return (self.path, self.label) if isinstance(self.label, str) else (self.path, *self.label)


class Table(NamedTuple):
    """A table that was read.

    Attributes:
        name: its file's name.
        paths: of the images, below the dataset's folder.
        classes: of each image, as written, or the name of the column that marks it.
    """

    name: str
    paths: list[str]
    classes: list[str]


def read_table(path: Path, form: TableForm) -> tuple[Table | None, list[str]]:
    """(the table, what is wrong with its rows); no table if anything is.

    Rows are counted as a spreadsheet counts them: the names of the columns are row 1. Blank ones may stand at the end.
    """
    table, complaints = Table(path.name, [], []), Problems(path.name, ROWS.word)
    try:
        rows = csv.reader(_text_lines(path), delimiter=form.separator)
        header = [name.strip() for name in next(rows, [])]
        if problems := _header_problems(path.name, header, form):
            return None, problems
        places = [header.index(column) for column in form.columns]
        blank = 0
        for number, row in enumerate(rows, start=ROWS.first):
            if not any(field.strip() for field in row):
                blank = blank or number
                continue
            if blank:
                complaints.add("nothing in them", blank, "it is blank")
                blank = 0
            if len(row) != len(header):
                text = f"{len(row)} fields, and {len(header)} columns have a name"
                complaints.add("another number of fields", number, text)
                continue
            _add(table, complaints, number, [row[place].strip() for place in places], form)
    except OSError as error:
        return None, [f"{path}: {error.strerror or error}"]
    except (csv.Error, UnicodeDecodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        return None, [f"{path.name}: not a table of text ({reason}): save it as CSV in UTF-8"]
    problems = complaints.texts()
    if not table.paths and not problems:
        problems = [f"{path.name} names no image"]
    return (None, problems) if problems else (table, [])


def _text_lines(path: Path) -> Iterator[str]:
    for line in utf8_lines(path):
        yield line.decode()


def _header_problems(name: str, header: list[str], form: TableForm) -> list[str]:
    absent = [column for column in form.columns if column not in header]
    if absent:
        guess = next((s for s in SEPARATORS if len(header) == 1 and s != form.separator and s in header[0]), None)
        hint = f"; fields seem to be separated by {guess!r}, see dataset.source.separator" if guess else ""
        listed = ", ".join(header[:10]) + (f" and {len(header) - 10} more" if len(header) > 10 else "")
        key = "path" if form.path in absent else "label"
        return [f"{name} has no column {absent[0]!r} (dataset.source.{key}) but {listed or 'none'}{hint}"]
    twice = [column for column in form.columns if header.count(column) > 1]
    return [f"{name}: two columns are called {twice[0]!r}"] if twice else []


def _add(table: Table, complaints: Problems, number: int, fields: list[str], form: TableForm) -> None:
    """Takes up a row, or says what is wrong with it."""
    name, *labels = fields
    folder = f"{form.folder}/" if form.folder else ""
    path = plain_path(f"{folder}{name}{form.ending}".encode(), b"")
    if not name:
        complaints.add("no image", number, f"nothing in column {form.path!r}")
    elif problem := path_problem(path):
        complaints.add(problem[0], number, problem[1])
    elif isinstance(form.label, str) and not labels[0]:
        complaints.add("no class", number, f"nothing in column {form.label!r}")
    else:
        found = labels[0] if isinstance(form.label, str) else _marked(labels, form.label)
        if found is None:
            marks = shown(", ".join(labels).encode())
            complaints.add(
                "no single mark", number, f"expected 1 in one of the columns of classes, 0 elsewhere: {marks}"
            )
        else:
            table.paths.append(path.decode())
            table.classes.append(found)


def _marked(fields: Sequence[str], columns: Sequence[str]) -> str | None:
    """The one column that holds 1 where all others hold 0; None if there is none."""
    try:
        marks = [float(field or 0) for field in fields]
    except ValueError:
        return None
    return columns[marks.index(1.0)] if sorted(marks) == [0.0] * (len(marks) - 1) + [1.0] else None
