"""Norm of the classifier's weight for each class (MiSLAS, CVPR 2021, Fig. 2)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.errors import ConfigError, DataError
from ltexp.evaluation.arrays import Floats
from ltexp.names import unknown_name
from ltexp.report.classes import MOST_CLASSES, by_frequency, check_same_classes, shown_names
from ltexp.report.drawing import MARKERS, common, experiments, legend_below, new_figure, stroke
from ltexp.report.records import Run
from ltexp.report.saving import save


def draw(runs: Sequence[Run], path: Path, stage: str | None = None) -> None:
    """Draws a line for each experiment to `path`, classes from the most to the least frequent; seeds are averaged.

    Of more than 20 classes the norms are light and their mean over neighbours is dark. It is the norm that the logits
    use: with learnable weight scaling its factor counts, and of a cosine classifier every norm is 1.

    Args:
        stage: whose classifier, stage1 or stage2; default: the last one of each run.

    Raises:
        ConfigError: for runs of other class counts, too many experiments, or a run without such a stage.
        DataError: for a run without norms.
    """
    check_same_classes(runs)
    order = by_frequency(runs[0])
    figure = new_figure(6.0, 3.6)
    axis = figure.subplots()
    found = experiments(runs)
    places = np.arange(1, len(order) + 1)
    for (name, seeds), (color, marker) in zip(found, MARKERS, strict=False):
        values = np.mean([_norms(run, stage) for run in seeds], axis=0)[order]
        if len(order) <= MOST_CLASSES:
            axis.plot(places, values, marker=marker, markersize=5, **stroke(color), label=name)
        else:
            axis.plot(places, values, color=color, linewidth=0.6, alpha=0.4)
            axis.plot(places, _smooth(values), **stroke(color), label=name)
            step = max(len(order) // 10, 1)
            axis.plot(places[::step], _smooth(values)[::step], color=color, marker=marker, markersize=5, linestyle="")
    if len(order) <= MOST_CLASSES:
        axis.set_xticks(places, [shown_names(runs[0])[label] for label in order], fontsize=8)
    axis.set_xlabel("class, from the most to the least frequent", fontsize=9)
    axis.set_ylabel(f"norm of the classifier's weight{f' after {stage}' if stage else ''}", fontsize=9)
    axis.set_ylim(bottom=0)
    axis.grid(axis="y", color="#b0b0b0", linewidth=0.4, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(common(runs), fontsize=9)
    legend_below(figure, [name for name, _ in found])
    save(figure, path)


def _norms(run: Run, stage: str | None) -> Floats:
    """(C,) norms in label order."""
    stages: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in run.record["stages"]}
    name = stage or list(stages)[-1]
    if name not in stages:
        raise ConfigError(unknown_name(f"stage of {run.folder}", name, stages))
    norms = stages[name].get("weight_norms")
    if not norms and "weight_norms" in stages[name]:
        kind = stages[name].get("classifier") or "classifier"
        others = [own for own, entry in stages.items() if entry.get("weight_norms")]
        hint = f": stage={others[-1]} has" if others else ""
        raise DataError(f"the {kind} of {name} in {run.folder} equals no linear map and has no weight norms{hint}")
    if not norms:
        raise DataError(f"the record in {run.folder} has no weight norms of {name}: train the run again")
    if len(norms) != len(run.record["class_counts"]):
        raise ConfigError(
            f"{name} of {run.folder} tells labels of its own, not the dataset's classes: name another stage"
        )
    return np.asarray(norms, dtype=np.float64)


def _smooth(values: Floats) -> Floats:
    """Means over a twentieth of the classes around each; fewer at the ends."""
    reach = max(len(values) // 40, 1)
    around = [values[max(place - reach, 0) : place + reach + 1] for place in range(len(values))]
    return np.asarray([window.mean() for window in around])
