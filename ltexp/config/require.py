"""How every part of the package checks its settings, and how an error learns its full key.

A constructor knows a setting by its own name alone and raises `invalid scale=-1: expected a number above 0`. Whoever
builds it from a node of the config says where that node stands: `invalid stage1.loss.scale=-1: expected ...`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath

import numpy as np

from ltexp.errors import ConfigError, SettingError
from ltexp.names import nearest


def require(holds: object, key: str, value: object, expected: str) -> None:
    """Refuses a setting out of range.

    Args:
        holds: whether the value is allowed.
        key: the setting's name, as the constructor calls it.
        value: the setting.
        expected: what is allowed, e.g. `a number above 0`.

    Raises:
        SettingError: unless it holds.
    """
    if not holds:
        raise SettingError(key, value, expected)


def require_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """Refuses a value that is none of `choices`, with the nearest that is.

    Raises:
        SettingError: unless `value` is one of them.
    """
    if value not in choices:
        near = nearest(str(value), choices)
        raise SettingError(key, value, " | ".join(choices) + (f"; did you mean '{near}'?" if near else ""))


def require_path(key: str, value: object) -> None:
    """Refuses an empty path, which would mean the current folder, or with something behind it the root of all.

    Raises:
        ConfigError: for an empty text.
    """
    if isinstance(value, str | PurePath) and not str(value).strip():
        raise ConfigError(f"{key}= is empty: name a path (was a variable of the shell not set?)")


def require_names(part: object, *attributes: str) -> None:
    """Refuses a text where `part` has to have a collection of names, which would be taken letter by letter.

    Raises:
        ConfigError: naming the class and its attribute.
    """
    for attribute in attributes:
        if isinstance(value := getattr(part, attribute, ()), str):
            who = part.__name__ if isinstance(part, type) else type(part).__name__
            raise ConfigError(f"{who}.{attribute} is {value!r}: expected a set of names, {{{value!r}}}")


def is_whole(value: object, least: int, most: float = math.inf) -> bool:
    """Whether `value` is a whole number (of an integer type) from `least` to `most`."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(least <= value <= most)


def is_number(value: object, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether `value` is a finite number from `least` to `most`."""
    real = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return real and bool(math.isfinite(value)) and bool(least <= value <= most)  # type: ignore[arg-type,operator]


@contextmanager
def within(path: str) -> Iterator[None]:
    """Errors of the block about a key say that it stands below `path`.

    Raises:
        ConfigError: the block's own, with the longer key.
    """
    try:
        yield
    except ConfigError as error:
        if not path:
            raise
        longer = error.below(path)
        longer.of_own_part = error.of_own_part
        raise longer from error.__cause__
