"""Images that only a stream of a stage shows, such as the small balanced set that a meta step learns from."""

from dataclasses import replace

import numpy as np

from ltexp.config.schema import HeldOut
from ltexp.data.tail.profile import name_class
from ltexp.data.tail.selection import last_of_class
from ltexp.data.types import Ints, LongTailedData, Split
from ltexp.errors import ConfigError


def held_out_of(data: LongTailedData, stream: str, wanted: HeldOut) -> tuple[LongTailedData, Split]:
    """(the data without them, the images that `stream` holds out), as many of every class.

    Args:
        data: whose training set loses those images that are its own; a validation set keeps all.
        stream: its name, for messages.
        wanted: how many of each class, and of what.

    Raises:
        ConfigError: if there are too few, or a class would be left without training images.
    """
    each = np.full(data.num_classes, wanted.per_class)
    if wanted.of == "train":
        _check_left(data, stream, wanted.per_class, data.class_counts - wanted.per_class)
        last = last_of_class(data.train.labels, each)
        return replace(data, train=data.train.take(~last)), data.train.take(last)
    if wanted.of == "validation":
        if data.validation is None:
            raise ConfigError(
                f"stream {stream} holds out validation images, and {data.name} has none: set its held_out.of=unused"
            )
        held = data.validation.take(last_of_class(data.validation.labels, each))
        _check_found(data, stream, wanted, held)
        return data, held
    if data.last_drawn is None:
        raise ConfigError(f"stream {stream} holds out unused images, and {data.name} knows none: set held_out.of=train")
    held = data.last_drawn(wanted.per_class)
    _check_found(data, stream, wanted, held)
    rest = _without(data, held)
    _check_left(data, stream, wanted.per_class, rest.class_counts)
    return rest, held


def spare_validation(own: LongTailedData, run: LongTailedData) -> LongTailedData:
    """A training set of a stage's own from the run's source, without the images by which the run is judged.

    Raises:
        ConfigError: if a class would be left without training images.
    """
    if run.validation is None:
        return own
    rest = _without(own, run.validation)
    smallest = int(rest.class_counts.argmin())
    if rest.class_counts[smallest] < 1:
        raise ConfigError(
            f"all training images of class {name_class(smallest, own.class_names)} are among the run's held-out images "
            "(dataset.validation): give it more, or hold out fewer"
        )
    return replace(rest, validation=run.validation)


def _without(data: LongTailedData, held: Split) -> LongTailedData:
    """The data without those training images that `held` has."""
    return replace(data, train=data.train.take(~np.isin(data.train.index, held.index)))


def _check_found(data: LongTailedData, stream: str, wanted: HeldOut, held: Split) -> None:
    counts = np.bincount(held.labels, minlength=data.num_classes)
    fewest = int(counts.argmin())
    if counts[fewest] < wanted.per_class:
        raise ConfigError(
            f"stream {stream} holds out {wanted.per_class} {wanted.of} images a class, and class "
            f"{name_class(fewest, data.class_names)} has {counts[fewest]}: lower its held_out.per_class"
        )


def _check_left(data: LongTailedData, stream: str, each: int, left: Ints) -> None:
    """Raises unless every class keeps a training image."""
    smallest = int(left.argmin())
    if left[smallest] < 1:
        raise ConfigError(
            f"stream {stream} holds out {each} images a class, and class {name_class(smallest, data.class_names)} has "
            f"{data.class_counts[smallest]}: lower its held_out.per_class, or set held_out.of to what has more"
        )
