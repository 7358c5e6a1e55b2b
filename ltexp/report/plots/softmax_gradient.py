"""The gradient of cross-entropy on the logit of the true class, of two classes (thesis, Eq. 5.3 and Fig. 5.3)."""

from pathlib import Path

import numpy as np

from ltexp.evaluation.arrays import Floats
from ltexp.report.drawing import BLACK, BLUE, new_figure
from ltexp.report.plots import plain
from ltexp.report.saving import save

REACH = 8.0  # at a larger difference of the logits nothing can be seen any more


def draw(path: Path) -> None:
    """Draws the gradient against the difference of the two logits to `path`."""
    difference = np.linspace(-REACH, REACH, 401)
    figure = new_figure(4.4, 3.2)
    axis = figure.subplots()
    axis.plot(difference, gradient(difference), color=BLUE, linewidth=1.8)
    axis.axhline(0, color=BLACK, linewidth=0.6, linestyle=(0, (4, 3)))
    axis.set(xlim=(-REACH, REACH), ylim=(-1.05, 0.1))
    axis.set_xlabel("$z_1 - z_2$, the logit of the true class less the other", fontsize=9)
    axis.set_ylabel("gradient on $z_1$", fontsize=9)
    plain(axis)
    save(figure, path, math=True)


def gradient(difference: Floats) -> Floats:
    """-1 / (1 + exp(z_1 - z_2)), the gradient on z_1 of the cross-entropy of a sample of class 1."""
    found: Floats = -1 / (1 + np.exp(difference))
    return found
