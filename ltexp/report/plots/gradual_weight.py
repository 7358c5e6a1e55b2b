"""The weight alpha(t) of the gradual balanced loss, from its formula (GLAG, Eq. 3 and Fig. 3)."""

from pathlib import Path

from ltexp.report.figures.gradual_weight import draw_curves
from ltexp.report.plots import numbers


def draw(path: Path, c: str) -> None:
    """Draws a line for each of the listed `c` to `path`; every curve ends at 1.

    Raises:
        ConfigError: if one of them is no number above 0, or for more than there are colours to tell apart.
    """
    draw_curves([(value, None) for value in numbers("c", c)], path)
