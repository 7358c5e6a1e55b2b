"""Points of a stage's time that a config names, as a fraction of its epochs or as an epoch."""

import math

from ltexp.config.require import require

A_POINT = "a fraction of the stage, 0 or more and below 1, or a whole epoch"


def first_epoch(point: float, max_epochs: int) -> int:
    """The first epoch, from 0, that has reached `point`.

    Args:
        point: below 1 a fraction of the stage's epochs, from 1 on a whole epoch counted from 0.
        max_epochs: epochs of the stage.
    """
    # Rounded up, but not by the last bit of a product such as 0.55 * 100.
    return int(point) if point >= 1 else math.ceil(point * max_epochs - 1e-9)


def is_point(point: float) -> bool:
    """Whether `point` names a point of a stage's time, see `A_POINT`."""
    return 0 <= point < 1 or (point >= 1 and isinstance(point, int))


def has_started(key: str, start: float, epoch: int, max_epochs: int) -> bool:
    """Whether `epoch` (from 0) of `max_epochs` has reached `start`.

    Raises:
        ConfigError: a whole epoch that the stage does not have, so that nothing would ever start.
    """
    reached = start < 1 or start < max_epochs
    require(reached, key, start, f"an epoch of the stage, 0 to {max_epochs - 1}, or a fraction of it")
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


def require_gradual_weight(c: float, s: float | None) -> None:
    """Raises a ConfigError unless `gradual_weight` with these settings, named so, stays at 0 or more."""
    require(c > 0, "c", c, "a number above 0")
    sign = "0 or more" if c >= 1 else "0 or less, since c is below 1"
    require(s is None or gradual_weight(1.0, c, s) >= 0, "s", s, f"null or a number of {sign}")
