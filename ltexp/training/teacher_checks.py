"""Teachers that do not go with their stage, told before anything is trained."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ltexp.config import StageConfig, names_stage
from ltexp.errors import ConfigError
from ltexp.features.kept import state_identity
from ltexp.models.backbone import Backbone
from ltexp.models.module import Wiring, present
from ltexp.training import checkpoint
from ltexp.training.session import Session
from ltexp.training.start import load_teacher, start_model
from ltexp.training.teacher import Teacher, described_counts, wiring_of_evaluation

TRAINED = "trained"
OF_FEATURES = frozenset({"features", "logits", "class_vectors", "class_biases"})  # what is there without an image


def check_taught(session: Session, name: str, stage: StageConfig, counts: Mapping[str, Tensor]) -> None:
    """Refuses teachers of other classes and, where the stage trains on features, those that cannot answer of them.

    Args:
        session: of the stage (`Session.for_stage`).
        name: of the stage.
        stage: its config.
        counts: (C,) class counts of this stage and those before it, by name.

    Raises:
        ConfigError: saying what to change.
        CheckpointError: see `read_teacher`.
    """
    trains = stage.epochs > 0 and stage.checkpoint is None
    for key, where in stage.taught_by.items():
        loaded = None if names_stage(where) else load_teacher(session, where)
        if not trains:
            continue
        if loaded is None and not torch.equal(counts[where], counts[name]):
            theirs, own = (described_counts(counts[each].tolist()) for each in (where, name))
            raise ConfigError(
                f"{name}: its {key} {where} is trained on other classes or class counts ({theirs}), not ({own}): "
                "give both the same training_set, and streams that hold out the same images"
            )
        if stage.features.get("_target_"):
            _check_answers_features(session, name, key, where, loaded)


def _check_answers_features(session: Session, name: str, key: str, where: str, loaded: Teacher | None) -> None:
    """A teacher answers features where they are its own backbone's, and nothing of it reads more than those."""
    change = f"choose another {name}.{key}, or set features@{name}.features=none"
    nodes = {} if loaded else present(session.config.stages[where].modules)
    wiring = loaded.model.wiring if loaded else wiring_of_evaluation(nodes)
    if more := _reads_more(wiring.values()):
        raise ConfigError(
            f"{name}: it trains on features, and a module of its {key} {where} reads {more} beside them: {change}"
        )
    if not _same_backbone(session, name, where, loaded):
        raise ConfigError(f"{name}: it trains on features, and its {key} {where} has another backbone: {change}")


def _reads_more(wiring: Iterable[Wiring]) -> str:
    """What modules read that is neither of features nor given by one of them; empty: nothing."""
    there = set(OF_FEATURES)
    for wired in wiring:
        if missing := set(wired.reads) - there:
            return min(missing)
        there |= set(wired.gives)
    return ""


def _same_backbone(session: Session, name: str, where: str, loaded: Teacher | None) -> bool:
    own = _origin(session, name)
    if loaded is None:
        other = _origin(session, where)
        if own == other:
            return True
        if TRAINED in (own[1], other[1]):
            return False
        backbone = _backbone(session, *other)
    elif own[1] == TRAINED:
        return False
    else:
        backbone = loaded.model.backbone
    return state_identity(_backbone(session, *own)) == state_identity(backbone)


def _origin(session: Session, name: str) -> tuple[str, str]:
    """The stage whose backbone that of `name` is, and what it has it from: `trained`, `fresh`, or a file."""
    stage = session.config.stages[name]
    if stage.checkpoint is not None:
        return name, str(checkpoint.locate(stage.checkpoint, name))
    if stage.epochs > 0 and (stage.trainable.backbone or stage.batch_norm != "frozen"):
        return name, TRAINED
    where = stage.init.backbone
    return _origin(session, where) if names_stage(where) else (name, where)


def _backbone(session: Session, name: str, where: str) -> Backbone:
    """The backbone of a stage that has it from `where`, a file or `fresh`."""
    stage = session.config.stages[name]
    init = replace(stage.init, backbone=where, classifier="fresh")
    return start_model(session, name, replace(stage, init=init, modules={})).backbone
