"""Published numbers as data: the result tables of the papers whose methods ltexp composes.

One YAML file a paper, laid out as the paper prints it: a table has `columns` (dataset, ratio, imbalance, backbone,
split) and `rows` (method, variant, epochs) with a value for each column; null is a printed dash or a lost number.
Numbers stand as printed, also where a note calls them suspect.

- `metric`: top1_accuracy, or top1_error.
- `own`: true for the paper's own method, its ablations and baselines it says it ran; false if quoted; null if not said.
- `variant`: a row of an ablation; parts are joined by `+`. `variants` beside the rows says what each composes to:
  config overrides (`method=` takes the place of the row's method), or in words why it cannot be composed.
- `baselines`: what rows are trained with beside their methods' own settings, such as the paper's: `overrides` for the
  `methods`, in the `tables` and on the `datasets` listed (all, where none are). Rows with `own: false` are quoted and
  take none. The value FILE stands for a file that the cell needs and you give, `backbone.vectors=FILE`.
- `as`: of a row whose method id names no method of its own, or not all that its numbers stand for: what trains it, a
  method and further overrides, such as `lws stage1.epochs=200`; a list with one for each column where they differ.
- `differences`: why what is composed is not what `settings` print, see `Difference`.
- `notes` of a row: by the number of the column, from 0. `notes` of a paper: misprints and contradictions.
- `settings`: what the paper prints of hyper-parameters, one record for each place that prints them.

A cell's name is PAPER/TABLE/ROW/DATASET[/RATIO][/step][/BACKBONE][/SPLIT], such as `mislas/3/mislas/cifar100_lt/100`.
ROW is METHOD[:VARIANT][@EPOCHS]; the epochs and the backbone are named where the table has several, the split unless it
is all classes.
"""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ltexp.errors import ConfigError
from ltexp.names import unknown_name

_FOLDER = Path(__file__).parent
_PUBLISHED_ONLY = _FOLDER / "published_only" / "cells.yaml"
Rule = list[str] | str  # overrides of `ltexp train`, or why there are none
SPLITS = ("all", "many", "medium", "few")


