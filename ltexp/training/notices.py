"""Settings that have no effect on a run, each said in a line before it begins."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import get_class
from torch import Tensor, nn

from ltexp.config import StageConfig
from ltexp.config.words import key_of
from ltexp.data.types import LongTailedData
from ltexp.losses.base import Loss
from ltexp.losses.context import WHOLE_BATCH
from ltexp.losses.cross_entropy import CrossEntropy
from ltexp.models.module import present
from ltexp.outputs import ModelOutput
from ltexp.training.objective import Objective
from ltexp.training.own_parts import hooks_never_called
from ltexp.training.schedules import MultiStep, Schedule, build_schedule
from ltexp.training.session import Session

_MANY_STEPS = 1000  # of an epoch, where a schedule steps with each: enough to reach every fraction of it
_ROWS, _FEATURES = 64, 8  # of the made-up batch that a loss is tried on


def settings_without_effect(session: Session) -> list[str]:
    """A line for each setting of the run that changes nothing about it, with its key and why."""
    config = session.config
    typed = [key_of(text) for text in config.overrides]
    lines = list(_of_data(session.data, typed))
    for name, stage in config.stages.items():
        lines += [f"{name}.{line}" for line in _of_terms(name, stage, typed)]
        lines += [f"{name}.{line}" for line in (*_of_start(stage, config.backbone), *_of_trainable(stage))]
        lines += hooks_never_called(session, name, stage)
        if stage.epochs > 0 and stage.checkpoint is None:
            counts = session.for_stage(stage).class_counts
            lines += [f"{name}.{line}" for line in (*_of_schedule(stage), *_of_objective(stage, counts))]
    for key in ("trainer.compile_backend", "trainer.compile_mode"):
        if key in typed and not config.trainer.compile:
            lines.append(f"{key} has no effect without trainer.compile=true")
    return lines


def _of_data(data: LongTailedData, typed: list[str]) -> Iterator[str]:
    if data.imbalance == "balanced" and "dataset.imbalance_ratio" in typed:
        yield "dataset.imbalance_ratio has no effect with dataset.imbalance=balanced"


def _of_terms(name: str, stage: StageConfig, typed: list[str]) -> Iterator[str]:
    for term, settings in stage.terms.items():
        place = f"{name}.terms.{term}."
        keys = [key for key in typed if key.rpartition("@")[2].startswith(place) and key != f"{place}weight"]
        if settings.weight == 0 and keys:
            yield f"terms.{term} has weight 0: {', '.join(keys)} has no effect"


def _of_start(stage: StageConfig, backbone: Mapping[str, Any]) -> Iterator[str]:
    """A head from class means is for a network that has learned to see."""
    untrained = stage.checkpoint is None and {stage.init.backbone, stage.init.classifier} == {"fresh"}
    if untrained and not backbone.get("weights") and get_class(stage.classifier["_target_"]).starts_from_features:  # type: ignore[attr-defined]
        yield (
            "classifier starts from class means of an untrained network, which learns from scratch: add a network with "
            "weights and a fine_tuning, such as backbone=timm backbone.weights=FILE fine_tuning=adaptformer"
        )


def _of_trainable(stage: StageConfig) -> Iterator[str]:
    """Batch norms are apart from `trainable`: beside them alone an epoch changes next to nothing."""
    frozen = not (stage.trainable.backbone or stage.trainable.classifier or present(stage.modules))
    if frozen and stage.epochs > 0 and stage.checkpoint is None and stage.batch_norm != "frozen":
        yield "trainable: neither backbone nor classifier learns; only the batch norms change in its epochs"


def _of_schedule(stage: StageConfig) -> Iterator[str]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, _, _ = build_schedule(stage.schedule, optimizer, stage.epochs, _MANY_STEPS)
    if not isinstance(schedule, Schedule):
        return
    if schedule.warmup > schedule.length:
        epochs = schedule.warmup // schedule.units
        yield f"schedule.warmup_epochs={epochs} is longer than its {stage.epochs} epochs: the rate is never full"
    if isinstance(schedule, MultiStep) and (never := schedule.never_reached()):
        yield f"schedule.milestones: there is no drop at {', '.join(map(str, never))} of its {stage.epochs} epochs"


def _of_objective(stage: StageConfig, counts: Tensor) -> Iterator[str]:
    objective = Objective(stage, counts)
    weights = objective.reweighting.class_weights
    if weights is not None and torch.allclose(weights, torch.ones_like(weights)):
        yield "reweighting has no effect: all classes have the same weight"
    if not isinstance(objective.loss, CrossEntropy) and _is_cross_entropy(objective.loss, stage.epochs):
        spread = f"{int(counts.max())} to {int(counts.min())} images of a class"
        yield f"loss: {type(objective.loss).__name__} is the same as cross-entropy here ({spread})"
    if objective.logit_scale == 1 and get_class(stage.classifier["_target_"]).kind == "cosine":  # type: ignore[attr-defined]
        yield "loss.scale=1 leaves a cosine classifier's logits within -1 and 1, a flat softmax: 30 or so is usual"


def _is_cross_entropy(loss: Loss, epochs: int) -> bool:
    """Whether a loss of logits has the values of cross-entropy, at the beginning, middle and end of the stage."""
    learns = loss.surveys or type(loss).end_epoch is not Loss.end_epoch
    if loss.needs or loss.streams or learns or loss.classifier != "any":
        return False
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(_ROWS, loss.num_classes, generator=generator)
    features = torch.randn(_ROWS, _FEATURES, generator=generator)
    target = torch.randint(loss.num_classes, (_ROWS,), generator=generator)
    plain = F.cross_entropy(loss.logit_scale * logits, target)
    for epoch in {0, epochs // 2, epochs - 1}:
        context = replace(WHOLE_BATCH, epoch=epoch, max_epochs=epochs)
        try:
            value = loss(ModelOutput(logits, features), target, context)
        except Exception:  # a loss that cannot be tried on made-up logits is not judged
            return False
        if not torch.allclose(value, plain, rtol=1e-5):
            return False
    return True
