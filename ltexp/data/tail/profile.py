"""How many images of each class a long-tailed subset holds, and which ones.

The profiles, the order of the classes and the selection are those of Cao et al. (LDAM-DRW, NeurIPS 2019), which the
field's CIFAR-LT results share: label 0 is the largest class, sizes are cut to whole numbers, and seed 0 is the subset
that most papers train on.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from ltexp.config.require import is_number, is_whole, require, require_choice
from ltexp.data.types import Ints
from ltexp.errors import SettingError

IMBALANCES = ("longtail", "step", "balanced")


def check_profile(max_per_class: object, imbalance: object, ratio: object) -> None:
    """Raises a ConfigError unless the three describe a profile (`class_sizes` also looks at the classes)."""
    require_choice("imbalance", imbalance, IMBALANCES)
    require(is_whole(max_per_class, 1), "max_per_class", max_per_class, "a whole number of 1 or more")
    at_least = "a number of at least 1 (the largest class over the smallest)"
    require(is_number(ratio, 1), "imbalance_ratio", ratio, at_least)


def class_sizes(
    max_per_class: int,
    num_classes: int,
    imbalance: str = "longtail",
    ratio: float = 100.0,
    class_names: Sequence[str] | None = None,
) -> list[int]:
    """The number of training images of each class.

    Args:
        max_per_class: images of the largest class, n_max (CIFAR-10: 5000, CIFAR-100: 500).
        num_classes: C, at least 2.
        imbalance: `longtail`: class c has n_max * ratio^(-c/(C-1)) images; `step`: the first half of the labels
            has n_max, the rest n_max/ratio; `balanced`: all have n_max. Fractions are cut off.
        ratio: n_max over the smallest class, at least 1; without effect for `balanced`.
        class_names: the classes' names, for messages.

    Raises:
        ConfigError: for a value out of range, or a ratio that leaves a class without images.
    """
    check_profile(max_per_class, imbalance, ratio)
    require(is_whole(num_classes, 2), "num_classes", num_classes, "a whole number of 2 or more")
    sizes = _profile(max_per_class, num_classes, imbalance, ratio)
    empty = [label for label, size in enumerate(sizes) if size == 0]
    if empty:
        highest = next(r for r in range(max_per_class, 0, -1) if _profile(max_per_class, 2, imbalance, r)[-1] >= 1)
        raise SettingError(
            "imbalance_ratio",
            f"{ratio:g}",
            f"at most {highest} with max_per_class={max_per_class}; it leaves {len(empty)} of {num_classes} classes "
            f"without training images: {name_classes(empty, class_names)}; the counts would be {compact_counts(sizes)}",
        )
    return sizes


def _profile(max_per_class: int, num_classes: int, imbalance: str, ratio: float) -> list[int]:
    if imbalance == "balanced":
        return [max_per_class] * num_classes
    # 1/ratio first, as in the field's code: the order of operations decides which side of a whole number a size falls
    share = 1 / ratio
    if imbalance == "step":
        head = num_classes // 2
        return [max_per_class] * head + [int(max_per_class * share)] * (num_classes - head)
    return [int(max_per_class * share ** (label / (num_classes - 1.0))) for label in range(num_classes)]


def workable(available: Ints, max_per_class: int, imbalance: str, ratio: float) -> tuple[int | None, int | None]:
    """The nearest settings for which every class has enough images, when these ask for too many.

    Args:
        available: int64 (C,), the images that each class has.

    Returns:
        (ratio, max_per_class): the lowest whole ratio from `ratio` on that works with this `max_per_class`, and the
        highest `max_per_class` that works with this ratio; None where there is none.
    """

    def fits(largest: int, ratio: float) -> bool:
        sizes = np.array(_profile(largest, len(available), imbalance, ratio))
        return bool((sizes <= available).all() and (sizes >= 1).all())

    ratios: Iterator[int] = iter(range(math.ceil(ratio), max_per_class + 1))
    some = imbalance != "balanced" and max_per_class <= available[0]  # the first class has max_per_class at any ratio
    lowest = None if not some else next((r for r in ratios if fits(max_per_class, r)), None)
    return lowest, next((m for m in range(min(max_per_class, int(available[0])), 0, -1) if fits(m, ratio)), None)


def choose_subset(labels: Ints, sizes: Sequence[int], seed: int) -> Ints:
    """Positions of the images that a subset keeps.

    In ascending label order, the positions of each class are shuffled and the first ones kept.

    Args:
        labels: int64 (N,), every image's class; classes from `len(sizes)` on are left out.
        sizes: the number of images of each class to keep; the class must have as many.
        seed: the seed of NumPy's legacy generator, 0 to 2**32 - 1. 0 is the subset of LDAM-DRW, MiSLAS, GCL and FBL.

    Returns:
        int64 (sum of sizes,), sorted by class and, within a class, in the order drawn.
    """
    kept = []
    for label, positions in enumerate(_shuffled_classes(labels, len(sizes), seed)):
        assert sizes[label] <= len(positions), (label, sizes[label], len(positions))
        kept.append(positions[: sizes[label]])
    return np.concatenate(kept).astype(np.int64, copy=False)


def last_drawn(labels: Ints, num_classes: int, seed: int, held_out: Ints, per_class: int) -> Ints:
    """Positions of the last `per_class` images of each class in the order of `choose_subset`, sorted by class.

    They are apart from the subset wherever a class has so many more images than the subset keeps.

    Args:
        held_out: positions that are passed over: validation images.

    Returns:
        int64 (num_classes * per_class,); fewer where a class has fewer images.
    """
    free = np.ones(len(labels), dtype=bool)
    free[held_out] = False
    orders = _shuffled_classes(labels, num_classes, seed)
    return np.concatenate([order[free[order]][-per_class:] for order in orders]).astype(np.int64, copy=False)


def _shuffled_classes(labels: Ints, num_classes: int, seed: int) -> Iterator[Ints]:
    """The positions of each class in a random order."""
    draws = np.random.RandomState(seed)
    by_class = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))
    for label in range(num_classes):
        positions = by_class[ends[label - 1] if label else 0 : ends[label]]
        draws.shuffle(positions)
        yield positions


def held_out_sizes(sizes: Sequence[int], fraction: float, max_per_class: int | None = None) -> list[int]:
    """How many images of each class become validation images.

    Args:
        sizes: the chosen training images of each class.
        fraction: their share, cut to a whole number but at least 1; 0 holds out none. One image always stays in train.
        max_per_class: at most so many of a class; None: no limit.
    """
    if fraction == 0:
        return [0] * len(sizes)
    most = math.inf if max_per_class is None else max_per_class
    # the tiny addend keeps 0.29 * 100 at 29
    return [int(min(max(1, math.floor(size * fraction + 1e-9)), most, size - 1)) for size in sizes]


def compact_counts(counts: Sequence[int]) -> str:
    """Class counts on one line; runs of equal counts are written once, such as `5000 x5, 50 x5`."""
    runs = [(count, len(list(run))) for count, run in groupby(counts)]
    return ", ".join(f"{count} x{length}" if length > 1 else str(count) for count, length in runs)


def name_classes(labels: Sequence[int], class_names: Sequence[str] | None, most: int = 12) -> str:
    """The classes by label and name, cut after `most`."""
    named = [name_class(label, class_names) for label in labels[:most]]
    rest = len(labels) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest else "")


def name_class(label: int, class_names: Sequence[str] | None) -> str:
    """`5 (dog)`, or the label alone where its name says no more."""
    return f"{label} ({class_names[label]})" if class_names and class_names[label] != str(label) else str(label)
