"""What of a stage learns, and what it starts from: a stage in which nothing can learn has no epochs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ltexp.config import Config, StageConfig, names_stage
from ltexp.config.build import build
from ltexp.distributed import rank
from ltexp.errors import ConfigError
from ltexp.models.classifier import Classifier
from ltexp.models.module import present
from ltexp.randomness import default_generator
from ltexp.training import checkpoint
from ltexp.training.session import Session


def without_idle_epochs(config: Config) -> Config:
    """`config` with 0 epochs for a stage in which nothing at all could change: they would only take time.

    So a classifier without training can take the place of a trained one by its own name alone.
    """
    stages = config.stages
    for name, stage in config.stages.items():
        other = stage.batch_norm != "frozen" or present(stage.modules) or stage.trainable.backbone
        if stage.epochs > 0 and not other and not _classifier_learns(name, stage):
            stages[name] = replace(stage, epochs=0)
            if rank() == 0:
                what = config.choices.get(f"classifier@{name}.classifier", "its classifier")
                print(f"{name}: nothing learns here ({what}), so its {stage.epochs} epochs are left out", flush=True)
    return replace(config, **stages)  # type: ignore[arg-type]  # mypy reads it as of any field


class Sizes(NamedTuple):
    """What parts are tried with: class counts, int64 (C,), and the width of a feature."""

    counts: Tensor
    feature_dim: int

    @classmethod
    def of(cls, session: Session, name: str, stage: StageConfig) -> "Sizes":
        """Those of a stage's own data and network."""
        own = session.for_stage(stage)
        return cls(own.class_counts, own.fresh_model(name, stage, loads=True).backbone.feature_dim)


MADE_UP = Sizes(torch.tensor([3, 2, 1]), 4)


def tried_classifier(node: dict[str, Any], stage: str, sizes: Sizes = MADE_UP) -> Classifier:
    """A classifier of a stage's `node`, to try what it fits."""
    given = {"feature_dim": sizes.feature_dim, "num_classes": len(sizes.counts)}
    with default_generator("check"):
        classifier: Classifier = build(node, **given, path=f"{stage}.classifier")
    return classifier


def _classifier_learns(name: str, stage: StageConfig) -> bool:
    """Whether it has something to learn; of a user's own that made-up numbers do not fit, that is assumed."""
    try:
        return _learns(stage, tried_classifier(stage.classifier, name))
    except ConfigError as error:
        if error.of_own_part:
            return True
        raise


def _learns(stage: StageConfig, classifier: Classifier) -> bool:
    """Whether backbone or classifier does."""
    learnable = any(True for _ in classifier.parameters())
    return stage.trainable.backbone or stage.batch_norm == "train" or (learnable and stage.trainable.classifier)


def continue_earlier(
    stage: StageConfig, classifier: Classifier, earlier: Mapping[str, Classifier], sizes: Sizes
) -> None:
    """Lets `classifier` start from that of an earlier stage, or of a file: only of a kind that it can continue."""
    where = stage.init.classifier
    if where in earlier:
        classifier.start_from(earlier[where])
    elif where != "fresh":
        found = checkpoint.read(checkpoint.locate(where))
        source = tried_classifier(found.classifier_config, where, sizes)
        source.kind = found.build_classifier().kind
        classifier.start_from(source)


def check_start(name: str, stage: StageConfig, classifier: Classifier) -> None:
    """What the stage starts from is there, and something in it learns or needs no learning."""
    for where in (*stage.starts.values(), *stage.taught_by.values()):
        if where != "fresh" and not names_stage(where):
            checkpoint.locate(where)
    if stage.checkpoint is not None:
        checkpoint.locate(stage.checkpoint, name)
        return
    learns = any(True for _ in classifier.parameters())
    if stage.init.classifier == "fresh" and classifier.needs_source:
        hint = f"set {name}.init.classifier=stage1" if name == "stage2" else "choose another for it"
        raise ConfigError(f"{name}: its classifier continues that of another stage: {hint}")
    if stage.init.classifier == "fresh" and stage.epochs == 0 and learns:
        raise ConfigError(f"{name}: its fresh classifier learns nothing in 0 epochs: {_to_learn(name, stage)}")
    if stage.epochs > 0 and (not _learns(stage, classifier) or classifier.needs_features):
        raise ConfigError(f"{name}: its classifier is not trained by epochs: set {name}.epochs=0, or choose another")


def _to_learn(name: str, stage: StageConfig) -> str:
    """What to set for a stage's classifier to learn: it may have no epochs because nothing of the stage does."""
    if stage.trainable.classifier:
        return f"raise {name}.epochs"
    return f"set {name}.trainable.classifier=true (and {name}.epochs of 1 or more)"
