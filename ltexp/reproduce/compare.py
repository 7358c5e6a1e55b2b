"""Published and measured side by side, as a table of `ltexp.report.formats` and as a page."""

from collections.abc import Sequence
from dataclasses import dataclass

from ltexp.papers import Cell, all_cells
from ltexp.report.columns import Cell as Value
from ltexp.report.columns import Column
from ltexp.report.groups import Statistic
from ltexp.report.page import Page, PageColumn, PageRow
from ltexp.report.results import Table
from ltexp.reproduce.jobs import Job, job_of
from ltexp.reproduce.measured import Measured, Outputs

MOST_OTHERS = 3  # experiments of another config that a cell lists one by one


@dataclass(frozen=True)
class Comparison:
    """One line: a published number, and one group of runs or why there is none.

    Attributes:
        cell: the published number.
        measured: the runs; None without any.
        remark: protocol of the runs, or why there are none.
        kind: full | shortened | other | missing | published-only.
    """

    cell: Cell
    measured: Measured | None
    remark: str
    kind: str

    @property
    def value(self) -> Statistic | None:
        """What was measured, in the metric that the paper prints."""
        found = self.measured.accuracy(self.cell.split) if self.measured else None
        if found is None or self.cell.metric == "top1_accuracy":
            return found
        return Statistic(100 - found.mean, found.deviation)

    @property
    def difference(self) -> float | None:
        """Measured less published, in points."""
        return None if self.value is None else self.value.mean - self.cell.value


def compare(cells: Sequence[Cell], outputs: Outputs, missing: bool) -> list[Comparison]:
    """A line for each cell and each way it was measured; `missing`: also for cells that were not."""
    of_some_cell = _claimed(outputs)
    lines: list[Comparison] = []
    for cell in cells:
        job = job_of(cell)
        if isinstance(job, str):
            lines += [Comparison(cell, None, f"published figure only: {job}", "published-only")] if missing else []
            continue
        found = _lines(cell, outputs.of(job), of_some_cell)
        lines += found or ([Comparison(cell, None, "not measured", "missing")] if missing else [])
    return lines


def _claimed(outputs: Outputs) -> set[int]:
    """The runs (by id) that measure some published cell: beside another cell they would only be in the way."""
    jobs = {job for cell in all_cells() if isinstance(job := job_of(cell), Job)}
    groups = (measured for job in jobs for measured in outputs.of(job) if not measured.protocol.other)
    return {id(run) for measured in groups for run in measured.runs}


def _lines(cell: Cell, groups: Sequence[Measured], of_some_cell: set[int]) -> list[Comparison]:
    lines, others = [], []
    for measured in groups:
        if not measured.protocol.other:
            kind = "full" if measured.protocol.full else "shortened"
            lines.append(Comparison(cell, measured, measured.text, kind))
        elif not any(id(run) in of_some_cell for run in measured.runs):
            others.append(Comparison(cell, measured, measured.text, "other"))
    if len(others) > MOST_OTHERS:
        return [*lines, Comparison(cell, None, f"{len(others)} other configs: see ltexp report", "other")]
    return lines + others


def to_table(lines: Sequence[Comparison], full: bool = False) -> Table:
    """For the terminal, Markdown, LaTeX and CSV.

    Args:
        lines: the lines of the comparison.
        full: every column, also those in which all lines agree.
    """
    columns, rows = [], [_row(line) for line in lines]
    usual = {"cell", "method", "dataset", "ratio", "published", "measured", "n", "difference", "protocol"}
    for place, name in enumerate(_COLUMNS):
        if full or name in usual or len({row[place] for row in rows}) > 1:
            columns.append(place)
    sections = [f"{line.cell.paper}/{line.cell.table}" for line in lines]
    names = list(_COLUMNS)
    return Table(
        columns=[Column(names[place], names[place], lambda _: None, names[place] in _NUMERIC) for place in columns],
        rows=[[row[place] for place in columns] for row in rows],
        notes=_notes(lines),
        breaks=frozenset(place for place in range(1, len(lines)) if sections[place] != sections[place - 1]),
    )


_COLUMNS = (
    *("cell", "method", "dataset", "imbalance", "ratio", "backbone", "split", "metric", "own"),
    *("published", "measured", "n", "difference", "protocol"),
)
_OWN = {True: "yes", False: "quoted", None: "not said"}
_NUMERIC = {"ratio", "published", "measured", "n", "difference"}


def _row(line: Comparison) -> list[Value]:
    cell = line.cell
    difference = None if line.difference is None else f"{line.difference:+.2f}"
    return [
        *(f"{cell.paper}/{cell.table}", cell.row, cell.dataset, cell.imbalance),
        *(None if cell.ratio is None else str(cell.ratio), cell.backbone, cell.split, cell.metric, _OWN[cell.own]),
        *(cell.text, line.value, len(line.measured.runs) if line.measured else None, difference),
        line.remark,
    ]


def _notes(lines: Sequence[Comparison]) -> list[str]:
    metrics = {line.cell.metric.replace("top1_", "top-1 ") for line in lines}
    counts = {kind: len({line.cell.name for line in lines if line.kind == kind}) for kind in ("full", "shortened")}
    notes = [f"{' or '.join(sorted(metrics))} on the test split in %; difference: measured less published"]
    notes.append("measured: mean ± sample standard deviation over n seeds of training, on the same images")
    notes.append(
        f"{len({line.cell.name for line in lines})} cells, {counts['full']} measured under the full protocol"
        + (f", {counts['shortened']} under a shortened schedule or on other images" if counts["shortened"] else "")
    )
    return notes


def to_page(lines: Sequence[Comparison], title: str) -> Page:
    """A page with the same lines; every measured number opens its runs."""
    columns = [
        *(PageColumn(name, filter=True) for name in ("table", "method", "dataset")),
        PageColumn("variant"),
        *(PageColumn("ratio", numeric=True, filter=True), PageColumn("imbalance", filter=True)),
        *(PageColumn("backbone", filter=True), PageColumn("split", filter=True), PageColumn("metric", filter=True)),
        PageColumn("own", filter=True),
        PageColumn("published", numeric=True, digits=2),
        PageColumn("measured", numeric=True, digits=2, opens=True),
        PageColumn("n", numeric=True),
        PageColumn("difference", numeric=True, digits=2, signed=True),
        PageColumn("state", filter=True),
        PageColumn("protocol"),
    ]
    return Page(title, _notes(lines), columns, [_page_row(line) for line in lines])


def _page_row(line: Comparison) -> PageRow:
    cell, value = line.cell, line.value
    runs = line.measured.runs if line.measured else ()
    cells = [
        *(f"{cell.paper}/{cell.table}", cell.method, cell.dataset, cell.variant, cell.ratio, cell.imbalance),
        *(cell.backbone, cell.split, cell.metric.removeprefix("top1_"), _OWN[cell.own]),
        *(cell.value, None if value is None else [value.mean, value.deviation], len(runs) or None, line.difference),
        *(line.kind, line.remark),
    ]
    return PageRow(cells, line.kind, runs)
