"""A stage that trains its classifier on features: what it trains on, and what it leaves beside its metrics."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ltexp
from ltexp.config import FILES_OF_A_BACKBONE, StageConfig, names_stage
from ltexp.config.build import build, target_sources
from ltexp.config.identity import backbone_identity
from ltexp.config.own_code import own_code
from ltexp.data.augmentation import NoAugmentation
from ltexp.data.loader import Loader
from ltexp.data.tail.selection import last_of_class
from ltexp.data.types import Split
from ltexp.distributed import rank, world_size
from ltexp.features.kept import FeatureStore, KeptFeatures, state_identity
from ltexp.features.loader import FeatureLoader, StoredFeatures
from ltexp.features.source import ExtractedFeatures
from ltexp.models.model import Model
from ltexp.run_folder import CONFIDENCE, read_metrics, write_metrics
from ltexp.training.mixing import blends
from ltexp.training.session import Session
from ltexp.training.start import load_stage1

EXAMPLES = 200  # generated features of a class that are kept for figures


def feature_loader(session: Session, name: str, stage: StageConfig, model: Model) -> FeatureLoader:
    """The features that the stage trains on; `model` extracts them."""
    source: ExtractedFeatures = build(stage.features, path="features")
    train, validation = session.data.train, session.data.validation
    held = _held_out(session, source)
    kept = train.take(~held) if held.any() else train
    counts = torch.bincount(torch.as_tensor(kept.labels), minlength=session.data.num_classes)
    made = source.start(session.class_counts, counts, stage.epochs)
    labels = torch.cat([torch.as_tensor(kept.labels), made])
    scored = (train.take(held) if held.any() else validation) if source.keeps_score else None
    if session.store is not None:
        session.features["train"] = session.store.of(kept, [session.data.content_hash, session.data.preprocessing])
    every = {"batch_size": session.evaluation_batch}
    augmentation, seed = build(stage.augmentation, path="augmentation"), session.stage_seed(name)
    return FeatureLoader(
        Split(labels=labels.numpy(), index=np.arange(len(labels))),
        images=session.loader(kept, **every, augmentation=augmentation, seed=seed),
        scored=None if scored is None else session.loader(scored, **every),
        model=model,
        source=source,
        stage1=partial(load_stage1, session, stage),
        precision=session.config.trainer.precision,
        fixed=isinstance(augmentation, NoAugmentation),
        class_names=session.data.class_names,
        kept=session.features.get("train"),
        batch_size=stage.batch_size,
        device=session.device,
        sampler=build(stage.sampler, labels=labels, class_counts=torch.bincount(labels), path="sampler"),
        seed=seed,
        max_epochs=stage.epochs,
        shuffle_within=blends(stage),
        rank=rank(),
        world_size=world_size(),
    )


def open_store(session: Session, name: str, stage: StageConfig, model: Model) -> FeatureStore | None:
    """Where features are shared with other runs, beside the stages; None where this stage's are its own.

    They are those of a network as its file has it, of images that are not augmented.
    """
    cache, pretrained = session.config.stage_cache, stage.init.backbone == "fresh" and stage.checkpoint is None
    extracts = stage.features.get("_target_") and isinstance(build(stage.augmentation), NoAugmentation)
    if not (cache.enabled and pretrained and extracts):
        return None
    trainer = session.config.trainer
    backbone = {key: value for key, value in session.config.backbone.items() if key not in FILES_OF_A_BACKBONE}
    network = {
        "version": ltexp.__version__,
        "backbone": [backbone_identity(backbone), state_identity(model.backbone), target_sources(backbone)],
        **({"own_code": code} if (code := own_code(backbone)) else {}),
        "feature_power": stage.feature_power,
        "numerics": [session.device.type, trainer.precision, trainer.channels_last],
    }
    batch, seed = session.evaluation_batch, session.stage_seed(name)
    plain = NoAugmentation()
    loader = partial(session.loader, batch_size=batch, augmentation=plain, seed=seed)
    return FeatureStore(Path(cache.dir) / "features", network, loader)


def evaluate_on_kept(session: Session, model: Model) -> None:
    """Makes evaluations of the stage read the test samples' features where the store has or takes those."""
    if session.store is None:
        return
    data = session.data
    kept = session.features["test"] = session.store.of(data.test, [data.test_hash, data.preprocessing])

    def features() -> Tensor:
        return kept.obtain(model, session.config.trainer.precision, data.class_names)[0]

    labels, index = np.asarray(data.test.labels), np.arange(len(data.test))
    session.read_features(data.test, partial(StoredFeatures, Split(labels=labels, index=index), features))


