"""A finished run on the test samples of another dataset of the same classes."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ltexp.analysis.restored import LoadedStage
from ltexp.config.build import build
from ltexp.config.composer import compose
from ltexp.config.words import parse_value
from ltexp.data.commands.check import require_present
from ltexp.data.files.split import FileSplit
from ltexp.data.types import ImageSplit, LongTailedData, Split
from ltexp.errors import ConfigError, UnknownKeyError
from ltexp.launching.explain import explained
from ltexp.launching.freeze import freeze
from ltexp.training.session import Session


def take_test(restored: LoadedStage, words: Sequence[str]) -> None:
    """Puts the test samples of another dataset in the place of the session's own.

    Shots are still those of the run's training classes, and images are prepared as the run's own: by its channel
    statistics and to its size.

    Args:
        restored: a stage of the run.
        words: `dataset=NAME` and `dataset.KEY=VALUE`; without the first they are of the run's own dataset.

    Raises:
        ConfigError: for an unknown name or key, other classes or another size than the run's, or images that it was
            trained on.
        DataError: if that data is not there.
    """
    session, typed = restored.session, " ".join(words)
    own = session.data
    idle = [word for word in words if word.partition("=")[0].removeprefix("dataset.") in own.preprocessing]
    if idle:
        raise ConfigError(f"{idle[0]} has no effect: test images are prepared as in training; leave it out")
    named = any(word.startswith("dataset=") for word in words)
    node = _of_size(named_dataset(words), words, own) if named else _changed(session, words)
    other: LongTailedData = build(node, root=session.config.paths.data, path="dataset")
    require_present(other)
    if other.kind != own.kind:
        raise ConfigError(f"{typed}: that dataset holds {other.kind}, and this run's {own.kind}")
    if other.class_names != own.class_names:
        raise ConfigError(f"{typed}: its classes are not the run's: {_difference(other, own)}")
    _check_apart(other.test, restored, typed)
    shared = {key: own.preprocessing[key] for key in other.preprocessing if key in own.preprocessing}
    if session.shot_counts is None:
        session.shot_counts = own.class_counts
    preprocessing = own.preprocessing if type(other.test) is type(own.test) else other.preprocessing | shared
    found, expected = _pixels(replace(other, preprocessing=preprocessing)), _pixels(own)
    if found != expected:
        raise ConfigError(
            f"{typed}: its images have {found} pixels, and the run's {expected}: choose a set of that size"
        )
    for split in (own.train, own.validation):
        if split is not None:
            session.evaluation_loader(split)  # kept: these are still read as the run read them
    session.data = replace(
        own,
        test=other.test,
        test_hash=other.test_hash,
        preprocessing=preprocessing,
        loading=other.loading,
    )


def named_dataset(words: Sequence[str]) -> dict[str, Any]:
    """The node of the dataset that `dataset=NAME` and `dataset.KEY=VALUE` describe.

    Raises:
        ConfigError: for an unknown name or key.
    """
    with explained(words):
        node: dict[str, Any] = freeze(compose(words))["dataset"]
    return node


def _of_size(node: dict[str, Any], words: Sequence[str], own: LongTailedData) -> dict[str, Any]:
    """The node of a dataset of files at the size of the run's images in memory, unless another one was typed."""
    typed = {word.partition("=")[0] for word in words}
    if "image_size" not in node or not isinstance(own.test, ImageSplit):
        return node
    size = node["image_size"] if "dataset.image_size" in typed else int(own.test.images.shape[1])
    resize = node["resize"] if "dataset.resize" in typed else size
    return node | {"image_size": size, "resize": resize}


def _pixels(data: LongTailedData) -> str:
    """The size of what a network reads of the test images, such as `32x32`; empty for other samples."""
    side = data.preprocessing.get("image_size")
    sides = data.test.images.shape[1:3] if isinstance(data.test, ImageSplit) else (side, side) if side else ()
    return "x".join(map(str, sides))


def _check_apart(test: Split, restored: LoadedStage, typed: str) -> None:
    """Refuses files that the run was trained on, and notes those that were its validation images."""
    tested, session, run_data = _files(test), restored.session, restored.run_data
    trained = {id(split): split for split in (run_data.train, session.data.train, *session.held_out.values())}
    if shared := sorted(tested & set[bytes]().union(*map(_files, trained.values()))):
        raise ConfigError(
            f"{typed}: the run was trained on {len(shared):,} of these {len(test):,} test images, such as "
            f"{os.fsdecode(shared[0])}: leave them out"
        )
    if known := len(tested & _files(run_data.validation)):
        print(f"note: {known:,} of these {len(test):,} test images are the run's validation images")


def _files(split: Split | None) -> set[bytes]:
    """The paths of a split's files, each in one spelling; none of samples in memory."""
    if not isinstance(split, FileSplit):
        return set()
    root = os.fsencode(os.path.realpath(split.root))
    return {os.path.normpath(os.path.join(root, path)) for path in split.paths.tolist()}


def _changed(session: Session, words: Sequence[str]) -> dict[str, Any]:
    """The node of the run's own dataset with other values."""
    config = OmegaConf.create(session.config.dataset)
    OmegaConf.set_struct(config, True)
    for word in words:
        key, _, text = word.removeprefix("dataset.").partition("=")
        try:
            OmegaConf.update(config, key, parse_value(f"dataset.{key}", text), force_add=False)
        except OmegaConfBaseException:
            raise UnknownKeyError(f"dataset.{key}", [f"dataset.{name}" for name in map(str, config)]) from None
    changed = OmegaConf.to_container(config)
    assert isinstance(changed, dict)
    typed = {word.partition("=")[0] for word in words}
    if "dataset.source.test" in typed and not any(key.startswith("dataset.test.") for key in typed):
        changed.pop("test", None)  # instead of the images that the run held out
    return {str(key): value for key, value in changed.items()}


def _difference(other: LongTailedData, own: LongTailedData) -> str:
    if other.num_classes != own.num_classes:
        return f"{other.num_classes} instead of {own.num_classes}"
    pairs = zip(other.class_names, own.class_names, strict=True)
    label, (found, expected) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"label {label} is {found!r} instead of {expected!r}"