@dataclass(frozen=True)
class Cell:
    """One published number and what it was measured on.

    Attributes:
        paper: id of the paper.
        table: number of the table, as text.
        method: a method id; a file of conf/method/ where ltexp has the method.
        variant: the row of an ablation; None for the method as its id says.
        epochs: where the row prints them.
        dataset: a file of conf/dataset/ where ltexp has the dataset.
        imbalance: longtail | step; None for datasets with one fixed training set.
        ratio: largest over smallest class; None as above.
        backbone: a file of conf/backbone/ where ltexp has it.
        split: all | many | medium | few | class_N.
        value: the number as printed.
        metric: top1_accuracy | top1_error.
        own: whether it is of the paper itself, see the module.
        note: on this number.
        trained_as: a method and overrides that the row says to train it by; None: its own method.
        digits: after the decimal point, in its table.
        row: the row's label within its table.
        column: the column's label within its table.
    """

    paper: str
    table: str
    method: str
    variant: str | None
    epochs: int | None
    dataset: str
    imbalance: str | None
    ratio: int | None
    backbone: str
    split: str
    value: float
    metric: str
    own: bool | None
    note: str | None
    trained_as: str | None = None
    digits: int = 1
    row: str = ""
    column: str = ""

    @property
    def name(self) -> str:
        """Such as `mislas/3/mislas/cifar100_lt/100`."""
        return f"{self.paper}/{self.table}/{self.row}/{self.column}"

    @property
    def text(self) -> str:
        """The value as its table prints it."""
        return f"{self.value:.{self.digits}f}"

    @property
    def accuracy(self) -> float:
        """The value as accuracy in percent."""
        return self.value if self.metric == "top1_accuracy" else round(100 - self.value, 6)


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
        paper: id of the paper.
        id: its number.
        caption: what it shows.
        note: on the whole table.
        metric: top1_accuracy | top1_error.
        variants: what each variant of its rows composes to: overrides, or why it cannot; by method where they differ.
        cells: the cells in the order of print.
    """

    paper: str
    id: str
    caption: str
    note: str | None
    metric: str
    variants: dict[str, "Rule | dict[str, Rule]"]
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """Such as `mislas/3`."""
        return f"{self.paper}/{self.id}"


@dataclass(frozen=True)
class Rows:
    """Some cells of a paper: those of the listed methods, tables and datasets; an empty list is no condition."""

    methods: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    def have(self, cell: Cell) -> bool:
        """Whether `cell` is among them."""
        facts = ((self.methods, cell.method), (self.tables, cell.table), (self.datasets, cell.dataset))
        return all(not listed or fact in listed for listed, fact in facts)


@dataclass(frozen=True)
class Baselines(Rows):
    """Rows, and the overrides that train them."""

    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedOnly(Rows):
    """Cells that ltexp has no training for, and does not mean to have: see published_only/cells.yaml.

    Attributes:
        why: the reason, in a line.
    """

    why: str = ""


@dataclass(frozen=True)
class Difference(Rows):
    """Rows whose composition is not what their paper prints, on purpose.

    Attributes:
        keys: of the paper's `settings`, such as `batch_size`.
        why: the reason, for people.
    """

    keys: tuple[str, ...] = ()
    why: str = ""

    @property
    def text(self) -> str:
        """In a line: which keys of which rows, and why."""
        where = "; ".join(", ".join(listed) for listed in (self.methods, self.tables, self.datasets) if listed)
        return f"{', '.join(self.keys)} ({where or 'all rows'}): {self.why}"


@dataclass(frozen=True)
class Paper:
    """A paper, its tables by number, and what is noted about its numbers."""

    id: str
    title: str
    year: int
    venue: str
    source: str
    notes: tuple[str, ...]
    settings: tuple[dict[str, Any], ...]
    tables: dict[str, Table]
    baselines: tuple[Baselines, ...]
    differences: tuple[Difference, ...]

    @property
    def cells(self) -> list[Cell]:
        """The cells of all tables."""
        return [cell for table in self.tables.values() for cell in table.cells]

    def overrides_of(self, cell: Cell) -> list[str]:
        """The overrides that train `cell`'s method as this paper trains its baselines; none for what it quotes."""
        if cell.own is False:
            return []
        return [text for rows in self.baselines if rows.have(cell) for text in rows.overrides]


@cache
def load_papers() -> dict[str, Paper]:
    """All papers by id."""
    return {path.stem: _paper(path) for path in sorted(_FOLDER.glob("*.yaml"))}


@cache
def published_only() -> tuple[PublishedOnly, ...]:
    """The cells, of any paper, that stay published figures."""
    content = yaml.safe_load(_PUBLISHED_ONLY.read_text(encoding="utf-8"))
    return tuple(PublishedOnly(**_tuples(node)) for node in content)


def all_cells() -> list[Cell]:
    """Every published cell, paper by paper."""
    return [cell for paper in load_papers().values() for cell in paper.cells]


def find_paper(name: str) -> Paper:
    """The paper with the id `name`.

    Raises:
        ConfigError: for an unknown one, with the nearest.
    """
    papers = load_papers()
    if name not in papers:
        raise ConfigError(unknown_name("paper", name, papers))
    return papers[name]


def find_table(name: str) -> Table:
    """The table `PAPER/NUMBER`.

    Raises:
        ConfigError: for an unknown one, with the nearest.
    """
    paper, separator, number = name.partition("/")
    tables = find_paper(paper).tables
    if not separator or number not in tables:
        raise ConfigError(unknown_name("table", name, [f"{paper}/{known}" for known in tables]))
    return tables[number]


