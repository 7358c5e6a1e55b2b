"""A table for the terminal, and as Markdown, CSV and LaTeX (booktabs)."""

import csv
import io
import re
import sys
from pathlib import Path

from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.table import Table as RichTable
from rich.text import Text

from ltexp.files import write_text
from ltexp.report.columns import Cell, Column
from ltexp.report.groups import Statistic
from ltexp.report.results import Table
from ltexp.report.table import ABSENT

UNLIMITED = 400  # columns of text where no window sets a limit
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a row it would be an option of the row before
    "]": "{]}",
    "–": "--",
    "±": r"$\pm$",
    **{character: "\\" + character for character in "{}#$%&_"},
}


def plain(cell: Cell, column: Column) -> str:
    """A cell as people read it."""
    if isinstance(cell, Statistic):
        return cell.text(column.digits)
    return ABSENT if cell is None else str(cell)


def to_terminal(table: Table) -> RenderableType:
    """For rich's console. Numbers never wrap: when the window is narrow, text does."""
    drawn = RichTable()
    for column in table.columns:
        drawn.add_column(Text(column.title), justify="right" if column.numeric else "left", no_wrap=column.numeric)
    for number, row in enumerate(table.rows):
        cells = [Text(plain(cell, column)) for cell, column in zip(row, table.columns, strict=True)]
        drawn.add_row(*cells, end_section=number + 1 in table.breaks)
    return Lines(drawn, *(Text(note, style="dim") for note in table.notes))


def put_out(text: str, out: Path | None) -> None:
    """Writes `text` to the terminal, or to the file `out`, whose path it prints."""
    if out is None:
        sys.stdout.write(text)
    else:
        write_text(out, text)
        print(out)


def as_text(content: RenderableType) -> str:
    """What rich would show in a window as wide as needed, without colours."""
    console = Console(width=UNLIMITED, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(content)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured table, its notes below."""
    lines = [[escape_markdown(column.title) for column in table.columns]]
    lines.append(["--:" if column.numeric else "---" for column in table.columns])
    for row in table.rows:
        lines.append([escape_markdown(plain(cell, column)) for cell, column in zip(row, table.columns, strict=True)])
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return text + "\n\n" + "\n".join(escape_markdown(note) + "  " for note in table.notes) + "\n"


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


def to_latex(table: Table) -> str:
    """A floating table; needs the package booktabs."""
    spec = "".join("r" if column.numeric else "l" for column in table.columns)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{'. '.join(escape_latex(note[:1].upper() + note[1:]) for note in table.notes)}.}}",
    ]
    lines += [rf"\begin{{tabular}}{{{spec}}}", r"\toprule"]
    lines += [" & ".join(escape_latex(column.title) for column in table.columns) + r" \\", r"\midrule"]
    for number, row in enumerate(table.rows):
        if number in table.breaks:
            lines.append(r"\midrule")
        lines.append(" & ".join(_latex(cell, column) for cell, column in zip(row, table.columns, strict=True)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _latex(cell: Cell, column: Column) -> str:
    if isinstance(cell, Statistic):
        text = cell.text(column.digits, r"\pm")
        return text if cell.deviation is None else f"${text}$"
    return escape_latex(plain(cell, column))


def escape_latex(text: str) -> str:
    """`text` as LaTeX sets it literally."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def escape_markdown(text: str) -> str:
    """`text` as Markdown sets it literally; an underscore inside a word means nothing and stays as it is."""
    text = re.sub(r"([\\`*<>\[\]|~$])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


FORMATS = {"markdown": to_markdown, "csv": to_csv, "latex": to_latex}
ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex"}
