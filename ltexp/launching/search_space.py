"""What a search chooses among, checked and as optuna has it, and what tells one search from another."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, ValueType
from hydra.errors import HydraException

from ltexp.config.identity import is_material
from ltexp.config.words import key_of


class SearchError(HydraException):
    """A search that cannot run: of the sweep itself, where an `LtexpError` is of one of its jobs."""


def check_ranges(searched: Mapping[str, Override], seeds: Override | None) -> None:
    """Refuses values that none can be chosen of.

    Args:
        searched: the overrides with several values, by key.
        seeds: that of `seed`.

    Raises:
        SearchError: with the override.
    """
    if seeds is not None and not seeds.is_discrete_sweep():
        raise SearchError(f"invalid {seeds.input_line}: expected values, such as seed=0,1,2")
    for part in searched.values():
        value = part.value()
        if part.value_type == ValueType.GLOB_CHOICE_SWEEP:
            raise SearchError(f"invalid {part.input_line}: expected interval(a,b), or values with commas")
        if not isinstance(value, IntervalSweep):
            continue
        low, high = value.start, value.end
        if low is None or high is None or not (math.isfinite(high - low) and low <= high):
            raise SearchError(f"invalid {part.input_line}: expected interval(a,b) of two finite numbers, a at most b")
        if "log" in value.tags and low <= 0:
            raise SearchError(f"invalid {part.input_line}: expected an interval above 0, as its values are logarithmic")


def space(searched: Mapping[str, Override]) -> dict[str, Any]:
    """The distributions of optuna's, by key."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for key, part in searched.items():
        value = part.value()
        if isinstance(value, IntervalSweep):
            kind: Any = IntDistribution if _is_whole(value) else FloatDistribution
            found[key] = kind(value.start, value.end, log="log" in value.tags)
        else:
            found[key] = CategoricalDistribution(_listed(part))
    return found


def some_values(searched: Mapping[str, Override]) -> list[str]:
    """An override with one value for each: the first listed, or the middle of an interval, whose ends may be out."""
    found = []
    for key, part in searched.items():
        value = part.value()
        if isinstance(value, IntervalSweep):
            assert value.start is not None
            assert value.end is not None
            middle = (value.start + value.end) / 2
            found.append(f"{key}={int(middle) if _is_whole(value) else middle}")
        else:
            found.append(f"{key}={_listed(part)[0]}")
    return found


def _is_whole(value: IntervalSweep) -> bool:
    return isinstance(value.start, int) and isinstance(value.end, int)


def _listed(part: Override) -> list[str]:
    return list(part.sweep_string_iterator())


def identity(searched: Mapping[str, Override], fixed: Sequence[str]) -> dict[str, dict[str, str]]:
    """What is the same in every part of one search: `ranges` and `overrides`, which change what is computed, by key."""
    ranges = {}
    for key, part in searched.items():
        value = part.value()
        if isinstance(value, IntervalSweep):
            log = "log " if "log" in value.tags else ""
            ranges[key] = f"{key} {log}from {value.start} to {value.end}"
        else:
            ranges[key] = f"{key}={','.join(_listed(part))}"
    return {"ranges": ranges, "overrides": {key_of(text): text for text in fixed if is_material(key_of(text))}}


def differences(before: Any, now: Any) -> str:
    """What a search has that the one asked for has not, for a message."""
    if not isinstance(before, dict):
        return str(before)
    other = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return ", ".join(str(before.get(key, f"no {key}")) for key in other)
