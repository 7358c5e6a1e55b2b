"""A finished run on the test samples of another dataset of the same classes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ltexp.config.build import build
from ltexp.config.composer import compose
from ltexp.config.words import parse_value
from ltexp.data.commands.check import require_present
from ltexp.data.types import LongTailedData
from ltexp.errors import ConfigError, UnknownKeyError
from ltexp.launching.explain import explained
from ltexp.launching.freeze import freeze
from ltexp.training.session import Session


def take_test(session: Session, words: Sequence[str]) -> None:
    """Puts the test samples of another dataset in the place of the session's own.

    Shots are still those of the run's training classes, and images are prepared as the run's own: by its channel
    statistics and, where both are files, to its size.

    Args:
        session: a run's.
        words: `dataset=NAME` and `dataset.KEY=VALUE`; without the first they are of the run's own dataset.

    Raises:
        ConfigError: for an unknown name or key, or other classes than the run's.
        DataError: if that data is not there.
    """
    own = session.data
    idle = [word for word in words if word.partition("=")[0].removeprefix("dataset.") in own.preprocessing]
    if idle:
        raise ConfigError(f"{idle[0]} has no effect: test images are prepared as in training; leave it out")
    node = named_dataset(words) if any(word.startswith("dataset=") for word in words) else _changed(session, words)
    other: LongTailedData = build(node, root=session.config.paths.data, path="dataset")
    require_present(other)
    if other.kind != own.kind:
        raise ConfigError(f"{' '.join(words)}: that dataset holds {other.kind}, and this run's {own.kind}")
    if other.class_names != own.class_names:
        raise ConfigError(f"{' '.join(words)}: its classes are not the run's: {_difference(other, own)}")
    shared = {key: own.preprocessing[key] for key in other.preprocessing if key in own.preprocessing}
    if session.shot_counts is None:
        session.shot_counts = own.class_counts
    preprocessing = own.preprocessing if type(other.test) is type(own.test) else other.preprocessing | shared
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
    return {str(key): value for key, value in changed.items()}


def _difference(other: LongTailedData, own: LongTailedData) -> str:
    if other.num_classes != own.num_classes:
        return f"{other.num_classes} instead of {own.num_classes}"
    pairs = zip(other.class_names, own.class_names, strict=True)
    label, (found, expected) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"label {label} is {found!r} instead of {expected!r}"
