"""The table of any set of runs, before it is written down in some format."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ltexp.errors import ConfigError
from ltexp.names import unknown_name
from ltexp.report.columns import COLUMNS, IDENTITY, METRICS, OF_A_CLASS, Cell, Column, Row, default_columns, find_column
from ltexp.report.groups import Group


@dataclass(frozen=True)
class Table:
    """Cells and what is said about them; `ltexp.report.formats` writes it down.

    Attributes:
        columns: the table's columns.
        rows: a cell for each column.
        notes: the caption, a line each.
        breaks: rows before which a new section begins.
    """

    columns: list[Column]
    rows: list[list[Cell]]
    notes: list[str]
    breaks: frozenset[int]


def results_table(
    groups: Sequence[Group], columns: str | None = None, stages: bool = False, full: bool = False
) -> Table:
    """The table of some runs.

    Args:
        groups: at least one.
        columns: names with commas between; `+name` adds to the usual ones. None: the usual ones.
        stages: a row for each stage instead of one for each group.
        full: usually every column that says what was run, for machines.

    Raises:
        ConfigError: for an unknown column.
    """
    rows = [row for group in groups for row in _rows(group, stages)]
    everything = [*IDENTITY, *(["stage", "classifier"] if stages else []), "epochs", "seeds", *METRICS]
    usual = [COLUMNS[name] for name in everything] if full else default_columns(rows, stages)
    chosen = _choose(columns, usual)
    # what all runs were typed with tells no row from another: the caption has it
    common = set[str]() if full else set.intersection(*(set(group.overrides) for group in groups))
    if len(groups) > 1:
        chosen = [
            replace(c, value=lambda row: _own_overrides(row, common)) if c.name == "overrides" else c for c in chosen
        ]
    sections = [row.group.runs[0].identity if stages else row.group.section for row in rows]
    return Table(
        columns=chosen,
        rows=[[column.value(row) for column in chosen] for row in rows],
        notes=_notes(groups, {column.name for column in chosen}, common),
        breaks=frozenset(number for number in range(1, len(rows)) if sections[number] != sections[number - 1]),
    )


def _own_overrides(row: Row, common: set[str]) -> str:
    return " ".join(text for text in row.group.overrides if text not in common)


def _rows(group: Group, stages: bool) -> list[Row]:
    return [Row(group, number) for number in range(len(group.record["stages"]))] if stages else [Row(group)]


def _choose(columns: str | None, usual: list[Column]) -> list[Column]:
    asked = [name.strip() for name in (columns or "").split(",") if name.strip()]
    for name in asked:
        if find_column(name.removeprefix("+")) is None:
            raise ConfigError(unknown_name("column", name.removeprefix("+"), [*COLUMNS, OF_A_CLASS]))
    only = [column for name in asked if not name.startswith("+") and (column := find_column(name))] or usual
    names = {column.name for column in only}
    added = [name[1:] for name in dict.fromkeys(asked) if name.startswith("+") and name[1:] not in names]
    # in the order of `COLUMNS`, and after them those of single classes as they were asked for
    added.sort(key=lambda name: list(COLUMNS).index(name) if name in COLUMNS else len(COLUMNS))
    return only + [column for name in added if (column := find_column(name))]


def _notes(groups: Sequence[Group], shown: set[str], common: set[str]) -> list[str]:
    parts = ["accuracy and ECE on the test split in %"]
    for column in ("selection", "shot_rule"):
        if column not in shown:  # whatever the columns, the reader is told which epoch and which groups of classes
            values = {str(COLUMNS[column].value(Row(group))) for group in groups}
            parts.append(f"{COLUMNS[column].title}: {', '.join(sorted(values))}")
    notes = ["; ".join(parts)]
    if numbered := _called_by_other_numbers(groups, shown):
        notes.append(numbered)
    if any(len(group.runs) > 1 for group in groups):
        notes.append("mean ± sample standard deviation over n seeds")
    if common and ("overrides" not in shown or len(groups) > 1):
        notes.append("every run with " + " ".join(sorted(common)))
    return notes


def _called_by_other_numbers(groups: Sequence[Group], shown: set[str]) -> str:
    """A note on columns of single classes whose name is a number and not their label; empty if there are none."""
    found = {}
    for name in sorted(shown):
        label = name.removeprefix("acc")
        for group in groups if name != label and label.isdecimal() else ():
            names = group.record.get("class_names") or []
            if int(label) < len(names) and names[int(label)].isdecimal() and int(names[int(label)]) != int(label):
                found[name] = names[int(label)]
    return "; ".join(f"{name} is label {name[3:]}, the class called {called}" for name, called in found.items())