def match_cells(cells: list[Cell], pattern: str) -> list[Cell]:
    """The cell that `pattern` names, in full or without PAPER/TABLE; else those that it begins or fits as a glob.

    Raises:
        ConfigError: if there is none, with the nearest name.
    """
    names = [(cell, (cell.name, f"{cell.row}/{cell.column}")) for cell in cells]
    found = [cell for cell, known in names if pattern in known]
    found = found or [cell for cell, known in names if any(_matches(name, pattern) for name in known)]
    if not found:
        whole = pattern.split("/")[0] in load_papers()
        known = [cell.name if whole else f"{cell.row}/{cell.column}" for cell in cells]
        raise ConfigError(unknown_name("cell", pattern, known))
    return found


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern.rstrip("/") + "/") or fnmatchcase(name, pattern)


def _paper(path: Path) -> Paper:
    try:
        # PyYAML's compiled reader takes a tenth of the time, where there is one
        content = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        tables = {number: _table(content, number, node) for number, node in content["tables"].items()}
        facts: dict[str, Any] = {key: content[key] for key in ("title", "year", "venue", "source")}
        facts |= {key: tuple(content[key]) for key in ("notes", "settings")}
        facts["baselines"] = tuple(Baselines(**_tuples(node)) for node in content.get("baselines", ()))
        facts["differences"] = tuple(Difference(**_tuples(node)) for node in content.get("differences", ()))
        return Paper(id=content["paper"], tables=tables, **facts)
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged: {' '.join(str(error).split())}") from None


def _tuples(node: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in node.items()}


def _table(paper: dict[str, Any], number: str, node: dict[str, Any]) -> Table:
    cells = [cell for row in node["rows"] for cell in _row(paper, number, node["columns"], row)]
    backbones: dict[str, set[str]] = {}
    schedules: dict[tuple[str, str | None], set[int | None]] = {}
    for cell in cells:
        backbones.setdefault(cell.dataset, set()).add(cell.backbone)
        schedules.setdefault((cell.method, cell.variant), set()).add(cell.epochs)
    digits = max(len(f"{cell.value:g}".partition(".")[2]) for cell in cells)
    labelled = (
        replace(
            cell,
            digits=digits,
            row=_row_label(cell, several=len(schedules[cell.method, cell.variant]) > 1),
            column=_column_label(cell, several=len(backbones[cell.dataset]) > 1),
        )
        for cell in cells
    )
    variants = node.get("variants", {})
    return Table(paper["paper"], number, node["caption"], node.get("note"), paper["metric"], variants, tuple(labelled))


def _row(paper: dict[str, Any], number: str, columns: list[dict[str, Any]], row: dict[str, Any]) -> list[Cell]:
    values, own, notes, trained_as = row["values"], row["own"], row.get("notes", {}), row.get("as")
    for what, listed in (("values", values), ("own", own), ("as", trained_as)):
        if isinstance(listed, list) and len(listed) != len(columns):
            raise ValueError(f"table {number}, row {row['method']}: {len(listed)} {what} for {len(columns)} columns")
    return [
        Cell(
            paper=paper["paper"],
            table=number,
            method=row["method"],
            variant=row.get("variant"),
            epochs=row.get("epochs"),
            dataset=column["dataset"],
            imbalance=column.get("imbalance", "longtail") if "ratio" in column else None,
            ratio=column.get("ratio"),
            backbone=column["backbone"],
            split=column.get("split", "all"),
            value=float(value),
            metric=paper["metric"],
            own=own[place] if isinstance(own, list) else own,
            note=notes.get(place),
            trained_as=trained_as[place] if isinstance(trained_as, list) else trained_as,
        )
        for place, (column, value) in enumerate(zip(columns, values, strict=True))
        if value is not None
    ]


def _row_label(cell: Cell, several: bool) -> str:
    variant = f":{cell.variant}" if cell.variant else ""
    return f"{cell.method}{variant}" + (f"@{cell.epochs}" if several else "")


def _column_label(cell: Cell, several: bool) -> str:
    parts = [cell.dataset, str(cell.ratio) if cell.ratio else "", "step" if cell.imbalance == "step" else ""]
    parts += [cell.backbone if several else "", cell.split if cell.split != "all" else ""]
    return "/".join(part for part in parts if part)
