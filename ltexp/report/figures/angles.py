"""Angles of features to two classes' weights (thesis, Figs. 3.5 and 3.6), after `ltexp evaluate RUN features=true`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ltexp.errors import ConfigError
from ltexp.evaluation.arrays import Floats32, Ints
from ltexp.report.classes import by_frequency, check_same_classes, chosen_classes, shown_names
from ltexp.report.drawing import MARKERS, common, load_arrays, panels, titles
from ltexp.report.figures.tsne import choose
from ltexp.report.records import Run
from ltexp.report.saving import save
from ltexp.run_folder import FEATURES

EVALUATED = "features"


def draw(
    runs: Sequence[Run], path: Path, classes: str | None = None, samples: str = "300", split: str = "train"
) -> None:
    """Draws a panel for each run to `path`: a point for each image, by its angles to the weights of two classes.

    On the dashed diagonal both angles are equal, which is where a cosine classifier decides between the two; beyond the
    dotted lines a feature is more than a right angle off.

    Args:
        classes: labels or names; the angles are those to the first two. Default: the most and the least frequent class,
            then the others, seven at most.
        samples: images of each class at most, evenly from all that it has; default: 300.
        split: train or test; default: train.

    Raises:
        ConfigError: for a run whose features were not kept, unknown classes, or too many of anything.
    """
    if not samples.isdecimal() or int(samples) < 1:
        raise ConfigError(f"invalid samples={samples}: expected a number of images of each class, from 1")
    if split not in ("train", "test"):
        raise ConfigError(f"invalid split={split}: expected train | test")
    check_same_classes(runs)
    order = by_frequency(runs[0])
    usual = [int(order[0]), int(order[-1]), *map(int, order[1:-1])][: len(MARKERS)]
    shown = usual if classes is None else chosen_classes(runs[0], classes, default=2)
    if not 2 <= len(shown) <= len(MARKERS):
        raise ConfigError(f"classes={classes or len(shown)}: choose two to {len(MARKERS)} classes")
    figure, axes = panels(runs, 3.2, 3.4)
    names, counts = shown_names(runs[0]), runs[0].record["class_counts"]
    points = [_points(run, shown, int(samples), split) for run in runs]
    # the same for all panels, so that they can be compared
    low = max(0.0, min(float(places.min()) for places, _ in points) - 5)
    high = min(180.0, max(float(places.max()) for places, _ in points) + 5)
    for axis, title, (places, labels) in zip(axes, titles(runs), points, strict=True):
        _panel(axis, places, labels, shown)
        axis.plot([low, high], [low, high], color="black", linewidth=0.8, linestyle=(0, (5, 3)), zorder=1)
        axis.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(f"angle to the weight of {names[shown[0]]} (°)", fontsize=8)
        axis.set_ylabel(f"angle to the weight of {names[shown[1]]} (°)", fontsize=8)
    labels_of = [f"{names[label]} ({counts[label]} training images)" for label in shown]
    figure.legend(
        axes[0].collections[: len(shown)],
        labels_of,
        loc="outside lower center",
        ncols=min(len(shown), 2 * len(runs)),
        fontsize=8,
        frameon=False,
        markerscale=1.8,
    )
    heading = ", ".join(part for part in (common(runs), f"{'training' if split == 'train' else split} images") if part)
    figure.suptitle(heading, fontsize=9)
    save(figure, path)


def read(run: Run) -> dict[str, npt.NDArray[Any]]:
    """What the run's features.npz holds of this figure.

    Raises:
        DataError: if it is missing, damaged, or of a time before the classifier's weight was kept.
    """
    names = [f"{split}_{what}" for split in ("train", "test") for what in ("features", "labels")]
    advice = f"make it with ltexp evaluate {run.folder} features=true"
    return load_arrays(run.folder / FEATURES, [*names, "classifier_weight"], advice)


def angles(features: Floats32, weight: Floats32) -> Floats32:
    """(N, K) angles in degrees between features (N, D) and weights (K, D)."""
    lengths = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(weight, axis=1)
    cosines = features @ weight.T / np.maximum(lengths, 1e-12)
    found: Floats32 = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    return found


def _points(run: Run, classes: Sequence[int], samples: int, split: str) -> tuple[Floats32, Ints]:
    """(angles (N, 2) to the weights of the first two classes, labels (N,)) of up to `samples` images of each class."""
    kept = read(run)
    labels = kept[f"{split}_labels"]
    chosen = choose(labels, classes, samples)
    return angles(kept[f"{split}_features"][chosen], kept["classifier_weight"][classes[:2]]), labels[chosen]


def _panel(axis: Any, places: Floats32, labels: Ints, classes: Sequence[int]) -> None:
    for number, (label, (color, marker)) in enumerate(zip(classes, MARKERS, strict=False)):
        of = places[labels == label]
        axis.scatter(of[:, 0], of[:, 1], s=7, marker=marker, color=color, alpha=0.6, linewidths=0, zorder=2 + number)
    for line in (axis.axvline, axis.axhline):
        line(90, color="#666666", linewidth=0.8, linestyle=":", zorder=1)
    axis.tick_params(labelsize=7)
