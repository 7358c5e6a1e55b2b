"""The weight alpha(t) of the gradual balanced loss by epoch, a line for each curve of the runs (GLAG, Fig. 3)."""

from collections.abc import Sequence
from pathlib import Path

from ltexp.config import StageConfig, load
from ltexp.epochs import gradual_weight
from ltexp.errors import ConfigError, DataError
from ltexp.report.drawing import MARKERS, new_figure, stroke
from ltexp.report.records import Run
from ltexp.report.saving import save
from ltexp.run_folder import CONFIG

TARGET = "ltexp.losses.gradual_balanced.GradualBalanced"
Curve = tuple[float, float | None]  # c and s


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draws a line for each c and s among the runs' stages 1 to `path`, over t/T: runs of any length share a curve.

    Raises:
        DataError: if no run has this loss in stage 1.
        ConfigError: for more curves than there are colours to tell apart.
    """
    curves = sorted({curve for run in runs if (curve := curve_of(load(run.folder / CONFIG).stage1))}, key=str)
    if not curves:
        raise DataError("none of these runs has loss gradual_balanced in stage 1, whose weight this figure shows")
    draw_curves(curves, path)


def draw_curves(curves: Sequence[Curve], path: Path) -> None:
    """Draws a line for each of `curves` to `path`.

    Raises:
        ConfigError: for more curves than there are colours to tell apart.
    """
    if len(curves) > len(MARKERS):
        raise ConfigError(f"{len(curves)} curves are too many for one figure: choose at most {len(MARKERS)}")
    figure = new_figure(4.4, 3.4)
    axis = figure.subplots()
    times = [step / 100 for step in range(101)]
    for (c, s), (color, marker) in zip(curves, MARKERS, strict=False):
        values = [gradual_weight(time, c, s) for time in times]
        axis.plot(times, values, **stroke(color), marker=marker, markevery=20, markersize=5, label=name(c, s))
    axis.set(xlabel="t / T, the part of stage 1 that is over", ylabel="α, the weight of log π", xlim=(0, 1))
    axis.grid(axis="y", color="#b0b0b0", linewidth=0.4, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    save(figure, path)


def curve_of(stage: StageConfig) -> Curve | None:
    """(c, s) of the stage's loss, if it is this one."""
    return (float(stage.loss["c"]), stage.loss["s"]) if stage.loss.get("_target_") == TARGET else None


def name(c: float, s: float | None) -> str:
    """What a curve is called: how it bends, and its c and s."""
    bend = "linear" if c == 1 else f"convex, c = {c:g}" if c > 1 else f"concave, c = {c:g}"
    return bend if s is None else f"{bend}, s = {s:g}"
