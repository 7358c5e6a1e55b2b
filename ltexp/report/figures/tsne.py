"""t-SNE of the features of training and test images (thesis, Fig. 5.4), after `ltexp evaluate RUN features=true`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ltexp.errors import ConfigError
from ltexp.evaluation.arrays import Floats32, Ints
from ltexp.names import unknown_name
from ltexp.report.classes import check_same_classes, chosen_classes, shown_names
from ltexp.report.drawing import MARKERS, MOST_PANELS, common, load_arrays, new_figure, titles
from ltexp.report.records import Run
from ltexp.report.saving import save
from ltexp.run_folder import FEATURES

EVALUATED = "features"
SPLITS = ("train", "test")
MOST_CLASSES = 2 * len(MARKERS)  # each colour and shape once filled and once open
PERPLEXITY = 30
WIDTH = 50  # wider features are first reduced to their principal components, as the authors of t-SNE advise


def draw(
    runs: Sequence[Run], path: Path, classes: str | None = None, samples: str = "200", split: str | None = None
) -> None:
    """Draws a column for each run and a row for each split to `path`, a colour and shape for each class.

    The splits of one run stand side by side.

    Every panel is embedded on its own, so places are not comparable between panels. The same features give the same
    panel.

    Args:
        classes: labels or names, 0,1,8,9; default: all up to ten, else ten spread over the frequencies.
        samples: images of each class at most, evenly from all that it has; default: 200.
        split: train or test; default: both.

    Raises:
        ConfigError: for a run whose features were not kept, unknown classes, or too many of anything.
    """
    splits = _splits(split)
    if not samples.isdecimal() or int(samples) < 1:
        raise ConfigError(f"invalid samples={samples}: expected a number of images of each class, from 1")
    if len(runs) * len(splits) > MOST_PANELS:
        raise ConfigError(f"{len(runs)} runs are too many for one figure: choose at most {MOST_PANELS // len(splits)}")
    check_same_classes(runs)
    shown = chosen_classes(runs[0], classes, default=10)
    if len(shown) > MOST_CLASSES:
        raise ConfigError(f"{len(shown)} classes are too many to tell apart: choose at most {MOST_CLASSES}")
    alone = len(runs) == 1
    columns, rows = (len(splits), 1) if alone else (len(runs), len(splits))
    figure = new_figure(3.2 * columns + 1.6, 3.2 * rows)  # with the legend's place
    axes = figure.subplots(rows, columns, squeeze=False)
    axes = axes.T if alone else axes
    for column, (run, title) in enumerate(zip(runs, titles(runs), strict=True)):
        kept = read(run)
        for row, name in enumerate(splits):
            features, labels = kept[f"{name}_features"], kept[f"{name}_labels"]
            chosen = choose(labels, shown, int(samples))
            panel(axes[row, column], embed(features[chosen]), labels[chosen], shown)
            shows = "training images" if name == "train" else "test images"
            if alone:
                axes[row, 0].set_title(shows, fontsize=9)
            else:
                axes[row, 0].set_ylabel(shows, fontsize=9)
                axes[0, column].set_title(title, fontsize=9)
    names, counts = shown_names(runs[0]), runs[0].record["class_counts"]
    labels_of = [f"{names[label]} ({counts[label]})" for label in shown]
    handles = axes[0, 0].collections[: len(labels_of)]
    figure.legend(
        handles,
        labels_of,
        title="class (training images)",
        loc="outside right center",
        fontsize=7,
        title_fontsize=7,
        frameon=False,
        markerscale=1.6,
    )
    heading = ", ".join(part for part in (common(runs), *(titles(runs) if alone else ())) if part)
    if heading:
        figure.suptitle(heading, fontsize=9)
    save(figure, path)


def _splits(split: str | None) -> Sequence[str]:
    if split is None:
        return SPLITS
    if split not in SPLITS:
        raise ConfigError(unknown_name("split", split, SPLITS))
    return (split,)


def read(run: Run) -> dict[str, npt.NDArray[Any]]:
    """What the run's features.npz holds of this figure.

    Raises:
        DataError: if it is missing or damaged.
    """
    names = [f"{split}_{what}" for split in SPLITS for what in ("features", "labels")]
    return load_arrays(run.folder / FEATURES, names, f"make it with ltexp evaluate {run.folder} features=true")


def choose(labels: Ints, classes: Sequence[int], samples: int) -> Ints:
    """Positions of at most `samples` images of each of `classes`, spread evenly over all that the class has."""
    found = [np.flatnonzero(labels == label) for label in classes]
    picked = [of[np.linspace(0, len(of) - 1, min(samples, len(of))).round().astype(int)] for of in found if len(of)]
    return np.concatenate(picked) if picked else np.empty(0, np.int64)


def embed(features: Floats32) -> Floats32:
    """(N, 2) places of features (N, D), N >= 4; the same for the same features.

    Raises:
        ConfigError: for fewer than four features.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(features) < 4:
        raise ConfigError(f"t-SNE of {len(features)} images shows nothing: choose more classes or samples")
    if features.shape[1] > WIDTH:
        features = PCA(min(WIDTH, len(features)), random_state=0).fit_transform(features)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    places: Floats32 = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features)
    return places


def panel(axis: Any, places: Floats32, labels: Ints, classes: Sequence[int]) -> None:
    """Draws the points of each class, in the order of `classes`, the rarest ones on top."""
    for number, label in enumerate(classes):
        color, marker = MARKERS[number % len(MARKERS)]
        hollow = number >= len(MARKERS)
        of = places[labels == label]
        face = "none" if hollow else color
        axis.scatter(
            of[:, 0], of[:, 1], s=9, marker=marker, facecolors=face, edgecolors=color, linewidths=0.6, zorder=2 + number
        )
    axis.set(xticks=[], yticks=[])
