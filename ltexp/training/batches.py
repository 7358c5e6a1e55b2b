"""The batches that a stage trains on."""

from typing import Any

import torch

from ltexp.config import StageConfig
from ltexp.config.build import build
from ltexp.data.loader import Loader
from ltexp.models.model import Model
from ltexp.training.feature_stage import feature_loader
from ltexp.training.mixing import blends
from ltexp.training.session import Session


def train_loader(session: Session, name: str, stage: StageConfig, model: Model) -> Loader[Any]:
    """Augmented batches of the training split, or of the features `model` makes of it, in the sampler's order."""
    if stage.features.get("_target_"):
        return feature_loader(session, name, stage, model)
    labels = torch.as_tensor(session.data.train.labels)
    return session.loader(
        session.data.train,
        batch_size=stage.batch_size,
        sampler=build(stage.sampler, labels=labels, class_counts=session.class_counts),
        augmentation=build(stage.augmentation),
        seed=session.stage_seed(name),
        max_epochs=stage.epochs,
        shuffle_within=blends(stage),
    )
