"""A table of runs with their figures as one page that works offline."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ltexp.errors import LtexpError
from ltexp.report.columns import Cell, Column
from ltexp.report.drawing import MARKERS
from ltexp.report.figures import draw, summary
from ltexp.report.groups import Group, Statistic
from ltexp.report.page import Page, PageColumn, PageRow
from ltexp.report.records import Run
from ltexp.report.results import Table
from ltexp.report.swept import number, swept_values

MOST_SIDE_BY_SIDE = 4  # experiments of which the page shows a panel each
_MENU = range(2, 31)  # so many different texts in a column are worth a menu


def write_runs_page(groups: Sequence[Group], table: Table, out: Path) -> None:
    """Writes the page, with the figures that suit the runs, and beside it what it links to.

    Args:
        groups: the groups of the table.
        table: a table that `ltexp.report.results` has made.
        out: the page's file.

    Raises:
        LtexpError: if it cannot be written.
    """
    columns = [
        PageColumn(
            column.title,
            numeric=column.numeric,
            digits=column.digits if any(isinstance(row[position], Statistic) for row in table.rows) else None,
            filter=not column.numeric and len({str(row[position]) for row in table.rows}) in _MENU,
            opens=column.name == "all",
            better=column.better,
        )
        for position, column in enumerate(table.columns)
    ]
    best = [[place for line, place in table.best if line == number] for number in range(len(table.rows))]
    rows = [
        PageRow(list(map(_value, row, table.columns)), runs=runs, best=places)
        for row, runs, places in zip(table.rows, table.runs, best, strict=True)
    ]
    title = f"ltexp: {table.title}" if table.title else "ltexp: runs"
    with tempfile.TemporaryDirectory() as folder:
        figures = list(_drawn(groups, Path(folder)))
        Page(title, list(table.notes), columns, rows, figures).write(out)


def _value(cell: Cell, column: Column) -> Any:
    """Numbers of a numeric column as numbers, so that they sort as such; a hash of digits stays text."""
    if isinstance(cell, Statistic):
        return [cell.mean, cell.deviation]
    value = number(cell) if column.numeric and isinstance(cell, str) else None
    return cell if value is None or not math.isfinite(value) else value


def _drawn(groups: Sequence[Group], folder: Path) -> Iterator[tuple[str, Path]]:
    """(caption, PNG) of each figure that can be drawn of these runs."""
    everything = [run for group in groups for run in group.runs]
    chosen: list[tuple[str, list[Run]]] = [("shots", everything)] if len(groups) > 1 else []
    if swept_values(groups):
        chosen.append(("sweep", everything))
    if len(groups) <= len(MARKERS):
        chosen += [("accuracy_by_class", everything), ("curves", everything)]
    if len(groups) <= MOST_SIDE_BY_SIDE:
        chosen += [(kind, [group.runs[0] for group in groups]) for kind in ("reliability", "confusion")]
    for kind, runs in chosen:
        path = folder / f"{kind}.png"
        try:
            draw(kind, runs, path)
        except LtexpError:
            continue  # a record kept without what this figure needs, or too many keys for one sheet
        yield summary(kind), path
