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

from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import yaml

from ltexp.errors import ConfigError
from ltexp.names import unknown_name
from ltexp.papers.parts import Cell, Paper, PublishedOnly, Table
from ltexp.papers.reading import read_paper, tuples

__all__ = [
    "Cell",
    "Paper",
    "Table",
    "all_cells",
    "find_paper",
    "find_table",
    "load_papers",
    "match_cells",
    "published_only",
]

_FOLDER = Path(__file__).parent
_PUBLISHED_ONLY = _FOLDER / "published_only" / "cells.yaml"


@cache
def load_papers() -> dict[str, Paper]:
    """All papers by id."""
    return {path.stem: read_paper(path) for path in sorted(_FOLDER.glob("*.yaml"))}


@cache
def published_only() -> tuple[PublishedOnly, ...]:
    """The cells, of any paper, that stay published numbers."""
    content = yaml.safe_load(_PUBLISHED_ONLY.read_text(encoding="utf-8"))
    return tuple(PublishedOnly(**tuples(node)) for node in content)


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
