"""Errors that a user can mend. Each message says what is wrong, where, and what to do instead.

The command line prints the message alone, without a traceback, and exits with status 1. Anything that is not
an `LtexpError` is a bug and keeps its traceback.
"""


class LtexpError(Exception):
    """Base of every error that is the user's to mend."""


class ConfigError(LtexpError):
    """A config choice, key or value that cannot work."""


class DataError(LtexpError):
    """Data that is missing, damaged, or too small for what was asked."""


class CheckpointError(LtexpError):
    """A checkpoint that is missing, damaged, or of another model."""


class TrainingError(LtexpError):
    """Training that cannot go on, such as a loss that is no longer finite."""
