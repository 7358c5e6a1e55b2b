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


def gradual_weight(progress: float, c: float, s: float | None) -> float:
    """α = s (c^progress - 1), a weight that grows from 0 over a stage (GLAG, Zhang and Xiang, 2022, Eq. 3).

    Args:
        progress: the epoch from 0 over the stage's epochs.
        c: above 1 the curve is convex, below 1 concave; 1 stands for the limit s * progress.
        s: the factor; None: the one that ends the curve at 1.
    """
    if c == 1:
        return progress if s is None else s * progress
    return (1 / (c - 1) if s is None else s) * (math.pow(c, progress) - 1)


def check_gradual_weight(section: str, c: float, s: float | None) -> None:
    """Raises a ConfigError unless `gradual_weight` with these settings stays at 0 or more."""
    if not c > 0:
        raise ConfigError(f"{section}.c must be positive, got {c}")
    if s is not None and gradual_weight(1.0, c, s) < 0:
        sign = "0 or more" if c >= 1 else "0 or less, since c is below 1"
        raise ConfigError(f"{section}.s={s} lets the weight fall below 0: expected {sign}, or null")