def check_features(session: Session, stage: StageConfig) -> None:
    """Refuses a training set that the stage's source of features cannot work with.

    Raises:
        ConfigError: naming the class.
        CheckpointError: a backbone's file without the classifier that the source compares with.
    """
    if stage.features.get("_target_"):
        source: ExtractedFeatures = build(stage.features, path="features")
        source.check(session.class_counts, session.data.class_names, session.data.validation is not None)
        if source.compares_with_stage1 and stage.checkpoint is None and not names_stage(stage.init.backbone):
            load_stage1(session, stage)


def describe_features(session: Session, stage: StageConfig) -> dict[str, Any]:
    """What the stage's entry in the record says of its features; nothing where it trains on the data itself."""
    if not stage.features.get("_target_"):
        return {}
    source: ExtractedFeatures = build(stage.features, path="features")
    held = _held_out(session, source)
    kept = torch.bincount(torch.as_tensor(session.data.train.labels[~held]), minlength=session.data.num_classes)
    scored = f"{int(held.sum())} images held out of the training set" if held.any() else "the validation split"
    return {
        "features": {
            "extracted": int(kept.sum()),
            "generated": len(source.start(session.class_counts, kept, stage.epochs)),
            "scored_on": scored if source.keeps_score else None,
            **_taken(session.features),
        }
    }


def _taken(features: Mapping[str, KeptFeatures]) -> dict[str, Any]:
    """How many were there from another run, and where those of training are; nothing where none are kept."""
    taken = {split: kept.taken for split, kept in features.items() if kept.taken is not None}
    places = {"cache": features["train"].folder.name} if "train" in taken else {}
    names = {"train": "from_cache", "test": "test_from_cache"}
    return places | {names[split]: count for split, count in taken.items()}


def write_history(loader: Loader[Any], folder: Path) -> None:
    """Writes confidence.csv of a finished stage: β of each tail class by epoch, where there is one."""
    rows = loader.history()
    if rows and rank() == 0:
        write_metrics(folder / CONFIDENCE, rows)


def generated_examples(session: Session, name: str, stage: StageConfig, model: Model) -> dict[str, Any]:
    """Up to 200 features of each tail class as the stage's last epoch would generate them from images not augmented.

    Returns:
        `generated_features` (M, D) float32 and `generated_labels` (M,); nothing where the stage generates none.
    """
    plain = replace(stage, augmentation={"_target_": "ltexp.data.augmentation.NoAugmentation"})
    if not stage.features.get("_target_") or not build(stage.features, path="features").generates:
        return {}
    loader = feature_loader(session, name, plain, model)
    rows = read_metrics(session.folder / name / CONFIDENCE)
    features, labels = loader.examples({int(row["class"]): float(row["beta"]) for row in rows}, EXAMPLES)
    return {"generated_features": features.cpu().numpy(), "generated_labels": labels.cpu().numpy()}


def _held_out(session: Session, source: ExtractedFeatures) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(N,) which training samples are not trained on: the last of their class, whose order was drawn at random."""
    sizes = source.held_out(session.class_counts, session.data.validation is not None).numpy()
    return last_of_class(session.data.train.labels, sizes)
