"""Lets a stage's samplers and losses refuse the data that they are to train on."""

import torch
from hydra.utils import get_class
from torch import Tensor

from ltexp.config import StageConfig
from ltexp.config.require import within
from ltexp.data.samplers import Sampler
from ltexp.data.types import Split
from ltexp.errors import ConfigError
from ltexp.training.batches import sampler_of
from ltexp.training.objective import Objective
from ltexp.training.session import Session
from ltexp.training.survey import surveyed_by


def check_data(session: Session, name: str, stage: StageConfig) -> None:
    """Refuses a stage whose samplers or losses cannot work with its data, before anything is trained.

    Args:
        session: of the stage.
        name: of the stage.
        stage: its config.

    Raises:
        ConfigError: with the full key.
    """
    if stage.epochs == 0 or stage.checkpoint is not None:
        return
    train, validation = session.data.train, session.data.validation
    nodes = {f"{name}.sampler": (stage.sampler, train)} if not stage.features.get("_target_") else {}
    for own, stream in stage.streams.items():
        nodes[f"{name}.streams.{own}.sampler"] = stream.sampler, session.held_out.get(own, train)
    objective = Objective(stage, session.class_counts)
    for key, (node, split) in nodes.items():
        if getattr(get_class(node["_target_"]), "check_data", Sampler.check_data) is Sampler.check_data:
            continue
        sampler = sampler_of(session, node, split)
        with within(key):
            sampler.check_data()
        learned = objective.loss.learned_prior(sampler.class_probabilities(0, stage.epochs))
        if node is stage.sampler and learned.isnan().any():  # of no shares at all
            raise ConfigError(
                f"{name}: its loss is of other classes than those that its sampler shows: choose one of them"
            )
    counts = None if validation is None else _counts(validation, session.num_classes)
    for key, part in objective.by_key.items():
        with within(f"{name}.{key}"):
            part.check_data(counts)
    for key, splits in surveyed_by(stage, objective).items():
        if "validation" in splits and counts is None:
            raise ConfigError(
                f"{name}.{key}: it surveys validation images, and there are none: set dataset.validation.fraction=0.1"
            )


def _counts(split: Split, num_classes: int) -> Tensor:
    return torch.bincount(torch.as_tensor(split.labels), minlength=num_classes)
