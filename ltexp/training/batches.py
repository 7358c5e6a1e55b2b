"""The batches that a stage trains on."""

from typing import Any

import torch

from ltexp.config import StageConfig
from ltexp.config.build import build
from ltexp.config.schema import Stream
from ltexp.data.loader import Loader, Stretched, stream_seed
from ltexp.data.samplers import Sampler
from ltexp.data.types import Split
from ltexp.models.model import Model
from ltexp.training.curriculum import ClassLevels, curriculum_of
from ltexp.training.feature_stage import feature_loader
from ltexp.training.mixing import blends
from ltexp.training.session import Session


def train_loader(session: Session, name: str, stage: StageConfig, model: Model) -> Loader[Any]:
    """Augmented batches of the training split, or of the features `model` makes of it, in the sampler's order."""
    if stage.features.get("_target_"):
        return feature_loader(session, name, stage, model)
    settings = {"augmentation": build(stage.augmentation, path=f"{name}.augmentation"), "max_epochs": stage.epochs}
    sampler, seed = sampler_of(session, stage.sampler, session.data.train), session.stage_seed(name)
    main = {"batch_size": stage.batch_size, "sampler": sampler, "seed": seed, "shuffle_within": blends(stage)}
    loader = session.loader(session.data.train, **main, **settings)
    if (curriculum := curriculum_of(loader.augmentation)) is not None:
        loader.learner = ClassLevels(session, model, curriculum, seed)
    for own, stream in stage.streams.items():
        loader.streams[own] = _stream_loader(session, own, stream, stage, loader, stream_seed(seed, own), settings)
    return loader


def _stream_loader(
    session: Session,
    name: str,
    stream: Stream,
    stage: StageConfig,
    main: Loader[Any],
    seed: int,
    settings: dict[str, Any],
) -> Loader[Any]:
    """Batches of a stream, one for each of `main`."""
    split, size = session.held_out.get(name, session.data.train), stream.batch_size or stage.batch_size
    # batches of the stage's size are as large as the stage's to the last, so that a loss may pair their rows
    paired = size == stage.batch_size
    sampler = Stretched(sampler_of(session, stream.sampler, split), lambda: main.rows if paired else len(main) * size)
    own = (
        {"augmentation": build(stream.augmentation, path="augmentation")} if stream.augmentation.get("_target_") else {}
    )
    return session.loader(split, batch_size=size, sampler=sampler, seed=seed, **{**settings, **own})


def sampler_of(session: Session, node: dict[str, Any], split: Split) -> Sampler:
    """The sampler of a config node over a split."""
    labels = torch.as_tensor(split.labels)
    counts = torch.bincount(labels, minlength=session.data.num_classes)
    sampler: Sampler = build(node, labels=labels, class_counts=counts, path="sampler")
    return sampler
