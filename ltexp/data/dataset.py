"""The target of conf/dataset/: a source's long-tailed subset, its held-out validation part and its test set."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.data.longtail import (
    check_profile,
    choose_subset,
    class_sizes,
    compact_counts,
    held_out_sizes,
    name_class,
    require_number,
    require_whole,
    workable,
)
from ltexp.data.types import ImageSplit, Ints, LongTailedData, Source, SourceArrays
from ltexp.errors import ConfigError, DataError
from ltexp.names import unknown_name


def long_tailed(
    *,
    source: Source,
    root: str | Path,
    name: str,
    max_per_class: int,
    channel_mean: Sequence[float],
    channel_std: Sequence[float],
    imbalance: str = "longtail",
    imbalance_ratio: float = 100.0,
    num_classes: int | None = None,
    subset: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | None = None,
) -> LongTailedData:
    """Takes a long-tailed subset of a source's training images. Imports no torch and leaves global generators alone.

    Args:
        source: where the images come from.
        root: the data root.
        name: of the dataset, for records.
        max_per_class: images of the largest class.
        channel_mean, channel_std: of R, G and B, for images scaled to [0, 1].
        imbalance: `longtail`, `step` or `balanced`; see `class_sizes`, also for `imbalance_ratio`.
        imbalance_ratio: of the largest class over the smallest, at least 1.
        num_classes: the first so many labels; None: all.
        subset: `seed` (default 0) chooses which images stay; it is apart from the training seed.
        validation: `fraction` (default 0) of each class's chosen images is held out, `max_per_class` (default null)
            at most; see `held_out_sizes`.

    Raises:
        ConfigError: for a setting out of range, unknown, or that leaves a class without images.
        DataError: for data that is missing, damaged or has too few images of a class.
    """
    check_profile(max_per_class, imbalance, imbalance_ratio)
    require_whole("dataset.num_classes", num_classes, least=2, optional=True)
    seed = _subset_seed(subset)
    fraction, most_held = _validation(validation)
    mean = _channels("dataset.channel_mean", channel_mean, least=0.0)
    std = _channels("dataset.channel_std", channel_std, least=1e-6)

    arrays = source.open(Path(root))
    names = _first_classes(name, arrays, num_classes)
    sizes = class_sizes(max_per_class, len(names), imbalance, imbalance_ratio, names)
    _check_enough(name, names, arrays.train_labels, sizes, imbalance, imbalance_ratio)

    chosen = choose_subset(arrays.train_labels, sizes, seed)
    held = _mark_last(sizes, held_out_sizes(sizes, fraction, most_held))
    if fraction > 0 and not held.any():
        raise ConfigError("dataset.validation.fraction holds nothing out: no class has more than one training image")
    train = _split(arrays.train_images, arrays.train_labels, chosen[~held])
    tested = np.flatnonzero(arrays.test_labels < len(names)).astype(np.int64, copy=False)
    return LongTailedData(
        name=name,
        imbalance=imbalance,
        imbalance_ratio=1.0 if imbalance == "balanced" else float(imbalance_ratio),
        train=train,
        validation=_split(arrays.train_images, arrays.train_labels, chosen[held]) if held.any() else None,
        test=_split(arrays.test_images, arrays.test_labels, tested),
        class_names=names,
        class_counts=np.bincount(train.labels, minlength=len(names)).astype(np.int64),
        subset_hash=_hash(chosen),
        content_hash=_hash(train.images, train.labels),
        preprocessing={"channel_mean": mean, "channel_std": std},
    )


def _subset_seed(subset: Mapping[str, Any] | None) -> int:
    seed: int = _known("dataset.subset", subset, {"seed": 0})["seed"]
    require_whole("dataset.subset.seed", seed, least=0, most=2**32 - 1)
    return seed


def _validation(validation: Mapping[str, Any] | None) -> tuple[float, int | None]:
    """(fraction, most of a class)."""
    settings = _known("dataset.validation", validation, {"fraction": 0.0, "max_per_class": None})
    require_number("dataset.validation.fraction", settings["fraction"], least=0, below=1)
    require_whole("dataset.validation.max_per_class", settings["max_per_class"], least=1, optional=True)
    return settings["fraction"], settings["max_per_class"]


def _known(key: str, given: Mapping[str, Any] | None, defaults: dict[str, Any]) -> dict[str, Any]:
    for name in given or {}:
        if name not in defaults:
            raise ConfigError(unknown_name("key", f"{key}.{name}", [f"{key}.{known}" for known in defaults]))
    return defaults | dict(given or {})


def _channels(key: str, values: Sequence[float], least: float) -> tuple[float, float, float]:
    if len(values) != 3:
        raise ConfigError(f"{key}={list(values)} cannot be: expected three numbers, for R, G and B")
    for value in values:
        require_number(key, value, least=least)
    red, green, blue = values
    return float(red), float(green), float(blue)


def _first_classes(name: str, arrays: SourceArrays, num_classes: int | None) -> tuple[str, ...]:
    available = len(arrays.class_names)
    if num_classes is not None and num_classes > available:
        raise ConfigError(f"dataset.num_classes={num_classes} cannot be: {name} has {available} classes (null: all)")
    return arrays.class_names[:num_classes]


def _check_enough(
    name: str, names: tuple[str, ...], labels: Ints, sizes: list[int], imbalance: str, ratio: float
) -> None:
    available: Ints = np.bincount(labels, minlength=len(names))[: len(names)].astype(np.int64)
    short = [label for label, size in enumerate(sizes) if available[label] < size]
    if not short:
        return
    lowest, largest = workable(available, sizes[0], imbalance, ratio)
    ways = [f"imbalance_ratio={lowest} or more"] if lowest is not None else []
    ways += [f"max_per_class={largest} or less"] if largest is not None else []
    listed = ", ".join(f"class {name_class(c, names)} has {available[c]} of {sizes[c]}" for c in short[:5])
    more = f" and {len(short) - 5} more classes" if len(short) > 5 else ""
    remedy = f"what is there suffices for {', or for '.join(ways)}" if ways else "complete the data"
    asked = imbalance if imbalance == "balanced" else f"{imbalance}, ratio {ratio:g}"
    has = f"it has {compact_counts(available.tolist())}" if len(names) <= 20 else f"{len(short)} classes are short"
    raise DataError(f"{name} has too few training images for {asked}: {listed}{more} ({has}); {remedy}")


def _mark_last(sizes: Sequence[int], held: Sequence[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Marks the last `held[c]` of each class's `sizes[c]` positions: they were drawn at random already."""
    return np.concatenate([np.arange(size) >= size - last for size, last in zip(sizes, held, strict=True)])


def _split(images: np.ndarray[Any, np.dtype[np.uint8]], labels: Ints, positions: Ints) -> ImageSplit:
    whole = len(positions) == len(labels) and bool((positions == np.arange(len(labels))).all())
    kept = np.array(images) if whole else np.asarray(images[positions])  # in memory, also from a memory map
    return ImageSplit(images=kept, labels=np.asarray(labels)[positions], index=positions)


def _hash(*arrays: np.ndarray[Any, Any]) -> str:
    state = hashlib.blake2b(digest_size=10)
    for array in arrays:
        state.update(f"{array.dtype.str[1:]}{array.shape}".encode())
        state.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
    return state.hexdigest()
