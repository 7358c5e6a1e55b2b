"""The columns that a table of runs can have. A new one is one line of `COLUMNS`."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ltexp.config.identity import digest
from ltexp.evaluation.record import seen_beyond
from ltexp.report.groups import Group, Statistic, statistic
from ltexp.report.predicted import further, kept_evaluations
from ltexp.report.swept import FACTS, UNKNOWN, short_names, swept_values
from ltexp.report.table import ABSENT, epochs_text
from ltexp.run_folder import BEST_BY

Cell = str | int | Statistic | None

SELECTIONS = {"last": "last epoch"}  # how a selection protocol is named in captions


@dataclass(frozen=True)
class Row:
    """One line of a table: runs that differ by seed, as a whole, at the end of one stage, or evaluated again.

    Attributes:
        group: the runs.
        stage: position of the stage; None for the run's result.
        posthoc: the name of an evaluation that `ltexp evaluate` kept of each run; None for the run's own.
    """

    group: Group
    stage: int | None = None
    posthoc: str | None = None

    @property
    def stages(self) -> list[list[dict[str, Any]]]:
        """For each run the stages that this row is about."""
        found = [run.record["stages"] for run in self.group.runs]
        return found if self.stage is None else [[stages[self.stage]] for stages in found]

    @property
    def pretext(self) -> bool:
        """Whether this is a stage that told labels of its own, whose accuracy compares with no other."""
        return self.stage is not None and any("num_classes" in stage for (stage,) in self.stages)

    @property
    def found(self) -> list[dict[str, Any]]:
        """For each run the metrics that this row is about."""
        if self.posthoc is not None:
            return [kept_evaluations(run)[self.posthoc]["metrics"] for run in self.group.runs]
        if self.stage is not None:
            return [stages[0]["metrics"] for stages in self.stages]
        return [run.record["metrics"] for run in self.group.runs]

    def metrics(self, name: str) -> Statistic | None:
        """A metric of the record in percent over the runs."""
        return statistic([metrics.get(name) for metrics in self.found])

    def further(self, name: str) -> Statistic | None:
        """A metric of `ltexp.evaluation.further` over the runs."""
        last = self.stage is None or self.stage == len(self.group.record["stages"]) - 1
        final = self.posthoc is None and last
        pairs = zip(self.group.runs, self.found, strict=True)
        return statistic([further(run, name, metrics, final) for run, metrics in pairs])

    def accuracy_of(self, label: int) -> Statistic | None:
        """Accuracy on one class in percent over the runs; None where there is no such class."""
        if self.pretext:
            return None
        found = [metrics["per_class"] for metrics in self.found]
        return statistic([accuracies[label] if label < len(accuracies) else None for accuracies in found])

    def best(self, split: str) -> Statistic | None:
        """Accuracy at each run's best epoch on `split`, of this stage or the last; balanced of held-out images."""
        bests = [stages[-1].get(f"best_on_{split}") or {} for stages in self.stages]
        return statistic([best.get(BEST_BY[split]) for best in bests])

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
        better: 1 if more is better, -1 if less is; 0 if neither.
        free: whether it is free text, which needs no heading of its own where it stands alone.
    """

    name: str
    title: str
    value: Callable[[Row], Cell]
    numeric: bool = False
    digits: int = 2
    better: int = 0
    free: bool = False


def plain(cell: Cell, column: Column) -> str:
    """A cell as people read it."""
    if isinstance(cell, Statistic):
        return cell.text(column.digits)
    return ABSENT if cell is None else str(cell)


def _of_record(name: str, title: str, key: str) -> Column:
    return Column(name, title, lambda row: str(row.group.record.get(key) or "–"))


def _metric(name: str, title: str, better: int = 1) -> Column:
    return Column(name, title, lambda row: row.metrics(name), numeric=True, better=better)


def _further(name: str, title: str, better: int = 1, digits: int = 2) -> Column:
    return Column(name, title, lambda row: row.further(name), numeric=True, better=better, digits=digits)


def _stage_text(row: Row, key: str) -> str:
    return " + ".join(str(stage.get(key) or "–") for stage in row.stages[0])


def _epochs_text(row: Row) -> str:
    """Those of each stage; of runs that were stopped at different epochs, each once."""
    texts = (
        " + ".join(epochs_text(stage) if stage.get("epochs") else ABSENT for stage in stages) for stages in row.stages
    )
    return ", ".join(dict.fromkeys(texts))


_ALL = [
    _of_record("method", "method", "method"),
    _of_record("dataset", "dataset", "dataset"),
    _of_record("imbalance", "imbalance", "imbalance"),
    Column("ratio", "ratio", lambda row: f"{row.group.record['imbalance_ratio']:g}", numeric=True),
    _of_record("backbone", "backbone", "backbone"),
    Column("overrides", "overrides", lambda row: " ".join(row.group.overrides), free=True),
    Column("stage", "stage", lambda row: _stage_text(row, "name")),
    Column("classifier", "classifier", lambda row: _stage_text(row, "classifier")),
    Column("posthoc", "post hoc", lambda row: row.posthoc),
    Column("epochs", "epochs", _epochs_text, numeric=True),
    Column("config", "config", lambda row: str(row.group.record.get("config_hash") or "–")[:8]),
    Column("subset", "subset", lambda row: str(row.group.record.get("subset_hash") or "–")[:8]),
    Column("contents", "contents", lambda row: digest(row.group.runs[0].contents)[:8]),
    Column("code", "code", lambda row: row.group.runs[0].code[:8] or "–"),
    Column("selection", "selection", lambda row: selection_text(row.group.record["selection"])),
    _of_record("shot_rule", "shots", "shot_rule"),
    Column("beyond", "sees also", lambda row: seen_beyond(row.group.record) or "–"),
    Column("seeds", "seeds", lambda row: ",".join(str(run.record["seed"]) for run in row.group.runs)),
    Column("n", "n", lambda row: len(row.group.runs), numeric=True),
    *(_metric(name, name) for name in ("all", "many", "medium", "few")),
    _metric("ece", "ECE", -1),
    _metric("mce", "MCE", -1),
    _further("balanced", "balanced"),
    _further("macro_f1", "macro-F1"),
    _further("geometric_mean", "G-mean"),
    _further("harmonic_mean", "H-mean"),
    _further("lowest", "lowest"),
    _further("classwise_ece", "class-wise ECE", -1),
    _further("nll", "NLL", -1, digits=3),
    _further("brier", "Brier", -1, digits=3),
    Column("best_on_test", "best on test", lambda row: row.best("test"), numeric=True, better=1),
    Column("best_on_validation", "best on validation", lambda row: row.best("validation"), numeric=True, better=1),
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
    if (label := label_of(name)) is not None:
        return Column(name, f"Acc{label}", lambda row: row.accuracy_of(label), numeric=True, better=1)
    return COLUMNS.get(name)


def label_of(name: str) -> int | None:
    """The label of a column accK; None for any other name."""
    found = re.fullmatch(r"acc(\d{1,6})", name)
    return int(found[1]) if found else None


MOST_SWEPT = 4  # keys with columns of their own
METRICS = ("n", "all", "many", "medium", "few", "ece")
_PROTOCOL = ("config", "subset", "selection", "shot_rule")
SHARED = ("method", "dataset", "imbalance", "ratio", "backbone")  # what a caption says of all rows
IDENTITY = (*SHARED, "overrides", *_PROTOCOL)


def selection_text(selection: str) -> str:
    """`last` as `last epoch`; other protocols by their own name."""
    return SELECTIONS.get(selection, selection)


def default_columns(rows: Sequence[Row], stages: bool) -> list[Column]:
    """What tells the rows apart, and the metrics. What all rows share is left to the caption.

    Args:
        rows: the table's rows, at least one.
        stages: whether they are stages.
    """
    names = [name for name in (*SHARED, "overrides", "selection", "shot_rule") if _varies(name, rows)]
    names += ["beyond"] if any(seen_beyond(row.group.record) for row in rows) else []
    names += ["stage", "classifier"] if stages else []
    names += ["posthoc"] if any(row.posthoc for row in rows) else []
    for name in ("config", "subset", "contents", "code"):
        if _varies(name, rows) and len({_values(names, row) for row in rows}) < len(rows):
            names.append(name)
    names = names or ["method"]
    metrics = [name for name in METRICS if name != "n" or _varies("n", rows)]
    chosen = [[COLUMNS[name]] for name in (*names, *metrics)]
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
    names = short_names(groups)
    return [
        Column(key, names.get(key, key), lambda row, key=key: of_group[key][id(row.group)], numeric=True)  # type: ignore[misc]
        for key in swept
    ]


def _values(names: Sequence[str], row: Row) -> tuple[Cell, ...]:
    return tuple(COLUMNS[name].value(row) for name in names)


def _varies(name: str, rows: Sequence[Row]) -> bool:
    return len({COLUMNS[name].value(row) for row in rows}) > 1
