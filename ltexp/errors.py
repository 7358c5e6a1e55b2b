"""Errors that a user can fix. Each message says what is wrong, where, and what to do instead.

The command line prints the message alone, without a traceback, and exits with status 1. Anything that is not
an `LtexpError` is a bug and keeps its traceback.
"""

from collections.abc import Iterable

from ltexp.names import unknown_name


class LtexpError(Exception):
    """Base of every error that a user can fix."""


class ConfigError(LtexpError):
    """A config choice, key or value that cannot work.

    Args:
        message: what is wrong and what to do instead.
        place: the key of the node it is about; empty where the message says it.
    """

    of_own_part = False  # whether a part of the user's own could not be built, or refused what it was built with

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(f"{place}: {message}" if place else message)
        self.message, self.place = message, place

    def below(self, path: str) -> "ConfigError":
        """The same error for a node that stands at `path` in a larger one."""
        return ConfigError(self.message, _joined(path, self.place))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.place)


class SettingError(ConfigError):
    """A value out of range, told as `invalid KEY=VALUE: expected ...`.

    Args:
        key: of the value, as far as the place that raises the error knows it.
        value: as given.
        expected: what is allowed instead.
    """

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"invalid {key}={_shown(value)}: expected {expected}")
        self.key, self.value, self.expected = key, value, expected

    def below(self, path: str) -> "SettingError":
        """The same error with the key as it is from `path` on."""
        return SettingError(_joined(path, self.key), self.value, self.expected)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.key, self.value, self.expected)


class UnknownKeyError(ConfigError):
    """A key that its node does not take.

    Args:
        key: as far as the place that raises the error knows it.
        known: the keys that the node takes, by the same measure.
    """

    def __init__(self, key: str, known: Iterable[str]) -> None:
        self.key, self.known = key, tuple(known)
        super().__init__(unknown_name("key", key, self.known))

    def below(self, path: str) -> "UnknownKeyError":
        """The same error with the keys as they are from `path` on."""
        return UnknownKeyError(_joined(path, self.key), [_joined(path, name) for name in self.known])

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.key, self.known)


class DataError(LtexpError):
    """Data that is missing, damaged, or too small for what was asked."""


class CheckpointError(LtexpError):
    """A checkpoint that is missing, damaged, or from a different model."""


class WriteError(LtexpError):
    """A file that cannot be written, as on a full disk or in a folder of others."""


class TrainingError(LtexpError):
    """Training that cannot go on, such as a loss that is no longer finite."""


def _joined(path: str, key: str) -> str:
    return ".".join(part for part in (path, key) if part)


def _shown(value: object) -> str:
    """`value` as a user would type it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value)
