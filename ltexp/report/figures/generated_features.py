"""Real and generated features of tail classes on two principal components, after `ltexp evaluate RUN features=true`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ltexp.errors import ConfigError
from ltexp.evaluation.arrays import Floats32
from ltexp.report.classes import check_same_classes, chosen_classes, shown_names
from ltexp.report.drawing import BLACK, BLUE, MOST_PANELS, ORANGE, common, load_arrays, new_figure, titles
from ltexp.report.records import Run
from ltexp.report.saving import save
from ltexp.run_folder import FEATURES

EVALUATED = "features"
GROUPS = (("test", "test images", BLUE, "o", 8), ("generated", "generated", ORANGE, "x", 10))
DRAWN_LAST = ("train", "training images", BLACK, "*", 70)


def draw(runs: Sequence[Run], path: Path, classes: str | None = None) -> None:
    """Draws a column for each run and a row for each class to `path`.

    A panel's two directions are the principal components of its class's features, real and generated together; so
    places are not comparable between panels.

    Args:
        classes: labels or names of tail classes, 90,95; default: the rarest one.

    Raises:
        ConfigError: for a run whose features were not kept or that generates none, or a class of which none are made.
    """
    check_same_classes(runs)
    rarest = int(np.argmin(runs[0].record["class_counts"]))
    shown = [rarest] if classes is None else chosen_classes(runs[0], classes, default=1)
    if len(runs) * len(shown) > MOST_PANELS:
        raise ConfigError(f"{len(runs)} runs and {len(shown)} classes are too many: at most {MOST_PANELS} panels")
    figure = new_figure(3.4 * len(runs), 3.2 * len(shown))
    axes = figure.subplots(len(shown), len(runs), squeeze=False)
    names, counts = shown_names(runs[0]), runs[0].record["class_counts"]
    for column, (run, title) in enumerate(zip(runs, titles(runs), strict=True)):
        kept = read(run)
        for row, label in enumerate(shown):
            _panel(axes[row, column], kept, label)
            axes[row, 0].set_ylabel(f"{names[label]} ({counts[label]} training images)", fontsize=9)
        axes[0, column].set_title(title, fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    if common(runs):
        figure.suptitle(common(runs), fontsize=9)
    save(figure, path)


def read(run: Run) -> dict[str, npt.NDArray[Any]]:
    """What the run's features.npz holds of this figure.

    Raises:
        DataError: if it is missing, damaged, or of a run that generates none.
    """
    names = [f"{split}_{what}" for split in ("train", "test", "generated") for what in ("features", "labels")]
    advice = f"of a run with generated features, ltexp evaluate {run.folder} features=true makes it"
    return load_arrays(run.folder / FEATURES, names, advice)


def components(features: Floats32) -> tuple[Floats32, Floats32]:
    """(mean (D,), directions (2, D)) of the two largest principal components of features (N, D)."""
    mean = features.mean(0)
    directions: Floats32 = np.linalg.svd(features - mean, full_matrices=False)[2][:2]
    return mean, directions


def _panel(axis: Any, kept: dict[str, npt.NDArray[Any]], label: int) -> None:
    own = {kind: kept[f"{kind}_features"][kept[f"{kind}_labels"] == label] for kind in ("train", "test", "generated")}
    if len(own["generated"]) == 0:
        raise ConfigError(f"no features of class {label} are generated: choose tail classes with classes=")
    mean, directions = components(np.concatenate(list(own.values())))
    for kind, name, color, marker, size in (*GROUPS, DRAWN_LAST):
        places = (own[kind] - mean) @ directions.T
        axis.scatter(places[:, 0], places[:, 1], s=size, marker=marker, color=color, linewidths=0.7, label=name)
    axis.set(xticks=[], yticks=[])
