"""Predicted probability of the true class over many-, medium- and few-shot classes (MiSLAS, Fig. 3)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltexp.errors import DataError
from ltexp.evaluation.arrays import Floats
from ltexp.evaluation.shots import ShotRule
from ltexp.report.drawing import MARKERS, common, experiments, legend_below, load_predictions, new_figure
from ltexp.report.records import Run
from ltexp.report.saving import save


def draw(runs: Sequence[Run], path: Path) -> None:
    """Draws a violin for each group of classes and each experiment to `path`, with its median.

    The seeds of an experiment are put together.

    Raises:
        ConfigError: for too many experiments.
        DataError: for runs whose predictions cannot be read, or without any group of classes.
    """
    found = experiments(runs)
    values = [[probabilities(run) for run in seeds] for _, seeds in found]
    groups = [name for name in ("many", "medium", "few") if all(name in of for seeds in values for of in seeds)]
    if not groups:
        raise DataError("these runs have no group of many-, medium- or few-shot classes in common with test images")
    figure = new_figure(6.4, 3.6)
    axis = figure.subplots()
    width = 0.8 / len(found)
    for number, ((name, _), seeds, (color, marker)) in enumerate(zip(found, values, MARKERS, strict=False)):
        places = np.arange(len(groups)) + (number - (len(found) - 1) / 2) * width
        together = [np.concatenate([of[group] for of in seeds]) for group in groups]
        drawn = axis.violinplot(together, places, widths=0.9 * width, showextrema=False)
        for body in drawn["bodies"]:
            body.set(facecolor=color, edgecolor=color, alpha=0.5)
        axis.plot(places, [np.median(of) for of in together], linestyle="", color=color, marker=marker, label=name)
    axis.set_xticks(np.arange(len(groups)), [f"{group}-shot classes" for group in groups], fontsize=9)
    axis.set_ylabel("probability of the true class", fontsize=9)
    axis.set(ylim=(-0.02, 1.02), xlim=(-0.5, len(groups) - 0.5))
    axis.grid(axis="y", color="#b0b0b0", linewidth=0.4, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(common(runs), fontsize=9)
    legend_below(figure, [name for name, _ in found])
    save(figure, path)


def probabilities(run: Run) -> dict[str, Floats]:
    """By the name of each shot group that has test images: the softmax's probability of their true classes.

    Raises:
        DataError: if the predictions cannot be read, or the record's shot rule is of another form.
    """
    logits, labels = load_predictions(run)
    rule = ShotRule.from_text(run.record["shot_rule"])
    if rule is None:
        raise DataError(f"the record in {run.folder} has a shot rule that this figure does not know")
    scores = logits.astype(np.float64)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    of_true = scores[np.arange(len(labels)), labels] / scores.sum(axis=1)
    masks = rule.groups(np.asarray(run.record["class_counts"]))
    found = {name: of_true[mask[labels]] for name, mask in masks.items()}
    return {name: of for name, of in found.items() if len(of)}
