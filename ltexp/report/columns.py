"""The columns that a table of runs can have. A new one is one line of `COLUMNS`."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ltexp.evaluation.record import seen_beyond
from ltexp.report.groups import Group, Statistic, statistic
from ltexp.report.swept import FACTS, UNKNOWN, swept_values

Cell = str | int | Statistic | None

SELECTIONS = {"last": "last epoch"}  # how a selection protocol is named in captions


@dataclass(frozen=True)
class Row:
    """One line of a table: runs that differ by seed, as a whole or at the end of one stage.

    Attributes:
        group: the runs.
        stage: position of the stage; None for the run's result.
    """

    group: Group
    stage: int | None = None

    @property
    def stages(self) -> list[list[dict[str, Any]]]:
        """For each run the stages that this row is about."""
        found = [run.record["stages"] for run in self.group.runs]
        return found if self.stage is None else [[stages[self.stage]] for stages in found]

    def metrics(self, name: str) -> Statistic | None:
        """A metric in percent over the runs."""
        if self.stage is None:
            return statistic([run.record["metrics"].get(name) for run in self.group.runs])
        return statistic([stages[0]["metrics"].get(name) for stages in self.stages])

    def accuracy_of(self, label: int) -> Statistic | None:
        """Accuracy on one class in percent over the runs; None where there is no such class."""
        found = [stages[-1]["metrics"]["per_class"] for stages in self.stages]
        return statistic([accuracies[label] if label < len(accuracies) else None for accuracies in found])

    def best(self, split: str) -> Statistic | None:
        """Overall accuracy at each run's best epoch on `split`, of this stage or the last."""
        return statistic([(stages[-1].get(f"best_on_{split}") or {}).get("all") for stages in self.stages])

    def total(self, key: str) -> Statistic | None:
        """The sum of a stage's number over this row's stages."""
        return statistic([_sum([stage.get(key) for stage in stages]) for stages in self.stages])


def _sum(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) if len(present) == len(values) else None


@dataclass(frozen=True)
class Column:
    """What a column shows.

    Attributes:
        name: its name for `columns=` and CSV.
        title: its name for people.
        value: the function that gives a row's value.
        numeric: whether it is set flush right.
        digits: after the decimal point of a mean.
    """

    name: str
    title: str
    value: Callable[[Row], Cell]
    numeric: bool = False
    digits: int = 2


def _of_record(name: str, title: str, key: str) -> Column:
    return Column(name, title, lambda row: str(row.group.record.get(key) or "–"))


def _metric(name: str, title: str) -> Column:
    return Column(name, title, lambda row: row.metrics(name), numeric=True)


def _stage_text(row: Row, key: str) -> str:
    return " + ".join(str(stage.get(key) or "–") for stage in row.stages[0])


_ALL = [
    _of_record("method", "method", "method"),
    _of_record("dataset", "dataset", "dataset"),
    _of_record("imbalance", "imbalance", "imbalance"),
    Column("ratio", "ratio", lambda row: f"{row.group.record['imbalance_ratio']:g}", numeric=True),
    _of_record("backbone", "backbone", "backbone"),
    Column("overrides", "overrides", lambda row: " ".join(row.group.overrides)),
    Column("stage", "stage", lambda row: _stage_text(row, "name")),
    Column("classifier", "classifier", lambda row: _stage_text(row, "classifier")),
    Column("epochs", "epochs", lambda row: _stage_text(row, "epochs"), numeric=True),
    Column("config", "config", lambda row: str(row.group.record.get("config_hash") or "–")[:8]),
    Column("subset", "subset", lambda row: str(row.group.record.get("subset_hash") or "–")[:8]),
    Column("selection", "selection", lambda row: selection_text(row.group.record["selection"])),
    _of_record("shot_rule", "shots", "shot_rule"),
    Column("beyond", "sees also", lambda row: seen_beyond(row.group.record) or "–"),
    Column("seeds", "seeds", lambda row: ",".join(str(run.record["seed"]) for run in row.group.runs)),
    Column("n", "n", lambda row: len(row.group.runs), numeric=True),
    *(_metric(name, name) for name in ("all", "many", "medium", "few")),
    _metric("ece", "ECE"),
    _metric("mce", "MCE"),
    Column("best_on_test", "best on test", lambda row: row.best("test"), numeric=True),
    Column("best_on_validation", "best on validation", lambda row: row.best("validation"), numeric=True),
    Column("seconds", "seconds", lambda row: row.total("seconds"), numeric=True, digits=0),
    Column(
        "images_per_second",
        "images/s",
        lambda row: row.total("images_per_second") if len(row.stages[0]) == 1 else None,
        numeric=True,
        digits=0,
    ),
]
COLUMNS = {column.name: column for column in _ALL}
OF_A_CLASS = "acc0"  # how the first of the columns of single classes is called: acc0, acc1, ...


def find_column(name: str) -> Column | None:
    """The column `name`: one of `COLUMNS`, or accK for the accuracy on the class with label K; None: there is none."""
    if (found := re.fullmatch(r"acc(\d{1,6})", name)) is not None:
        label = int(found[1])
        return Column(name, f"Acc{label}", lambda row: row.accuracy_of(label), numeric=True)
    return COLUMNS.get(name)


MOST_SWEPT = 4  # keys with columns of their own
METRICS = ("n", "all", "many", "medium", "few", "ece")
_PROTOCOL = ("config", "subset", "selection", "shot_rule")
IDENTITY = ("method", "dataset", "imbalance", "ratio", "backbone", "overrides", *_PROTOCOL)


def selection_text(selection: str) -> str:
    """`last` as `last epoch`; other protocols by their own name."""
    return SELECTIONS.get(selection, selection)


def default_columns(rows: Sequence[Row], stages: bool) -> list[Column]:
    """What tells the rows apart, and the metrics. A choice that all rows share is left to the caption.

    Args:
        rows: the table's rows, at least one.
        stages: whether they are stages.
    """
    names = ["method", "dataset", "ratio", "backbone"]
    if any(row.group.record["imbalance"] not in ("longtail", "given") for row in rows):
        names.insert(2, "imbalance")
    names += [name for name in ("overrides", "selection", "shot_rule") if _varies(name, rows)]
    names += ["beyond"] if any(seen_beyond(row.group.record) for row in rows) else []
    names += ["stage", "classifier"] if stages else []
    for name in ("config", "subset"):
        if _varies(name, rows) and len({_values(names, row) for row in rows}) < len(rows):
            names.append(name)
    chosen = [[COLUMNS[name]] for name in (*names, *METRICS)]
    if "overrides" in names and (keys := _swept_columns(rows)):
        chosen[names.index("overrides")] = keys
    return [column for columns in chosen for column in columns]


def _swept_columns(rows: Sequence[Row]) -> list[Column]:
    """A column for each key that was typed with different values; none if they are many, or unknown for a row."""
    groups = list({id(row.group): row.group for row in rows}.values())
    swept = {key: values for key, values in swept_values(groups).items() if key not in FACTS}
    if len(swept) > MOST_SWEPT or any(UNKNOWN in values for values in swept.values()):
        return []
    of_group = {key: dict(zip(map(id, groups), values, strict=True)) for key, values in swept.items()}
    return [
        Column(key, key, lambda row, key=key: of_group[key][id(row.group)], numeric=True)  # type: ignore[misc]
        for key in swept
    ]


def _values(names: Sequence[str], row: Row) -> tuple[Cell, ...]:
    return tuple(COLUMNS[name].value(row) for name in names)


def _varies(name: str, rows: Sequence[Row]) -> bool:
    return len({COLUMNS[name].value(row) for row in rows}) > 1
