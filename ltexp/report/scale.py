"""Where the values of a swept key stand along an axis."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ltexp.report.swept import number, sort_key, value_text
from ltexp.report.text import shorten

MOST_TICKS = 8  # values that are each written at the axis
FAR = 50  # times the least: from then on a log axis
WIDEST = 18  # columns of a value at the axis


@dataclass(frozen=True)
class Places:
    """Where each value stands, and what is written there.

    Attributes:
        of: the place of each value, as text.
        ticks: what to write at which place; None: the axis writes its numbers itself.
        logarithmic: whether the axis is to be a log axis.
        note: what the key's name needs beside it; empty for an ordinary axis.
    """

    of: dict[str, float]
    ticks: dict[float, str] | None = None
    logarithmic: bool = False
    note: str = ""

    def ordered(self, value: str) -> bool:
        """Whether a line may lead to this value: names have no order."""
        return number(value) is not None


def places(values: Sequence[str]) -> Places:
    """Numbers stand in their own places, on a log axis where they span much; names at equal distances behind them.

    Numbers that approach 1, as beta of effective numbers does, stand by log(1 - value); others too close to be read
    stand at equal distances.
    """
    numbers = {value: found for value in dict.fromkeys(values) if (found := number(value)) is not None}
    names = sorted(set(values) - set(numbers), key=sort_key)
    rising = sorted(set(numbers.values()))
    if not rising:
        return Places(*_behind({}, names))
    if _near_one(rising):
        place: Callable[[float], float] = lambda value: float(-np.log10(1 - value))  # noqa: E731
        note = "spaced by log(1 − value)"
    elif _crowded(rising):
        return Places(*_behind({value: float(rising.index(found)) for value, found in numbers.items()}, names))
    elif not names:
        few = {found: value_text(found) for found in rising} if len(rising) <= MOST_TICKS else None
        return Places(numbers, few, _logarithmic(rising))
    else:
        place, note = (lambda value: float(np.log10(value))) if _logarithmic(rising) else float, ""
    return Places(*_behind({value: place(found) for value, found in numbers.items()}, names), note=note)


def _behind(of: dict[str, float], names: Sequence[str]) -> tuple[dict[str, float], dict[float, str]]:
    """The places with those of the names behind them, and what to write at each."""
    last, step = max(of.values(), default=-1.0), 1.0
    if len(of) > 1:
        step = (last - min(of.values())) / (len(of) - 1)
    of = of | {name: last + step * (position + 1) for position, name in enumerate(names)}
    texts = {value: value if number(value) is None else value_text(float(value)) for value in of}
    return of, {place: shorten(texts[value], WIDEST) for value, place in of.items()}


def _near_one(values: Sequence[float]) -> bool:
    """Whether a few rising `values` differ by their distance to 1."""
    return len(values) > 2 and values[0] >= 0 and values[-1] < 1 and (1 - values[0]) / (1 - values[-1]) >= FAR


def _logarithmic(values: Sequence[float]) -> bool:
    """Whether rising `values` belong on a log axis."""
    return values[0] > 0 and values[-1] / values[0] >= FAR


def _crowded(values: Sequence[float]) -> bool:
    """Whether two of a few rising `values` would touch on their axis."""
    if not 2 < len(values) <= MOST_TICKS:
        return False
    along = np.log(values) if _logarithmic(values) else np.asarray(values)
    return bool(np.diff(along).min() < 0.06 * (along[-1] - along[0]))
