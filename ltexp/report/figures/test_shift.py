"""Accuracy on test sets from a forward over a uniform to a backward long tail (as in SADE, NeurIPS 2022)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltexp.config.require import require_choice
from ltexp.errors import DataError
from ltexp.evaluation.shifted import PRIORS, SHIFTS
from ltexp.report.drawing import MARKERS, common, experiments, legend_below, new_figure, stroke
from ltexp.report.records import Run
from ltexp.report.saving import save
from ltexp.report.shifted import shifted_accuracies


def draw(runs: Sequence[Run], path: Path, prior: str = "unknown") -> None:
    """Draws a line for each experiment to `path`; seeds are averaged, their standard deviation a bar.

    Args:
        prior: unknown | known | estimated: what the model is told of the test set's class shares.

    Raises:
        ConfigError: for another prior, or more experiments than there are colours to tell apart.
        DataError: for a run without the predictions that a known or estimated prior needs.
    """
    require_choice("prior", prior, PRIORS)
    found = experiments(runs)
    figure = new_figure(6.4, 3.8)
    axis = figure.subplots()
    for (name, seeds), (color, marker) in zip(found, MARKERS, strict=False):
        values = np.asarray([_accuracies(run, prior) for run in seeds])
        spread = values.std(axis=0, ddof=1) if len(seeds) > 1 else None
        axis.errorbar(
            range(len(SHIFTS)),
            values.mean(axis=0),
            yerr=spread,
            marker=marker,
            markersize=4.5,
            capsize=2,
            elinewidth=0.8,
            label=name,
            **stroke(color, 0.8),
        )
    axis.set_xticks(range(len(SHIFTS)), [shift.short for shift in SHIFTS], fontsize=8)
    axis.set_xlabel("test shares: forward (F) and backward (B) long tails by their ratio, uniform (U)", fontsize=9)
    axis.set_ylabel(f"accuracy (%), {prior} prior", fontsize=9)
    axis.grid(axis="y", color="#b0b0b0", linewidth=0.4, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(common(runs), fontsize=9)
    legend_below(figure, [name for name, _ in found])
    save(figure, path)


def _accuracies(run: Run, prior: str) -> list[float]:
    found = shifted_accuracies(run)
    if prior not in found:
        raise DataError(f"{run.folder} has not both predictions.npz and config.yaml: only prior=unknown can be drawn")
    return found[prior]
