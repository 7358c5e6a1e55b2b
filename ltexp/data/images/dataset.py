"""The targets of conf/dataset/: a subset of a source's images, its held-out validation part and its test set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.config.require import is_number, is_whole, require, require_choice
from ltexp.data.intake import open_source
from ltexp.data.tail.profile import IMBALANCES
from ltexp.data.tail.selection import GIVEN, Request, choose, hash_of
from ltexp.data.types import ImageSplit, Ints, LongTailedData, Source, SourceArrays


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
        name: the dataset's name, for records.
        max_per_class: images of the largest class.
        channel_mean, channel_std: those of R, G and B, for images scaled to [0, 1].
        imbalance: `longtail`, `step` or `balanced`; see `class_sizes`, also for `imbalance_ratio`.
        imbalance_ratio: the largest class over the smallest, at least 1.
        num_classes: the first so many labels; None: all.
        subset: `seed` (default 0) chooses which images stay; it is apart from the training seed.
        validation: `fraction` (default 0) of each class's chosen images is held out, `max_per_class` (default null)
            at most; see `held_out_sizes`.

    Raises:
        ConfigError: for a setting out of range, unknown, or that leaves a class without images.
        DataError: for data that is missing, damaged or has too few images of a class.
    """
    require_choice("imbalance", imbalance, IMBALANCES)
    request = Request(name, max_per_class, imbalance, imbalance_ratio, num_classes, subset, validation)
    return _subset(request, source, Path(root), channel_mean, channel_std)


def listed_sizes(
    *,
    source: Source,
    root: str | Path,
    name: str,
    class_sizes: Sequence[int],
    channel_mean: Sequence[float],
    channel_std: Sequence[float],
    subset: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | None = None,
) -> LongTailedData:
    """Takes the first classes of a source, with listed numbers of training images and all their test images.

    Args:
        class_sizes: training images of labels 0, 1, 2 and so on; two classes at least. Later labels are left out.
        source, root, name, channel_mean, channel_std, subset, validation: see `long_tailed`.

    Raises:
        ConfigError: for a setting out of range or unknown.
        DataError: for data that is missing, damaged or has too few images of a class.
    """
    listed = isinstance(class_sizes, Sequence) and len(class_sizes) >= 2 and all(is_whole(n, 1) for n in class_sizes)
    require(listed, "class_sizes", class_sizes, "a list of at least two whole numbers of 1 or more")
    sizes = tuple(class_sizes)
    request = Request(name, None, GIVEN, None, len(sizes), subset, validation, sizes)
    return _subset(request, source, Path(root), channel_mean, channel_std)


def _subset(
    request: Request, source: Source, root: Path, channel_mean: Sequence[float], channel_std: Sequence[float]
) -> LongTailedData:
    mean = check_channels("channel_mean", channel_mean, least=0.0)
    std = check_channels("channel_std", channel_std, least=1e-6)
    arrays = open_source(source, root, SourceArrays)
    chosen = choose(request, arrays.train_labels, arrays.test_labels, arrays.class_names, arrays.unit)
    train = _split(arrays.train_images, arrays.train_labels, chosen.train)
    held = _split(arrays.train_images, arrays.train_labels, chosen.held_out) if len(chosen.held_out) else None
    test = _split(arrays.test_images, arrays.test_labels, chosen.test)
    return LongTailedData(
        name=request.name,
        imbalance=request.imbalance,
        imbalance_ratio=request.ratio,
        train=train,
        validation=held,
        test=test,
        class_names=chosen.class_names,
        subset_hash=chosen.subset_hash,
        content_hash=hash_of(train.images, train.labels),
        test_hash=hash_of(test.images, test.labels, np.array(chosen.class_names)),
        preprocessing={"channel_mean": mean, "channel_std": std},
        last_drawn=lambda each: _split(arrays.train_images, arrays.train_labels, chosen.last_drawn(each)),
        facts={"image_size": test.images.shape[1]} if test.images.shape[1] == test.images.shape[2] else {},
    )


def check_channels(key: str, values: Sequence[float], least: float) -> tuple[float, float, float]:
    """The numbers for R, G and B. Raises a ConfigError unless there are three of at least `least`."""
    fits = len(values) == 3 and all(is_number(value, least) for value in values)
    require(fits, key, list(values), f"three numbers of at least {least}, for R, G and B")
    red, green, blue = values
    return float(red), float(green), float(blue)


def _split(images: np.ndarray[Any, np.dtype[np.uint8]], labels: Ints, positions: Ints) -> ImageSplit:
    whole = len(positions) == len(labels) and bool((positions == np.arange(len(labels))).all())
    kept = np.array(images) if whole else np.asarray(images[positions])  # in memory, also from a memory map
    return ImageSplit(images=kept, labels=np.asarray(labels)[positions], index=positions)
