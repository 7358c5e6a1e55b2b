"""Published and measured side by side, as a table of `ltexp.report.formats` and as a page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ltexp.papers import Cell, all_cells
from ltexp.report.columns import Cell as Value
from ltexp.report.columns import Column
from ltexp.report.groups import Statistic
from ltexp.report.page import Page, PageColumn, PageRow
from ltexp.report.results import Table, best_cells
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
    def error(self) -> bool:
        """Whether the paper prints an error, of which less is better."""
        return self.cell.metric == "top1_error"

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
            lines += [Comparison(cell, None, f"published number only: {job}", "published-only")] if missing else []
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
    rows = [_row(line, full) for line in lines]
    usual = {"method", "published", "measured", "difference"}
    shown = [
        place for place, name in enumerate(_COLUMNS) if full or name in usual or len({row[place] for row in rows}) > 1
    ]
    sections = [f"{line.cell.paper}/{line.cell.table}" for line in lines]
    columns = [_column(_COLUMNS[place]) for place in shown]
    cells = [[row[place] for place in shown] for row in rows]
    alike = [(of, line.cell.column, line.cell.metric, line.kind) for of, line in zip(sections, lines, strict=True)]
    return Table(
        columns=columns,
        rows=cells,
        notes=_notes(lines),
        breaks=frozenset(place for place in range(1, len(lines)) if sections[place] != sections[place - 1]),
        title="" if full else _title(rows, shown),
        best=_best(cells, columns, alike, lines),
        dim=frozenset(place for place, line in enumerate(lines) if line.kind not in KINDS),
    )


def _column(name: str) -> Column:
    better = 1 if name == "measured" else 0
    return Column(name, name, lambda _: None, name in _NUMERIC, better=better, free=name == "protocol")


def _best(
    cells: Sequence[Sequence[Value]], columns: Sequence[Column], alike: Sequence[object], lines: Sequence[Comparison]
) -> frozenset[tuple[int, int]]:
    """(line, column) of the best figures among the `alike`, which are all accuracies or all errors."""
    turned = [replace(column, better=-column.better) for column in columns]
    most, least = (best_cells(cells, chosen, alike) for chosen in (columns, turned))
    return frozenset(place for place in most | least if place in (least if lines[place[0]].error else most))


_USUAL = (
    "",
    "longtail",
    "given",
    "accuracy on all",
    "top1_accuracy",
    "top1_error",
)  # which the notes say, or none need


def _title(rows: Sequence[Sequence[Value]], shown: Sequence[int]) -> str:
    """What all lines share and no column shows."""
    said = [place for place in range(len(_COLUMNS)) if place not in shown and rows[0][place] is not None]
    words = {"ratio": "ratio {}", "split": "accuracy on {}", "own": "own run: {}", "n": "{} seeds"}
    texts = [words.get(_COLUMNS[place], "{}").format(rows[0][place]) for place in said]
    return ", ".join(text for text in texts if text not in _USUAL)


def sort_lines(lines: Sequence[Comparison], sort: str) -> list[Comparison]:
    """By one of `SORTS`: a figure, the largest first (of errors the smallest), or a name; lines without it last.

    Tables stay together, and `-name` turns the order.
    """
    name = sort.removeprefix("-")
    tables = list(dict.fromkeys((line.cell.paper, line.cell.table) for line in lines))

    def key(line: Comparison) -> tuple[bool, float, str]:
        found = {
            "published": line.cell.value,
            "measured": line.value and line.value.mean,
            "difference": line.difference,
        }
        if name not in found:
            return False, 0.0, str(getattr(line.cell, name))
        value = found[name]
        return value is None, (value or 0.0) * (1 if line.cell.metric == "top1_error" else -1), ""

    ordered = sorted(lines, key=key, reverse=sort.startswith("-"))
    ordered.sort(key=lambda line: name in ("measured", "difference") and line.value is None)
    return sorted(ordered, key=lambda line: tables.index((line.cell.paper, line.cell.table)))


KINDS = ("full", "shortened", "other", "missing")  # the others are of cells that cannot be run
SORTS = ("published", "measured", "difference", "method", "dataset")


_COLUMNS = (
    *("cell", "method", "dataset", "imbalance", "ratio", "backbone", "split", "metric", "own"),
    *("published", "measured", "n", "difference", "protocol"),
)
_OWN = {True: "yes", False: "quoted", None: "not said"}
_NUMERIC = {"ratio", "published", "measured", "n", "difference"}


def _row(line: Comparison, full: bool) -> list[Value]:
    cell = line.cell
    difference = None if line.difference is None else f"{line.difference:+.2f}"
    remark = line.remark
    if not full:  # a dash says the one, and the caption the other
        remark = "" if line.kind == "missing" else remark.removeprefix("last epoch").removeprefix(", ")
    return [
        *(f"{cell.paper}/{cell.table}", cell.row, cell.dataset, cell.imbalance),
        *(None if cell.ratio is None else str(cell.ratio), cell.backbone, cell.split, cell.metric, _OWN[cell.own]),
        *(cell.text, line.value, len(line.measured.runs) if line.measured else None, difference),
        remark,
    ]


def _notes(lines: Sequence[Comparison]) -> list[str]:
    metrics = {line.cell.metric.replace("top1_", "top-1 ") for line in lines}
    kinds = ("full", "shortened", "published-only")
    counts = {kind: len({line.cell.name for line in lines if line.kind == kind}) for kind in kinds}
    notes = [f"{' or '.join(sorted(metrics))} on the test split in %; difference: measured less published"]
    notes.append(
        "measured: at the last epoch if nothing else is said, mean ± sample standard deviation over n seeds of"
    )
    notes[-1] += " training, on the same images; –: not measured"
    notes.append(
        f"{len({line.cell.name for line in lines})} cells, {counts['full']} measured under the full protocol"
        + (f", {counts['shortened']} under a shortened schedule or on other images" if counts["shortened"] else "")
        + (f", {counts['published-only']} published numbers only" if counts["published-only"] else "")
    )
    return notes


def to_page(lines: Sequence[Comparison], title: str) -> Page:
    """A page with the same lines; every measured number opens its runs."""
    columns = [  # what is compared first, for narrow windows
        PageColumn("method", filter=True),
        PageColumn("published", numeric=True, digits=2, better=1, mirror=100),
        PageColumn("measured", numeric=True, digits=2, opens=True, better=1, mirror=100),
        PageColumn("difference", numeric=True, digits=2, signed=True, better=1, mirror=0),
        PageColumn("n", numeric=True),
        *(PageColumn("table", filter=True), PageColumn("dataset", filter=True), PageColumn("variant")),
        *(PageColumn("ratio", numeric=True, filter=True), PageColumn("imbalance", filter=True)),
        *(PageColumn("backbone", filter=True), PageColumn("split", filter=True), PageColumn("metric", filter=True)),
        *(PageColumn("own", filter=True), PageColumn("state", filter=True), PageColumn("protocol")),
    ]
    tops = _best_of_columns(lines)
    return Page(title, _notes(lines), columns, [_page_row(line, tops) for line in lines])


def _best_of_columns(lines: Sequence[Comparison]) -> set[int]:
    """The lines (by id) whose measured figure is the best of its table's column, among those made alike."""
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    for line in lines:
        if line.value is not None:
            cell = line.cell
            groups.setdefault((cell.paper, cell.table, cell.column, line.kind), []).append(line)
    found = set()
    for alike in groups.values():
        accuracies = {id(line): -line.value.mean if line.error else line.value.mean for line in alike if line.value}
        found |= {name for name, value in accuracies.items() if len(alike) > 1 and value == max(accuracies.values())}
    return found


def _page_row(line: Comparison, tops: set[int]) -> PageRow:
    cell, value = line.cell, line.value
    runs = line.measured.runs if line.measured else ()
    table = f"{cell.paper}/{cell.table}"
    cells = [
        *(cell.method, cell.value, None if value is None else [value.mean, value.deviation], line.difference),
        *(len(runs) or None, table, cell.dataset, cell.variant, cell.ratio, cell.imbalance),
        *(cell.backbone, cell.split, cell.metric.removeprefix("top1_"), _OWN[cell.own], line.kind, line.remark),
    ]
    detail = [cell.variant, cell.dataset, "" if cell.ratio is None else f"{cell.ratio:g}", cell.backbone, table]
    return PageRow(
        cells,
        line.kind,
        runs,
        detail=" ".join(part for part in (*detail, "" if cell.split == "all" else cell.split) if part),
        best=[2] if id(line) in tops else [],
        error=line.error,
    )
