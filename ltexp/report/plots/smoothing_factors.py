"""The factors of label-aware smoothing against the size of the class (MiSLAS, Eqs. 3 and 7, Fig. 11)."""

from pathlib import Path

from ltexp.errors import ConfigError
from ltexp.evaluation.arrays import to_numpy
from ltexp.names import unknown_name
from ltexp.report.drawing import MARKERS, new_figure, stroke
from ltexp.report.plots import numbers, plain
from ltexp.report.saving import save

LARGEST, SMALLEST = 500, 5  # images of a class of CIFAR-100-LT at ratio 100
HEAD, TAIL = 0.4, 0.1  # the factors of these two, the paper's choice


def draw(path: Path, forms: str = "concave,linear,convex", powers: str = "1") -> None:
    """Draws a line for each form, and of form `power` for each of `powers`, to `path`.

    Args:
        path: the figure's file.
        forms: of concave, linear, convex and power, with commas; default: the first three.
        powers: the exponents p of Eq. 7; default: 1.

    Raises:
        ConfigError: for an unknown form, a power that is no number above 0, or too many lines.
    """
    import torch  # the factors are those that the loss uses

    from ltexp.losses.label_aware_smoothing import FORMS, smoothing_factors

    names = forms.split(",")
    for name in names:
        if name not in FORMS:
            raise ConfigError(unknown_name("form", name, FORMS))
    lines = [(f, p) for f in FORMS if f in names for p in (numbers("powers", powers) if f == "power" else [1.0])]
    if len(lines) > len(MARKERS):
        raise ConfigError(f"{len(lines)} lines are too many for one figure: choose at most {len(MARKERS)}")
    sizes = torch.arange(SMALLEST, LARGEST + 1)
    figure = new_figure(4.4, 3.4)
    axis = figure.subplots()
    for (form, power), (color, marker) in zip(lines, MARKERS, strict=False):
        factors = to_numpy(smoothing_factors(sizes, HEAD, TAIL, form, power))
        label = f"p = {power:g}" if form == "power" else form
        step = max(len(sizes) // 6, 1)
        axis.plot(to_numpy(sizes), factors, **stroke(color), marker=marker, markevery=step, markersize=5, label=label)
    axis.set_xlabel("training images of the class", fontsize=9)
    axis.set_ylabel("smoothing factor ε of the class", fontsize=9)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    plain(axis)
    save(figure, path)
