"""What is published: the papers and tables, a table as printed, a cell and what would measure it."""

import string
from collections.abc import Sequence

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table as Grid
from rich.text import Text

from ltexp.papers import Cell, Paper, Table
from ltexp.report.blocks import Blocks
from ltexp.reproduce.jobs import Job, job_of

LETTERS = string.ascii_lowercase  # of footnotes


def list_papers(papers: Sequence[Paper]) -> RenderableType:
    """A line for each table: its cells, how many of them ltexp can run, and how many stay published numbers."""
    grid = Grid(title=None)
    counted = (("cells", True), ("runnable", True), ("published only", True))
    for title, numeric in (("table", False), ("caption", False), *counted):
        grid.add_column(title, justify="right" if numeric else "left", no_wrap=numeric)
    for paper in papers:
        for table in paper.tables.values():
            grid.add_row(table.name, table.caption, *_counts(table.cells))
        title = f"{paper.title} ({paper.venue}, {paper.year})"
        grid.add_row(Text(paper.id, style="bold"), title, *_counts(paper.cells), end_section=True)
    everything = [cell for paper in papers for cell in paper.cells]
    reasons: dict[str, dict[str, int]] = {}  # by reason, the cells of each method
    for cell in everything:
        if isinstance(reason := job_of(cell), str):
            of_reason = reasons.setdefault(reason, {})
            of_reason[cell.method] = of_reason.get(cell.method, 0) + 1
    every, runnable, left = _counts(everything)
    lines = [f"{runnable} of {every} published cells can be run; ltexp reproduce show table=PAPER/NUMBER shows a table"]
    lines += [f"published number only, {left} cells:"] if reasons else []
    for reason, methods in reasons.items():
        lines.append(f"  {', '.join(f'{method} ({count})' for method, count in methods.items())}: {reason}")
    return Lines(grid, *(Text(line, style="dim") for line in lines))


def _counts(cells: Sequence[Cell]) -> list[str]:
    """How many there are, how many can be run, and how many not."""
    runnable = sum(isinstance(job_of(cell), Job) for cell in cells)
    return [str(len(cells)), str(runnable), str(len(cells) - runnable)]


def show_table(table: Table, cells: Sequence[Cell]) -> RenderableType:
    """The rows and columns of `cells` as the paper prints them; what stays a published number is dim."""
    columns = list(dict.fromkeys(cell.column for cell in cells))
    rows = list(dict.fromkeys(cell.row for cell in cells))
    at = {(cell.row, cell.column): cell for cell in cells}
    grid = Blocks(f"{table.name}: {table.caption}", -1 if table.metric == "top1_error" else 1)
    for column in columns:
        grid.add_column(column.replace("/", "\n"))
    marks: dict[str, list[Cell]] = {}  # each note and the cells that it is about
    for row in rows:
        grid.add_row(row, *(_printed(at.get((row, column)), marks) for column in columns))
    metric = {"top1_accuracy": "top-1 accuracy in %", "top1_error": "top-1 error in %"}[table.metric]
    notes = [f"{metric}, as printed; dim: published number only", *([table.note] if table.note else [])]
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if isinstance(reason := job_of(cell), str) and cell.row not in (of_reason := reasons.setdefault(reason, [])):
            of_reason.append(cell.row)
    notes += [f"published number only, {', '.join(of_reason)}: {reason}" for reason, of_reason in reasons.items()]
    notes += [
        f"{LETTERS[place]} {', '.join(f'{cell.row}/{cell.column}' for cell in about)}: {note}"
        for place, (note, about) in enumerate(marks.items())
    ]
    return Lines(grid, *(Text(note, style="dim") for note in notes))


def _printed(cell: Cell | None, marks: dict[str, list[Cell]]) -> Text:
    if cell is None:
        return Text("–", style="dim")
    letter = ""
    if cell.note:
        marks.setdefault(cell.note, []).append(cell)
        letter = LETTERS[list(marks).index(cell.note)]
    return Text(cell.text + letter, style="" if isinstance(job_of(cell), Job) else "dim")


def show_cell(cell: Cell) -> RenderableType:
    """One cell: its number, and what measures it or why nothing does."""
    job = job_of(cell)
    error = f" (accuracy {cell.accuracy:g})" if cell.metric == "top1_error" else ""
    own = {True: "the paper's own run", False: "quoted by the paper", None: "own run or quoted: not said"}[cell.own]
    lines = [f"{cell.name}: {cell.metric} {cell.text}{error}, {own}"]
    lines += [f"  note: {cell.note}"] if cell.note else []
    lines += [f"  trained as {cell.trained_as}"] if cell.trained_as else []
    if isinstance(job, Job) and job.files:
        lines.append(f"  needs FILE: {' '.join(job.files)}")
    lines.append(f"  {job.command([0])}" if isinstance(job, Job) else f"  published number only: {job}")
    return Text("\n".join(lines))


def show_paper(paper: Paper) -> RenderableType:
    """A paper's tables, its printed settings, and what is noted about its numbers."""
    settings = [" ".join(f"{key}={value}" for key, value in record.items()) for record in paper.settings]
    lines = ["settings, as printed:", *(f"  {text}" for text in settings)]
    lines += ["misprints, contradictions, and what was decided:", *(f"  - {note}" for note in paper.notes)]
    lines += ["composed otherwise than printed, and why:", *(f"  - {known.text}" for known in paper.differences)]
    return Lines(list_papers([paper]), Text("\n".join(lines)))
