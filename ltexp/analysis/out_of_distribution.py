"""A finished run against a dataset of other classes: which of the two does an image come from?"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ltexp.analysis.other_test import named_dataset
from ltexp.analysis.restored import LoadedStage
from ltexp.config.build import build
from ltexp.data.commands.check import require_present
from ltexp.data.types import LongTailedData
from ltexp.errors import ConfigError
from ltexp.evaluation.detection import confidence_scores, detection
from ltexp.training.predict import Predictions, predict
from ltexp.training.session import Session


def session_of_others(restored: LoadedStage, words: Sequence[str]) -> Session:
    """The run's session with the test samples of another dataset, prepared as its own.

    Args:
        restored: the stage.
        words: `ood=NAME` and `ood.KEY=VALUE`.

    Raises:
        ConfigError: for an unknown name or key, a dataset of the run's own classes or test samples, or samples that the
            run's network does not read.
        DataError: if that data is not there.
    """
    typed = " ".join(words)
    if restored.session.pretext is not None:
        raise ConfigError(f"{typed}: {restored.stage} learned labels of its own, and no classes")
    node = named_dataset([f"dataset{word.removeprefix('ood')}" for word in words])
    other: LongTailedData = build(node, root=restored.session.config.paths.data, path="ood")
    require_present(other)
    _check(other, restored.session.data, typed)
    session = _on(restored.session, other)
    shapes = [tuple(one.sample_inputs().shape[1:]) for one in (session, restored.session)]
    if other.kind == "images" and shapes[0] != shapes[1]:
        read, own = ("x".join(map(str, shape[1:])) for shape in shapes)
        raise ConfigError(f"{typed}: its images have {read} pixels, and the run's {own}: choose a set of that size")
    return session


def out_of_distribution(restored: LoadedStage, predictions: Predictions, others: Session) -> dict[str, Any]:
    """What `ltexp evaluate` keeps of the run's test samples against those of another dataset.

    Args:
        restored: the stage.
        predictions: its predictions on the run's test split.
        others: see `session_of_others`.
    """
    loader = others.evaluation_loader(others.data.test)
    found = predict(restored.model, loader, others.config.trainer.precision)
    scale = restored.model.logit_scale
    inside, outside = confidence_scores(predictions.logits * scale), confidence_scores(found.logits * scale)
    return {
        "positive": "in-distribution",
        "samples": [len(predictions.labels), len(found.labels)],
        "scores": {name: detection(inside[name], outside[name]) for name in inside},
    }


def _check(other: LongTailedData, own: LongTailedData, typed: str) -> None:
    if other.kind != own.kind:
        raise ConfigError(f"{typed}: that dataset holds {other.kind}, and this run's {own.kind}")
    same = {other.test_hash, other.content_hash} & {own.test_hash, own.content_hash} - {""}
    if same or set(other.class_names) == set(own.class_names):
        raise ConfigError(f"{typed}: these are the run's own classes: choose a dataset of others")
    if shared := sorted(set(other.class_names) & set(own.class_names)):
        print(f"note: {len(shared)} classes are the run's as well: {', '.join(shared[:5])}")


def _on(session: Session, other: LongTailedData) -> Session:
    """The session with the other dataset's samples, prepared as the run's own."""
    own = session.data
    shared = {key: own.preprocessing[key] for key in other.preprocessing if key in own.preprocessing}
    preprocessing = own.preprocessing if type(other.test) is type(own.test) else other.preprocessing | shared
    data = replace(own, test=other.test, preprocessing=preprocessing, loading=other.loading)
    return replace(session, data=data, _evaluation_loaders={})
