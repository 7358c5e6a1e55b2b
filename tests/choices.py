"""Builds a config choice as the command line would, for tests that ask for it by name."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.nn.functional import normalize

from ltexp.config import resolvers  # noqa: F401 - what the files of conf/ interpolate with
from ltexp.evaluation.shots import GROUPS
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext, StreamBatch
from ltexp.outputs import ModelOutput

PROJECTED = 128  # width of a projection, as the configs have it
LEARNED = ("projections", "view_logits", "balanced_logits", "predictions")  # of `extra`, what a gradient may reach
CONF = Path(__file__).parents[1] / "conf"


def names(group: str) -> list[str]:
    """The choices of a config group; one that is not there would be a test of nothing."""
    found = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert found, f"no config group {group}"
    return found


@cache
def load(group: str, name: str) -> DictConfig:
    """conf/<group>/<name>.yaml with the choices that it is made of."""
    file = OmegaConf.load(CONF / group / f"{name}.yaml")
    if "defaults" not in file:
        return file
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose(overrides=[f"+{group}@node={name}"]).node


def build(group: str, name: str, **keywords: Any) -> Any:
    """conf/<group>/<name>.yaml, instantiated with further keywords."""
    return instantiate(load(group, name), **keywords)


def context_of(loss: Loss, output: ModelOutput, labels: Tensor, epoch: int = 0, max_epochs: int = 10) -> BatchContext:
    """Of a whole batch in an epoch; the streams that the loss reads hold the batch's own rows, the last ones first."""
    there = replace(output, logits=output.logits.flip(0))
    streams = {name: StreamBatch(there, labels.flip(0)) for name in loss.streams}
    return BatchContext(epoch=epoch, max_epochs=max_epochs, step=3, streams=streams)


def full_output(logits: Tensor, width: int = 6) -> ModelOutput:
    """An output with `logits` (B, C) in which whatever a loss may read besides is there too, made up but fixed."""
    draws = torch.Generator().manual_seed(0)
    rows, classes = logits.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draws)

    shifts, features = normal(3, rows, classes), normal(rows, width)
    return ModelOutput(
        logits=logits,
        features=features,
        expert_logits=logits + shifts - shifts.mean(0),
        teacher_logits=normal(rows, classes),
        teacher_features=normal(rows, width),
        teachers_logits={name: logits.detach() + normal(rows, classes) for name in GROUPS},
        feature_maps=[normal(rows, 4, side, side) for side in (4, 2)],
        auxiliary_logits=normal(rows, classes),
        auxiliary_maps=[normal(rows, 4, side, side).square() for side in (4, 2)],
        extra={
            "logit_spread": normal(rows, classes).square(),
            "projections": normalize(normal(2, rows, PROJECTED), dim=-1),
            "direct_features": features,
            "centroids": normal(classes, width),
            "keys": normalize(normal(rows, PROJECTED), dim=-1),
            "prototypes": normalize(normal(classes, PROJECTED), dim=-1),
            "view_logits": logits + normal(2, rows, classes),
            "balanced_logits": logits + normal(2, rows, classes),
            "predictions": normal(2, rows, PROJECTED),
        },
    )
