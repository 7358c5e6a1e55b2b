"""Which samples of a source a long-tailed dataset holds: for training, held out of it, and for the test."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ltexp.config.require import is_number, is_whole, require
from ltexp.config.schema import USUAL_RATIO
from ltexp.data.tail.profile import (
    check_profile,
    choose_subset,
    class_sizes,
    compact_counts,
    held_out_sizes,
    last_drawn,
    name_class,
    name_classes,
    workable,
)
from ltexp.data.types import Ints
from ltexp.errors import DataError, SettingError, UnknownKeyError

GIVEN = "given"  # the imbalance of a dataset that is taken as it is


@dataclass(frozen=True)
class Request:
    """What is asked for; `long_tailed` explains each.

    `imbalance` may also be `given`: every sample that there is, or `class_sizes` of each class. A `max_per_class` of
    None stands for the largest that the classes can fill, an `imbalance_ratio` of None for the usual one.

    Raises:
        ConfigError: for a setting out of range or unknown.
    """

    name: str
    max_per_class: int | None
    imbalance: str
    imbalance_ratio: float | None
    num_classes: int | None
    subset: Mapping[str, Any] | None
    validation: Mapping[str, Any] | None
    class_sizes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.imbalance != GIVEN:
            check_profile(self.max_per_class or 1, self.imbalance, self.asked_ratio)
        else:
            for key in ("max_per_class", "imbalance_ratio"):
                value = getattr(self, key)
                require(value is None, key, value, "null, or imbalance=longtail to cut a tail")
        classes = self.num_classes
        require(classes is None or is_whole(classes, 2), "num_classes", classes, "a whole number of 2 or more, or null")
        _subset_seed(self.subset)
        read_held_out("validation", self.validation)

    @property
    def asked_ratio(self) -> float:
        """Of a tail that is cut."""
        return USUAL_RATIO if self.imbalance_ratio is None else self.imbalance_ratio

    @property
    def ratio(self) -> float:
        """The imbalance ratio: 1.0 for `balanced`, that of `class_sizes` where they are listed."""
        if self.class_sizes is not None:
            return max(self.class_sizes) / min(self.class_sizes)
        return 1.0 if self.imbalance == "balanced" else float(self.asked_ratio)


@dataclass(frozen=True, eq=False)
class SubsetIndices:
    """The samples of a long-tailed dataset, as int64 positions in the source's training and test samples.

    Attributes:
        class_names: C names.
        train: the training samples, sorted by class.
        held_out: the training samples that are held out, sorted by class; may be empty.
        test: the test samples, in the source's order.
        subset_hash: a hash of `train` and `held_out` together.
        last_drawn: the last images of each class, so many of each, in the order that `train` holds the first ones of;
            none of `held_out`.
    """

    class_names: tuple[str, ...]
    train: Ints
    held_out: Ints
    test: Ints
    subset_hash: str
    last_drawn: Callable[[int], Ints]


def choose(
    request: Request, train_labels: Ints, test_labels: Ints, class_names: tuple[str, ...], unit: str
) -> SubsetIndices:
    """Chooses the samples.

    Args:
        request: what is asked for.
        train_labels: int64 (N,), positions in `class_names`; so is `test_labels`.
        class_names: those of the source.
        unit: what a sample is called, in the plural.

    Raises:
        ConfigError: for a setting that leaves a class without samples.
        DataError: for too few samples of a class.
    """
    names = _first_classes(request.name, class_names, request.num_classes)
    sizes = _sizes(request, names, train_labels, unit)
    chosen = choose_subset(train_labels, sizes, _subset_seed(request.subset))
    fraction, most_held = read_held_out("validation", request.validation)
    held = _mark_last(sizes, held_out_sizes(sizes, fraction, most_held))
    if fraction > 0 and not held.any():
        raise SettingError("validation.fraction", fraction, f"0, since no class has more than one of the {unit}")
    tested = np.flatnonzero(test_labels < len(names)).astype(np.int64, copy=False)
    last = partial(last_drawn, train_labels, len(names), _subset_seed(request.subset), chosen[held])
    return SubsetIndices(names, chosen[~held], chosen[held], tested, hash_of(chosen), last)


def _sizes(request: Request, names: tuple[str, ...], labels: Ints, unit: str) -> list[int]:
    """The training samples of each class."""
    available: Ints = np.bincount(labels, minlength=len(names))[: len(names)].astype(np.int64)
    if request.class_sizes is not None:
        _check_listed(request, names, available, unit)
        return list(request.class_sizes)
    if request.imbalance == GIVEN:
        if empty := np.flatnonzero(available == 0).tolist():
            listed = name_classes(empty, names)
            raise DataError(f"{request.name} has no training {unit} of {len(empty)} classes: {listed}")
        return [int(count) for count in available]
    largest = request.max_per_class
    if largest is None:
        largest = workable(available, int(available.max()), request.imbalance, request.ratio)[1]
        if largest is None:
            raise DataError(
                f"{request.name} cannot be cut to ratio {request.ratio:g}: classes have {available.min():,} "
                f"to {available.max():,} training {unit}; lower dataset.imbalance_ratio"
            )
    sizes = class_sizes(largest, len(names), request.imbalance, request.ratio, names)
    _check_enough(names, available, sizes, request, unit)
    return sizes


def _subset_seed(subset: Mapping[str, Any] | None) -> int:
    seed: int = _known("subset", subset, {"seed": 0})["seed"]
    require(is_whole(seed, 0, 2**32 - 1), "subset.seed", seed, f"a whole number from 0 to {2**32 - 1}")
    return seed


def read_held_out(key: str, given: Mapping[str, Any] | None) -> tuple[float, int | None]:
    """(fraction, most of a class) of what is held out.

    Raises:
        ConfigError: for what is out of range, unknown or without effect.
    """
    settings = _known(key, given, {"fraction": 0.0, "max_per_class": None})
    fraction, most = settings["fraction"], settings["max_per_class"]
    share = is_number(fraction, 0) and fraction < 1
    require(share, f"{key}.fraction", fraction, "a number of at least 0 and below 1")
    require(most is None or is_whole(most, 1), f"{key}.max_per_class", most, "a whole number of 1 or more, or null")
    held_out = most is None or fraction > 0
    require(held_out, f"{key}.max_per_class", most, f"null, or {key}.fraction above 0 to hold some out")
    return fraction, most


def _known(key: str, given: Mapping[str, Any] | None, defaults: dict[str, Any]) -> dict[str, Any]:
    for name in given or {}:
        if name not in defaults:
            raise UnknownKeyError(f"{key}.{name}", [f"{key}.{known}" for known in defaults])
    return defaults | dict(given or {})


def _first_classes(name: str, class_names: tuple[str, ...], num_classes: int | None) -> tuple[str, ...]:
    available = len(class_names)
    if num_classes is not None and num_classes > available:
        raise SettingError(
            "num_classes", num_classes, f"at most {available} ({name} has {available} classes), or null for all"
        )
    return class_names[:num_classes]


def _check_enough(names: tuple[str, ...], available: Ints, sizes: list[int], request: Request, unit: str) -> None:
    short = [label for label, size in enumerate(sizes) if available[label] < size]
    if not short:
        return
    imbalance, ratio = request.imbalance, request.ratio
    lowest, largest = workable(available, sizes[0], imbalance, ratio)
    ways = [f"imbalance_ratio={lowest} or more"] if lowest is not None else []
    ways += [f"max_per_class={largest} or less"] if largest is not None else []
    listed = ", ".join(f"class {name_class(c, names)} has {available[c]} of {sizes[c]}" for c in short[:5])
    more = f" and {len(short) - 5} more classes" if len(short) > 5 else ""
    remedy = f"what is there suffices for {', or for '.join(ways)}" if ways else "complete the data"
    asked = imbalance if imbalance == "balanced" else f"{imbalance}, ratio {ratio:g}"
    has = f"it has {compact_counts(available.tolist())}" if len(names) <= 20 else f"{len(short)} classes are short"
    raise DataError(f"{request.name} has too few training {unit} for {asked}: {listed}{more} ({has}); {remedy}")


def _check_listed(request: Request, names: tuple[str, ...], available: Ints, unit: str) -> None:
    """Raises a DataError unless each class has as many samples as `request.class_sizes` lists."""
    sizes = request.class_sizes or ()
    short = [label for label, size in enumerate(sizes) if available[label] < size]
    if short:
        listed = ", ".join(f"class {name_class(c, names)} has {available[c]} of {sizes[c]}" for c in short[:5])
        raise DataError(f"{request.name} has too few training {unit} for class_sizes={list(sizes)}: {listed}")


def _mark_last(sizes: Sequence[int], held: Sequence[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Marks the last `held[c]` of each class's `sizes[c]` positions: they were drawn at random already."""
    return np.concatenate([np.arange(size) >= size - last for size, last in zip(sizes, held, strict=True)])


def hash_of(*arrays: np.ndarray[Any, Any]) -> str:
    """A hash of the arrays' types, shapes and values."""
    state = hashlib.blake2b(digest_size=10)
    for array in arrays:
        state.update(f"{array.dtype.str[1:]}{array.shape}".encode())
        state.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
    return state.hexdigest()


def last_of_class(labels: Ints, sizes: Ints) -> npt.NDArray[np.bool_]:
    """(N,) which samples are the last ones of their class, whose order was drawn at random.

    Args:
        labels: (N,), in any order.
        sizes: (C,), how many of each class.
    """
    counts = np.bincount(labels, minlength=len(sizes))
    order = np.argsort(labels, kind="stable")
    within = np.empty_like(labels)
    within[order] = np.arange(len(labels)) - (counts.cumsum() - counts)[labels[order]]
    held: npt.NDArray[np.bool_] = within >= (counts - sizes)[labels]
    return held
