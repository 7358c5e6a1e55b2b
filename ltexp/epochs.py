"""Points of a stage's time that a config names, as a fraction of its epochs or as an epoch."""

import math

from ltexp.errors import ConfigError


def first_epoch(point: float, max_epochs: int) -> int:
    """The first epoch, from 0, that has reached `point`.

    Args:
        point: below 1 a fraction of the stage's epochs, from 1 on a whole epoch counted from 0.
        max_epochs: epochs of the stage.
    """
    # Rounded up, but not by the last bit of a product such as 0.55 * 100.
    return int(point) if point >= 1 else math.ceil(point * max_epochs - 1e-9)


def check_start(key: str, start: float) -> None:
    """Raises a ConfigError unless `start` is a fraction of a stage, 0 included, or a whole epoch."""
    if not 0 <= start < 1 and not (start >= 1 and isinstance(start, int)):
        raise ConfigError(f"{key}={start} is neither a fraction, 0 or more and below 1, nor a whole epoch")


def has_started(key: str, start: float, epoch: int, max_epochs: int) -> bool:
    """Whether `epoch` (from 0) of `max_epochs` has reached `start`.

    Raises:
        ConfigError: a whole epoch that the stage does not have, so that nothing would ever start.
    """
    if start >= 1 and start >= max_epochs:
        raise ConfigError(f"{key}={start} is never reached in {max_epochs} epochs (0 to {max_epochs - 1})")
    return epoch >= first_epoch(start, max_epochs)
