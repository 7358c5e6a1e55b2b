"""Which cells a command line is about."""

from collections.abc import Callable, Mapping, Sequence

from ltexp.errors import ConfigError
from ltexp.names import unknown_name
from ltexp.papers import Cell, all_cells, find_paper, find_table, match_cells

_VALUES: dict[str, Callable[[Cell], str]] = {
    "method": lambda cell: cell.method,
    "dataset": lambda cell: cell.dataset,
    "imbalance": lambda cell: str(cell.imbalance),
    "ratio": lambda cell: str(cell.ratio),
    "backbone": lambda cell: cell.backbone,
    "split": lambda cell: cell.split,
    "own": lambda cell: str(bool(cell.own)).lower(),
}
FILTERS = ("paper", "table", "cells", *_VALUES)


def select(options: Mapping[str, str]) -> list[Cell]:
    """The cells that all of the filters in `options` let through, in the order of print. Commas list alternatives.

    Raises:
        ConfigError: for a name that does not exist (with the nearest), or filters that leave nothing together.
    """
    cells = _scope(options)
    if "cells" in options:
        named = [match_cells(cells, pattern) for pattern in _listed("cells", options["cells"])]
        wanted = {cell.name for found in named for cell in found}
        cells = [cell for cell in cells if cell.name in wanted]
    left = cells
    for key, value_of in _VALUES.items():
        if key not in options:
            continue
        values = _listed(key, options[key])
        for value in values:
            if value not in (known := {value_of(cell) for cell in all_cells()}):
                raise ConfigError(unknown_name(key, value, known - {"None"}))
        left = [cell for cell in left if value_of(cell) in values]
    if not left:
        filters = " ".join(f"{key}={options[key]}" for key in FILTERS if key in options)
        raise ConfigError(f"these filters contradict each other, no published cell fits them all: {filters}")
    _check_alternatives(options, left)
    return left


def _check_alternatives(options: Mapping[str, str], left: Sequence[Cell]) -> None:
    """Refuses a value, of several with commas, that none of the cells that are `left` has."""
    for key, value_of in _VALUES.items():
        found = {value_of(cell) for cell in left}
        for value in _listed(key, options[key]) if key in options else ():
            if value not in found:
                others = " ".join(f"{name}={options[name]}" for name in FILTERS if name in options and name != key)
                raise ConfigError(f"no published cell has {key}={value} with {others}: leave it out of {key}=")


def _scope(options: Mapping[str, str]) -> list[Cell]:
    """The cells of the papers and tables that are named; else all."""
    papers = [find_paper(name) for name in _listed("paper", options["paper"])] if "paper" in options else []
    tables = [find_table(name) for name in _listed("table", options["table"])] if "table" in options else []
    if papers and any(table.paper not in {paper.id for paper in papers} for table in tables):
        raise ConfigError(f"paper={options['paper']} and table={options['table']} contradict each other")
    if tables:
        return [cell for table in tables for cell in table.cells]
    return [cell for paper in papers for cell in paper.cells] or all_cells()


def _listed(key: str, text: str) -> list[str]:
    values = [value.strip() for value in text.split(",") if value.strip()]
    if not values:
        raise ConfigError(f"{key}= names nothing")
    return values
