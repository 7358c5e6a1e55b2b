"""What each row of a table gains over one of them, seed by seed: the column of `ltexp report against=METHOD`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ltexp.errors import ConfigError
from ltexp.names import unknown_name
from ltexp.report.columns import Column, Row
from ltexp.report.groups import Group, Statistic, statistic


@dataclass(frozen=True)
class Difference(Statistic):
    """A mean of differences at equal seeds, and their sample standard deviation."""

    def text(self, digits: int, plus_minus: str = "±") -> str:
        """`+1.12 ± 0.31`, or `+1.12` for a single one."""
        mean = f"{self.mean:+.{digits}f}"
        return mean if self.deviation is None else f"{mean} {plus_minus} {self.deviation:.{digits}f}"


def difference_column(groups: Sequence[Group], against: str, elsewhere: Callable[[Row], str]) -> Column:
    """The column: accuracy on all classes less that of `against` with the same seed, on the same data and backbone.

    Args:
        groups: of the table.
        against: a method, and what it was typed with where several rows have it: `bsce stage1.epochs=20`.
        elsewhere: what a row is measured on, empty for the test split of its runs; others have no difference, nor
            have rows whose base is such a one.

    Raises:
        ConfigError: if no row is that, or several of the same data and backbone are.
    """
    method, *typed = against.split() or [""]
    if not any(group.record["method"] == method for group in groups):
        raise ConfigError(f"against={against}: {unknown_name('method', method, _methods(groups))}")
    data = list(dict.fromkeys(map(_data, groups)))
    base = {own: _only([other for other in groups if _fits(_data(other), own)], method, typed) for own in data}
    if all(found is None for found in base.values()):
        raise ConfigError(f"against={against}: no run of {method} was typed with {' '.join(typed)}")

    def value(row: Row) -> Difference | None:
        other = base[_data(row.group)]
        if other is None or other is row.group or row.pretext or elsewhere(row) or elsewhere(Row(other)):
            return None
        before = {run.record["seed"]: run.record["metrics"]["all"] for run in other.runs}
        pairs = zip(row.group.runs, row.found, strict=True)
        gains = [metrics["all"] - before[seed] for run, metrics in pairs if (seed := run.record["seed"]) in before]
        found = statistic(gains)
        return None if found is None else Difference(found.mean, found.deviation)

    return Column("difference", f"vs {method}", value, numeric=True)


def difference_note(against: str) -> str:
    """What the column says, for below the table."""
    return f"vs {against.split()[0]}: accuracy on all classes less its own at the same seeds, mean ± deviation"


def _data(group: Group) -> tuple[Any, ...]:
    """What is known of the data that the runs were trained and tested on, and their backbone."""
    hashes = (group.record.get(key) for key in ("subset_hash", "content_hash", "test_hash"))
    return *group.section, *hashes


def _fits(data: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether they may be the same; what older records do not tell may be anything."""
    return all(one is None or two is None or one == two for one, two in zip(data, other, strict=True))


def _only(groups: Sequence[Group], method: str, typed: Sequence[str]) -> Group | None:
    """The one group of one section that is meant; None if it has none.

    Raises:
        ConfigError: if it has several.
    """
    found = [group for group in groups if group.record["method"] == method and set(typed) <= set(group.overrides)]
    if len(found) > 1:  # that with nothing else typed than all rows have
        common = set.intersection(*(set(group.overrides) for group in groups))
        found = [group for group in found if set(group.overrides) <= common | set(typed)] or found
    if len(found) > 1:
        shown = next((group.overrides for group in found if group.overrides), ("KEY=VALUE",))
        raise ConfigError(f"against={method} names {len(found)} rows: say which, as against='{method} {shown[0]}'")
    return next(iter(found), None)


def _methods(groups: Sequence[Group]) -> set[str]:
    return {str(group.record["method"]) for group in groups}
