"""The batches that a stage trains on."""

from typing import Any

import torch

from ltexp.config import StageConfig
from ltexp.config.build import build
from ltexp.config.schema import Stream
from ltexp.data.loader import Learner, Loader, Stretched, stream_seed
from ltexp.data.samplers import Sampler
from ltexp.data.types import Split
from ltexp.models.model import Model
from ltexp.training.curriculum import ClassLevels, curriculum_of
from ltexp.training.feature_stage import feature_loader
from ltexp.training.mixing import blends
from ltexp.training.session import Session
from ltexp.training.survey import SplitSurvey, SurveyingSampler
from ltexp.training.teacher import Teachers


def train_loader(session: Session, name: str, stage: StageConfig, model: Model) -> Loader[Any]:
    """Augmented batches of the training split, or of the features `model` makes of it, in the sampler's order."""
    if stage.features.get("_target_"):
        return feature_loader(session, name, stage, model)
    settings = {"augmentation": build(stage.augmentation, path=f"{name}.augmentation"), "max_epochs": stage.epochs}
    sampler, seed = sampler_of(session, stage.sampler, session.data.train), session.stage_seed(name)
    main = {"batch_size": stage.batch_size, "sampler": sampler, "seed": seed, "shuffle_within": blends(stage)}
    loader = session.loader(session.data.train, **main, **settings)
    loader.learners += _surveying(session, stage, model, sampler)
    if (curriculum := curriculum_of(loader.augmentation)) is not None:
        loader.learners.append(ClassLevels(session, model, curriculum, seed))
    for own, stream in stage.streams.items():
        split = session.held_out.get(own, session.data.train)
        drawn = sampler_of(session, stream.sampler, split)
        made = _stream_loader(session, split, stream, stage, loader, drawn, stream_seed(seed, own), settings)
        made.learners += _surveying(session, stage, model, drawn)
        loader.streams[own] = made
    return loader


def _surveying(session: Session, stage: StageConfig, model: Model, sampler: Sampler) -> list[Learner]:
    """What lets a sampler survey splits before each epoch, where it does."""
    survey = SplitSurvey(session, model, Teachers())
    return [SurveyingSampler(sampler, stage.epochs, survey)] if sampler.surveys else []


def _stream_loader(
    session: Session,
    split: Split,
    stream: Stream,
    stage: StageConfig,
    main: Loader[Any],
    drawn: Sampler,
    seed: int,
    settings: dict[str, Any],
) -> Loader[Any]:
    """Batches of a stream, one for each of `main`."""
    size = stream.batch_size or stage.batch_size
    # batches of the stage's size are as large as the stage's to the last, so that a loss may pair their rows
    paired = size == stage.batch_size
    sampler = Stretched(drawn, lambda: main.rows if paired else len(main) * size)
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
