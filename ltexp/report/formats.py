"""A table as text, Markdown and CSV; LaTeX has a module of its own."""

import csv
import io
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console, RenderableType

from ltexp.errors import ConfigError
from ltexp.files import is_file_to_be, write_text
from ltexp.report.columns import Cell, plain
from ltexp.report.groups import Statistic
from ltexp.report.latex import to_latex
from ltexp.report.results import Table
from ltexp.report.table import ABSENT
from ltexp.report.terminal import Grid
from ltexp.report.text import one_line

UNLIMITED = 400  # columns of text where no window sets a limit


def put_out(text: str, out: Path | None) -> None:
    """Writes `text` to the terminal, or to `out`; the path of a file is printed."""
    if out is None:
        sys.stdout.write(text)
    else:
        write_text(out, text)
        if is_file_to_be(out):  # a pipe gets the text alone
            print(out)


def as_text(content: RenderableType) -> str:
    """What rich would show in a window as wide as needed, without colours."""
    console = Console(width=UNLIMITED, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(content)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def to_text(table: Table) -> str:
    """As in a terminal as wide as needed."""
    return as_text(Grid(table))


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured table, its notes below."""
    lines = [[escape_markdown(column.title) for column in table.columns]]
    lines.append(["--:" if column.numeric else "---" for column in table.columns])
    for number, row in enumerate(table.rows):
        cells = [escape_markdown(plain(cell, column)) for cell, column in zip(row, table.columns, strict=True)]
        lines.append([f"**{text}**" if (number, place) in table.best else text for place, text in enumerate(cells)])
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = [note for note in (table.title, *table.notes) if note]
    return text + "\n\n" + "\n".join(escape_markdown(note) + "  " for note in notes) + "\n"


def to_csv(table: Table) -> str:
    """Full precision; a mean over several seeds brings a column `<name>_std`, nothing at all an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    spread = [any(isinstance(row[place], Statistic) for row in table.rows) for place in range(len(table.columns))]
    header: list[str] = []
    for column, has_deviation in zip(table.columns, spread, strict=True):
        header += [column.name, f"{column.name}_std"] if has_deviation else [column.name]
    writer.writerow(header)
    for row in table.rows:
        cells: list[str] = []
        for cell, has_deviation in zip(row, spread, strict=True):
            cells += _exact(cell) if has_deviation else _exact(cell)[:1]
        writer.writerow(cells)
    return text.getvalue()


def _exact(cell: Cell) -> list[str]:
    if isinstance(cell, Statistic):
        return [repr(cell.mean), "" if cell.deviation is None else repr(cell.deviation)]
    return ["" if cell in (None, ABSENT) else str(cell), ""]


def escape_markdown(text: str) -> str:
    """`text` as Markdown sets it literally; an underscore inside a word means nothing and stays as it is."""
    text = re.sub(r"([\\`*<>\[\]|~$]|&(?=[#\w]+;))", r"\\\1", one_line(text))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


FORMATS = {"terminal": to_text, "markdown": to_markdown, "csv": to_csv, "latex": to_latex}
ENDINGS = {".txt": "terminal", ".md": "markdown", ".csv": "csv", ".tex": "latex", ".html": "html"}


def format_of(options: Mapping[str, str]) -> str:
    """The format that `format=` names, or else the ending of `out=`; without both, `terminal`.

    Raises:
        ConfigError: for another ending of a file, where no format is named.
    """
    if "format" in options or "out" not in options:
        return options.get("format", "terminal")
    out = Path(options["out"])
    found = ENDINGS.get(out.suffix.lower())
    if found is None and not is_file_to_be(out):
        return "terminal"  # a pipe or a stream has no ending to go by
    if found is None:
        known = ", ".join(ENDINGS)
        raise ConfigError(f"a table's file ends in {known}, not {out.suffix or out.name!r}: out={out}; or name format=")
    return found
