"""What a paper's tables consist of: cells with a printed number each, and what is noted of some rows."""

from dataclasses import dataclass
from typing import Any

Rule = list[str] | str  # overrides of `ltexp train`, or why there are none


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
