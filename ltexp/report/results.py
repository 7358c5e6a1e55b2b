"""The table of any set of runs, before it is written down in some format."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from operator import not_

from ltexp.errors import ConfigError
from ltexp.evaluation.further import OF_PROBABILITIES
from ltexp.names import unknown_name
from ltexp.report.columns import (
    COLUMNS,
    IDENTITY,
    METRICS,
    OF_A_CLASS,
    SHARED,
    Cell,
    Column,
    Row,
    default_columns,
    find_column,
    plain,
)
from ltexp.report.differences import difference_column, difference_note
from ltexp.report.groups import Group, Statistic
from ltexp.report.keys import short_override
from ltexp.report.predicted import counts_of_test, kept_evaluations
from ltexp.report.records import Run
from ltexp.report.swept import short_names, sort_key
from ltexp.report.table import cut_short, ratio_text, uneven_note


@dataclass(frozen=True)
class Table:
    """Cells and what is said about them; `ltexp.report.formats` writes it down.

    Attributes:
        columns: the table's columns.
        rows: a cell for each column.
        notes: the caption, a line each.
        breaks: rows before which a new section begins.
        title: what all rows share.
        best: (row, column) of the best figures of their section.
        runs: those of each row; empty where a table is not of runs.
        dim: rows that matter less.
    """

    columns: list[Column]
    rows: list[list[Cell]]
    notes: list[str]
    breaks: frozenset[int]
    title: str = ""
    best: frozenset[tuple[int, int]] = frozenset()
    runs: Sequence[Sequence[Run]] = ()
    dim: frozenset[int] = frozenset()


def results_table(
    groups: Sequence[Group],
    columns: str | None = None,
    stages: bool = False,
    full: bool = False,
    sort: str | None = None,
    posthoc: bool = False,
    against: str | None = None,
) -> Table:
    """The table of some runs.

    Args:
        groups: at least one.
        columns: names with commas between; `+name` adds to the usual ones. None: the usual ones.
        stages: a row for each stage instead of one for each group.
        full: usually every column that says what was run, for machines.
        sort: a column's name, the best first or by name; `-name` turns the order. Sections stay together.
        posthoc: a further row for each evaluation that `ltexp evaluate` kept.
        against: a method of these, to which every row's difference has a column.

    Raises:
        ConfigError: for an unknown column, or another method.
    """
    rows = [row for group in groups for row in _rows(group, stages, posthoc)]
    if sort is not None:
        rows = sort_rows(rows, sort)
    everything = [*IDENTITY, *(["stage", "classifier"] if stages else []), *(["posthoc"] if posthoc else [])]
    usual = [COLUMNS[name] for name in (*everything, "epochs", "seeds", *METRICS)]
    chosen = _choose(columns, usual if full else default_columns(rows, stages))
    common = set[str]()
    if not full:
        chosen, common = with_own_overrides(chosen, groups)
    if against is not None:
        place = next((number + 1 for number, column in enumerate(chosen) if column.name == "all"), len(chosen))
        chosen.insert(place, difference_column(groups, against, tested_on))
    sections = [(*row.group.section, tested_on(row), n if row.pretext else None) for n, row in enumerate(rows)]
    ends = [row.group.runs[0].identity if stages else row.group.section for row in rows]
    cells = [[column.value(row) for column in chosen] for row in rows]
    shown = {column.name for column in chosen}
    return Table(
        columns=chosen,
        rows=cells,
        notes=[
            *_notes(rows, groups, shown, common),
            *_posthoc_note(rows, posthoc),
            *_pretext_note(rows),
            *([] if against is None else [difference_note(against)]),
        ],
        breaks=frozenset(number for number in range(1, len(rows)) if ends[number] != ends[number - 1]),
        title="" if full else shared_title(rows, shown),
        best=best_cells(cells, chosen, sections),
        runs=[row.group.runs for row in rows],
    )


def best_cells(
    cells: Sequence[Sequence[Cell]], columns: Sequence[Column], sections: Sequence[object]
) -> frozenset[tuple[int, int]]:
    """(row, column) of the best figure of each section with at least two, and of those that read like it."""
    best = set()
    for place, column in enumerate(columns):
        for section in set(sections) if column.better else ():
            rows = [n for n, of in enumerate(sections) if of == section and isinstance(cells[n][place], Statistic)]
            means = {n: cell.mean for n in rows if isinstance(cell := cells[n][place], Statistic)}
            texts = {n: plain(cells[n][place], column).partition(" ")[0] for n in rows}
            if len(set(texts.values())) > 1:
                top = texts[max(means, key=lambda n: column.better * means[n])]
                best |= {(n, place) for n in rows if texts[n] == top}
    return frozenset(best)


def sort_rows(rows: Sequence[Row], sort: str) -> list[Row]:
    """The rows with the best first within each section, or by name; a leading `-` turns the order.

    Raises:
        ConfigError: for an unknown column.
    """
    name, turned = sort.removeprefix("-"), sort.startswith("-")
    column = find_column(name)
    if column is None:
        raise ConfigError(unknown_name("column", name, [*COLUMNS, OF_A_CLASS]))

    def key(row: Row) -> tuple[bool, float, str]:
        value = column.value(row)
        if isinstance(value, Statistic):
            return (False, -value.mean if column.better > 0 else value.mean, "")
        return sort_key("" if value is None else str(value))

    order = list(dict.fromkeys(row.group.section for row in rows))
    nothing = [column.value(row) is None or (row.pretext and column.better != 0) for row in rows]
    there = sorted(compress(rows, map(not_, nothing)), key=key, reverse=turned)
    absent = compress(rows, nothing)  # nothing that compares: last, either way
    return sorted([*there, *absent], key=lambda row: order.index(row.group.section))


def with_own_overrides(columns: Sequence[Column], groups: Sequence[Group]) -> tuple[list[Column], set[str]]:
    """(columns, what every run was typed with): overrides that all share tell no row from another and leave theirs."""
    common = set.intersection(*(set(group.overrides) for group in groups))
    if len(groups) == 1:
        return list(columns), common
    names = short_names(groups)
    return [
        replace(c, value=lambda row: _own_overrides(row, common, names)) if c.name == "overrides" else c
        for c in columns
    ], common


def _own_overrides(row: Row, common: set[str], names: dict[str, str]) -> str:
    return " ".join(short_override(text, names) for text in row.group.overrides if text not in common)


def _rows(group: Group, stages: bool, posthoc: bool) -> list[Row]:
    rows = [Row(group, number) for number in range(len(group.record["stages"]))] if stages else [Row(group)]
    names = dict.fromkeys(name for run in group.runs for name in kept_evaluations(run)) if posthoc else {}
    for name in names:
        rows.append(Row(Group(tuple(run for run in group.runs if name in kept_evaluations(run))), posthoc=name))
    return rows


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


def shared_title(rows: Sequence[Row], shown: set[str]) -> str:
    """What all rows share and no column shows: method, dataset, ratio, backbone."""
    parts = []
    for name in SHARED:
        values = {str(COLUMNS[name].value(row)) for row in rows}
        if name in shown or len(values) > 1 or name == "imbalance":  # the ratio's text names it
            continue
        parts.append(ratio_text(rows[0].group.record) if name == "ratio" else values.pop())
    return ", ".join(parts)


def _notes(rows: Sequence[Row], groups: Sequence[Group], shown: set[str], common: set[str]) -> list[str]:
    percent = "accuracy and calibration errors" if shown & {"mce", "classwise_ece"} else "accuracy and ECE"
    parts = [f"{percent} on the test split in %"]
    for column in ("selection", "shot_rule"):
        if column not in shown:  # whatever the columns, the reader is told which epoch and which groups of classes
            values = {str(COLUMNS[column].value(Row(group))) for group in groups}
            parts.append(f"{COLUMNS[column].title}: {', '.join(sorted(values))}")
    notes = ["; ".join(parts), seeds_note(rows)]
    if numbered := _called_by_other_numbers(groups, shown):
        notes.insert(1, numbered)
    if common and ("overrides" not in shown or len(groups) > 1):
        notes.append("every run with " + " ".join(sorted(common)))
    asked = shown & {*OF_PROBABILITIES, "macro_f1"}
    if asked and any(COLUMNS[name].value(row) is None for name in asked for row in rows):
        notes.append("–: not known without the run's predictions.npz, which the last stage alone has")
    return [*notes, *_cut_short_notes(groups), *_uneven_notes(groups)]


def _cut_short_notes(groups: Sequence[Group]) -> list[str]:
    """A line for each run that is less than a full one."""
    runs = [run for group in groups for run in group.runs]
    said = [(run, "; ".join(cut_short(run.record))) for run in runs]
    return [f"{run.record['method']} seed {run.record['seed']}: {text}" for run, text in said if text]


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


def tested_on(row: Row) -> str:
    """What a row is measured on, such as `class shares forward50`; empty for the whole test split of the run."""
    run = row.group.runs[0]
    kept = kept_evaluations(run)[row.posthoc] if row.posthoc else {}
    parts = [f"class shares {kept['shift']}"] if "shift" in kept else []
    if words := kept.get("dataset"):
        parts += words
    elif found := kept.get("test_hash"):
        parts.append(f"test data {str(found)[:8]}")
    if not row.posthoc and (tested := run.record.get("tested")):
        parts.append(f"{next(iter(tested.values()))} of {tested['of']} samples")
    return " ".join(parts)


def _posthoc_note(rows: Sequence[Row], posthoc: bool) -> list[str]:
    if others := sorted({of for row in rows if row.posthoc and (of := tested_on(row))}):
        return [f"rows on other test sets, compared among themselves alone: {', '.join(others)}"]
    if posthoc and not any(row.posthoc for row in rows):
        return ["no evaluation was kept of these runs: ltexp evaluate RUN temperature=true makes one"]
    return []


def _pretext_note(rows: Sequence[Row]) -> list[str]:
    names = sorted({str(row.stages[0][0]["name"]) for row in rows if row.pretext})
    return [f"{', '.join(names)}: on labels of its own, compared with no other row"] if names else []


def seeds_note(rows: Sequence[Row]) -> str:
    """How many runs stand behind each row, and what is shown of several."""
    sizes = {len(row.group.runs) for row in rows}
    if sizes == {1}:
        seeds = sorted({int(row.group.record["seed"]) for row in rows})
        return f"one run for each row, seed {', '.join(map(str, seeds))}"
    number = f"{sizes.pop()}" if len(sizes) == 1 else "n"
    return f"mean ± sample standard deviation over {number} seeds"


def _uneven_notes(groups: Sequence[Group]) -> list[str]:
    """A warning for each dataset whose test set is itself imbalanced."""
    notes = {}
    for group in groups:
        name = str(group.record["dataset"])
        if name not in notes and (counts := counts_of_test(group.runs[0])) is not None:
            notes[name] = uneven_note(name, counts)
    return [note for note in notes.values() if note]
