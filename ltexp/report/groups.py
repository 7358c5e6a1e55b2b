"""Runs that differ by their seed alone, and the mean and deviation over them."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ltexp.report.records import Run


@dataclass(frozen=True)
class Statistic:
    """A mean over seeds.

    Attributes:
        mean: the mean of the values.
        deviation: their sample standard deviation (n - 1); None for a single value.
    """

    mean: float
    deviation: float | None

    def text(self, digits: int, plus_minus: str = "±") -> str:
        """`45.12 ± 0.31`, or `45.12` for a single value; a decimal less from 100 on, for four digits at most."""
        digits -= 1 if digits > 1 and round(abs(self.mean), digits) >= 100 else 0
        mean = f"{self.mean:.{digits}f}"
        return mean if self.deviation is None else f"{mean} {plus_minus} {self.deviation:.{digits}f}"


def statistic(values: Sequence[float | None]) -> Statistic | None:
    """Mean and sample standard deviation; None if any value is missing, as for an empty shot group."""
    present = [value for value in values if value is not None]
    if not present or len(present) < len(values):
        return None
    deviation = statistics.stdev(present) if len(present) > 1 else None
    return Statistic(statistics.fmean(present), deviation)


@dataclass(frozen=True)
class Group:
    """Runs of one experiment under different seeds, by seed."""

    runs: tuple[Run, ...]

    @property
    def record(self) -> dict[str, Any]:
        """The record of one of the runs, for what all of them share."""
        return self.runs[0].record

    @cached_property
    def overrides(self) -> tuple[str, ...]:
        """The overrides that all runs were typed with; the others set what was so anyway."""
        return tuple(text for text in self.runs[0].overrides if all(text in run.overrides for run in self.runs))

    @property
    def section(self) -> tuple[Any, ...]:
        """Equal for groups that stand together in a table: same data, same backbone."""
        record = self.record
        ratio = float(record["imbalance_ratio"])
        return str(record["dataset"]), str(record["imbalance"]), ratio, str(record["backbone"])


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """The groups by dataset, imbalance, ratio, backbone, method and overrides; seeds in order within each."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.identity, []).append(run)
    made = [Group(tuple(sorted(members, key=lambda run: int(run.record["seed"])))) for members in groups.values()]
    return sorted(made, key=_order)


def _order(group: Group) -> tuple[Any, ...]:
    return group.section, str(group.record["method"]), group.overrides, str(group.runs[0].identity)
