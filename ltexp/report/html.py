"""A table of runs with their figures as one page that works offline."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ltexp.errors import LtexpError
from ltexp.report.columns import Cell
from ltexp.report.drawing import MARKERS
from ltexp.report.figures import draw, summary
from ltexp.report.groups import Group, Statistic
from ltexp.report.page import Page, PageColumn, PageRow
from ltexp.report.records import Run
from ltexp.report.results import Table
from ltexp.report.swept import number, swept_values

MOST_SIDE_BY_SIDE = 4  # experiments of which the page shows a panel each
_MENU = range(2, 31)  # so many different texts in a column are worth a menu


def runs_page(groups: Sequence[Group], table: Table, place: Path) -> str:
    """The page, with the figures that suit the runs.

    Args:
        groups: the groups of the table's rows, in their order; with rows by stage, each group has several.
        table: a table that `ltexp.report.results` has made.
        place: the folder that the page will lie in.
    """
    by_stage = len(table.rows) != len(groups)
    of_row = [group for group in groups for _ in (group.record["stages"] if by_stage else [None])]
    columns = [
        PageColumn(
            column.title,
            numeric=column.numeric,
            digits=column.digits if any(isinstance(row[position], Statistic) for row in table.rows) else None,
            filter=not column.numeric and len({str(row[position]) for row in table.rows}) in _MENU,
            opens=column.name == "all",
        )
        for position, column in enumerate(table.columns)
    ]
    pairs = zip(table.rows, of_row, strict=True)
    rows = [PageRow([_value(cell) for cell in row], runs=group.runs) for row, group in pairs]
    with tempfile.TemporaryDirectory() as folder:
        figures = list(_drawn(groups, Path(folder)))
        return Page("ltexp: runs", list(table.notes), columns, rows, figures).to_html(place)


def _value(cell: Cell) -> Any:
    """Numbers as numbers, so that they sort as such."""
    if isinstance(cell, Statistic):
        return [cell.mean, cell.deviation]
    return number(cell) if isinstance(cell, str) and number(cell) is not None else cell


def _drawn(groups: Sequence[Group], folder: Path) -> Iterator[tuple[str, Path]]:
    """(caption, PNG) of each figure that can be drawn of these runs."""
    everything = [run for group in groups for run in group.runs]
    chosen: list[tuple[str, list[Run]]] = []
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
