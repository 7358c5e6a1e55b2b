"""Checks of a config that need neither torch nor data."""

import math
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from ltexp.config.require import require, within
from ltexp.config.schema import (
    ACCELERATORS,
    BATCH_NORMS,
    COMPILE_BACKENDS,
    PARTS,
    PRECISIONS,
    Config,
    StageConfig,
)
from ltexp.config.signature import accepted_keywords, fits
from ltexp.errors import ConfigError, UnknownKeyError

HOST_PORT = re.compile(r"[^\s:]+:\d+|\[[\da-fA-F:]+\]:\d+")  # a name or an address; IPv6 in brackets


def check_values(config: Config) -> None:
    """Checks values against each other and their ranges.

    Raises:
        ConfigError: for the first that cannot be, with what is expected instead.
    """
    require(config.seed >= 0, "seed", config.seed, "a whole number of 0 or more")
    trainer = config.trainer
    require(trainer.accelerator in ACCELERATORS, "trainer.accelerator", trainer.accelerator, " | ".join(ACCELERATORS))
    require(trainer.precision in PRECISIONS, "trainer.precision", trainer.precision, " | ".join(PRECISIONS))
    for name in ("devices", "num_nodes", "accumulate", "checkpoint_every", "log_every"):
        require(getattr(trainer, name) >= 1, f"trainer.{name}", getattr(trainer, name), "at least 1")
    require(config.evaluation.every >= 0, "evaluation.every", config.evaluation.every, "0 (never) or more")
    bins, clip = config.evaluation.calibration_bins, trainer.gradient_clip_val
    require(bins >= 1, "evaluation.calibration_bins", bins, "at least 1")
    require(clip is None or clip > 0, "trainer.gradient_clip_val", clip, "a number above 0, or null")
    met, place = trainer.rendezvous is None or trainer.num_nodes > 1, trainer.rendezvous
    require(met, "trainer.rendezvous", place, "null for one node; set trainer.num_nodes for several")
    require(place is None or HOST_PORT.fullmatch(place), "trainer.rendezvous", place, "HOST:PORT of one of the nodes")
    synchronised = trainer.sync_batch_norm and (trainer.world_size == 1 or trainer.accelerator == "cpu")
    require(not synchronised, "trainer.sync_batch_norm", True, "false: it needs several GPUs (trainer.devices)")
    half = trainer.precision == "16-mixed" and trainer.accelerator == "cpu"
    require(not half, "trainer.precision", "16-mixed", "bf16-mixed or 32-true: fp16 with loss scaling needs a GPU")
    backends = " | ".join(COMPILE_BACKENDS)
    require(trainer.compile_backend in COMPILE_BACKENDS, "trainer.compile_backend", trainer.compile_backend, backends)
    _check_backbone(config)
    few, many = config.evaluation.few_shot_below, config.evaluation.many_shot_above
    require(few <= many + 1, "evaluation.few_shot_below", few, f"at most many_shot_above + 1 = {many + 1}")
    ratio = config.dataset.get("imbalance_ratio")
    require(ratio is None or ratio >= 1, "dataset.imbalance_ratio", ratio, "at least 1 (largest over smallest class)")
    for name, stage in config.stages.items():
        _check_stage(name, stage, trainer.world_size)
        for key in stage.training_set:
            if key not in config.dataset:
                known = [own for own in config.dataset if own != "_target_"]
                raise UnknownKeyError(key, known).below(f"{name}.training_set")


def _check_backbone(config: Config) -> None:
    backbone, stage = config.backbone, config.stage1
    if backbone.get("experts") is not None and (backbone.get("weights") or backbone.get("frozen_trunk")):
        raise ConfigError("no pretrained weights fit a network of experts: add fine_tuning=none, for a random start")
    random = backbone.get("weights") is None and stage.init.backbone == "fresh" and stage.checkpoint is None
    if backbone.get("frozen_trunk") and random:
        raise ConfigError(
            "backbone.frozen_trunk=true would freeze random weights: set backbone.weights, or choose fine_tuning=none"
        )


def _check_stage(name: str, stage: StageConfig, world_size: int) -> None:
    require(stage.epochs >= 0, f"{name}.epochs", stage.epochs, "0 or more")
    require(stage.batch_size >= 1, f"{name}.batch_size", stage.batch_size, "at least 1")
    require(
        stage.batch_size % world_size == 0,
        f"{name}.batch_size",
        stage.batch_size,
        f"a multiple of the {world_size} devices of all nodes (it is the batch of all together)",
    )
    for group in ("augmentation", "classifier", "loss", "sampler", "mixing", "optimizer", "schedule"):
        if not getattr(stage, group).get("_target_"):
            raise ConfigError(f"{name}.{group} has no _target_: choose it with {group}@{name}.{group}=NAME")
    require(stage.loss_weight > 0, f"{name}.loss_weight", stage.loss_weight, "a number above 0")
    lr = stage.optimizer.get("lr")
    require(isinstance(lr, int | float) and lr > 0, f"{name}.optimizer.lr", lr, "a number above 0")
    for key in ("momentum", "weight_decay"):
        value = stage.optimizer.get(key, 0)
        require(
            isinstance(value, int | float) and value >= 0, f"{name}.optimizer.{key}", value, "a number of 0 or more"
        )
    power = stage.feature_power
    require(0 < power < math.inf, f"{name}.feature_power", power, "a number above 0; 1 leaves features as they are")
    require(stage.batch_norm in BATCH_NORMS, f"{name}.batch_norm", stage.batch_norm, " | ".join(BATCH_NORMS))
    for part in PARTS:
        start = getattr(stage.init, part)
        require(name != "stage1" or start != "stage1", f"{name}.init.{part}", start, "fresh or a path")
    for term_name, term in stage.terms.items():
        key = f"{name}.terms.{term_name}.weight"
        require(0 <= term.weight < math.inf, key, term.weight, "a number of 0 or more")
    if name == "stage1":
        require(stage.teacher != "stage1", "stage1.teacher", stage.teacher, "null or a path")
        require(stage.epochs >= 1 or stage.checkpoint is not None, "stage1.epochs", stage.epochs, "at least 1")


def check_keywords(node: Any, path: str = "") -> None:
    """Every node with an ltexp `_target_` may hold that class's keywords only, with values of their types.

    Raises:
        ConfigError: for the first key or value that does not fit.
    """
    if not isinstance(node, Mapping | DictConfig):
        return
    target = node.get("_target_")
    accepted = accepted_keywords(target) if isinstance(target, str) else None
    if accepted is not None:
        for key, value in node.items():
            _check_keyword(str(key), value, accepted, path)
    for key, child in node.items():
        check_keywords(child, f"{path}.{key}".lstrip("."))


def _check_keyword(key: str, value: object, accepted: Mapping[str, str], path: str) -> None:
    if key.startswith("_"):
        return
    with within(path):
        if key not in accepted:
            raise UnknownKeyError(key, accepted)
        require(fits(value, accepted[key]), key, value, accepted[key])
