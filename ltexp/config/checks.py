"""Checks of a config that need neither torch nor data."""

import math
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from ltexp.config.annotations import expected, fits
from ltexp.config.numbers import MOST_BINS, MOST_DRAWN, MOST_EPOCHS, MOST_LR
from ltexp.config.require import is_number, is_whole, require, require_choice, within
from ltexp.config.schema import (
    ACCELERATORS,
    BATCH_NORMS,
    COMPILE_BACKENDS,
    COMPILE_MODES,
    HELD_OUT_OF,
    MODULE_KEYS,
    PRECISIONS,
    STAGE,
    Config,
    StageConfig,
    Stream,
    TrainerConfig,
    names_stage,
)
from ltexp.config.signature import accepted_keywords
from ltexp.config.sources import is_ours
from ltexp.errors import ConfigError, UnknownKeyError

MODULE = re.compile(rf"({STAGE.pattern})\.modules\.[^.]+")
HOST_PORT = re.compile(r"[^\s:]+:\d+|\[[\da-fA-F:]+\]:\d+")  # a name or an address; IPv6 in brackets


def check_values(config: Config) -> None:
    """Checks values against each other and their ranges.

    Raises:
        ConfigError: for the first that is out of range, with what is expected instead.
    """
    require(config.seed >= 0, "seed", config.seed, "a whole number of 0 or more")
    trainer = config.trainer
    require_choice("trainer.accelerator", trainer.accelerator, ACCELERATORS)
    require_choice("trainer.precision", trainer.precision, PRECISIONS)
    for name in ("devices", "num_nodes", "accumulate", "checkpoint_every", "log_every"):
        require(getattr(trainer, name) >= 1, f"trainer.{name}", getattr(trainer, name), "at least 1")
    require(config.evaluation.every >= 0, "evaluation.every", config.evaluation.every, "0 (never) or more")
    bins, clip = config.evaluation.calibration_bins, trainer.gradient_clip_val
    require(is_whole(bins, 1, MOST_BINS), "evaluation.calibration_bins", bins, f"from 1 to {MOST_BINS}")
    require(clip is None or clip > 0, "trainer.gradient_clip_val", clip, "a number above 0, or null")
    met, place = trainer.rendezvous is None or trainer.num_nodes > 1, trainer.rendezvous
    require(met, "trainer.rendezvous", place, "null for one node; set trainer.num_nodes for several")
    require(place is None or HOST_PORT.fullmatch(place), "trainer.rendezvous", place, "HOST:PORT of one of the nodes")
    synchronised = trainer.sync_batch_norm and (trainer.world_size == 1 or trainer.accelerator == "cpu")
    require(not synchronised, "trainer.sync_batch_norm", True, "false: it needs several GPUs (trainer.devices)")
    half = trainer.precision == "16-mixed" and trainer.accelerator == "cpu"
    require(not half, "trainer.precision", "16-mixed", "bf16-mixed or 32-true: fp16 with loss scaling needs a GPU")
    _check_speed(trainer)
    _check_backbone(config)
    few, many = config.evaluation.few_shot_below, config.evaluation.many_shot_above
    require(many >= 0, "evaluation.many_shot_above", many, "0 or more")
    require(few >= 0, "evaluation.few_shot_below", few, "0 or more")
    require(few <= many + 1, "evaluation.few_shot_below", few, f"at most many_shot_above + 1 = {many + 1}")
    ratio = config.dataset.get("imbalance_ratio")
    require(ratio is None or ratio >= 1, "dataset.imbalance_ratio", ratio, "at least 1 (largest over smallest class)")
    _check_sources(config.stages)
    for name, stage in config.stages.items():
        _check_stage(name, stage, trainer.world_size)
        for key in stage.training_set:
            if key not in config.dataset:
                known = [own for own in config.dataset if own != "_target_"]
                raise UnknownKeyError(key, known).below(f"{name}.training_set")


def _check_speed(trainer: TrainerConfig) -> None:
    """torch.compile's settings, and what cannot be replayed from a graph of one device's steps."""
    require_choice("trainer.compile_backend", trainer.compile_backend, COMPILE_BACKENDS)
    if (mode := trainer.compile_mode) is not None:
        require_choice("trainer.compile_mode", mode, COMPILE_MODES)
        require(trainer.compile_backend == "inductor", "trainer.compile_mode", mode, "null: it is inductor's")
    if not trainer.step_graph:
        return
    key, value = "trainer.step_graph", True
    require(trainer.accelerator != "cpu", key, value, "false: CUDA graphs are of a GPU (trainer.accelerator)")
    require(trainer.world_size == 1, key, value, "false: it is for one device, and several exchange gradients")
    require(trainer.precision != "16-mixed", key, value, "false: fp16 skips steps by what it finds; use bf16-mixed")
    own = trainer.compile and mode in ("reduce-overhead", "max-autotune")
    require(not own, key, value, f"false: trainer.compile_mode={mode} makes graphs of its own")
    anomalies = bool(trainer.lightning.get("detect_anomaly"))
    require(not anomalies, key, value, "false: trainer.detect_anomaly looks at each operation's result")


def _check_backbone(config: Config) -> None:
    backbone, stage = config.backbone, next(iter(config.stages.values()))
    if backbone.get("experts") is not None and (backbone.get("weights") or backbone.get("frozen_trunk")):
        raise ConfigError("no pretrained weights fit a network of experts: add fine_tuning=none, for a random start")
    random = backbone.get("weights") is None and stage.init.backbone == "fresh" and stage.checkpoint is None
    if backbone.get("tuning") and not backbone.get("weights"):
        raise ConfigError(
            "backbone.tuning would freeze random weights: set backbone.weights=FILE, or choose fine_tuning=none"
        )
    if backbone.get("frozen_trunk") and random:
        raise ConfigError(
            "backbone.frozen_trunk=true would freeze random weights: set backbone.weights, or choose fine_tuning=none"
        )


def _check_sources(stages: Mapping[str, StageConfig]) -> None:
    """A stage starts from, and learns from, none but earlier stages of the run; the first one has no earlier."""
    first = next(iter(stages))
    needed = stages[first].epochs >= 1 or stages[first].checkpoint is not None
    require(needed, f"{first}.epochs", stages[first].epochs, "at least 1")
    earlier: list[str] = []
    for name, stage in stages.items():
        places = {start_key(name, part): (where, ["fresh"]) for part, where in stage.starts.items()}
        for key, where in stage.taught_by.items():
            places[f"{name}.{key}"] = where, ["null"] if key == "teacher" else []
        for key, (where, none) in places.items():
            if names_stage(where) and where not in earlier:
                known = ", ".join([*none, *earlier])
                expected = f"{known} or a path" if known else "a path"
                require(False, key, where, f"{expected}{_why_not(stages, name, where)}")
        earlier.append(name)


def start_key(stage: str, part: str) -> str:
    """The key that says where a part of a stage's model starts from; `part` is one of `StageConfig.starts`."""
    return f"{stage}.{part}.start" if part.startswith("modules.") else f"{stage}.init.{part}"


def _why_not(stages: Mapping[str, StageConfig], name: str, where: str) -> str:
    """Why the stage `name` cannot start from the stage `where`."""
    if where not in stages:
        return f"; this run has no {where}"
    reached, found = [where], {where}
    for stage in reached:  # which grows
        reached += [source for source in stages[stage].sources if source in stages and source not in found]
        found |= set(reached)
    if name not in found:
        return f"; {where} comes after {name}"
    circle = f"{name} and {where} name each other in a circle"
    return "; a stage cannot start from itself" if name == where else f"; {circle}"


def _check_stage(name: str, stage: StageConfig, world_size: int) -> None:
    require(stage.epochs >= 0, f"{name}.epochs", stage.epochs, "0 or more")
    require(stage.epochs <= MOST_EPOCHS, f"{name}.epochs", stage.epochs, f"at most {MOST_EPOCHS}")
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
    rate = is_number(lr, 0, MOST_LR) and lr > 0  # type: ignore[operator]  # a number
    require(rate, f"{name}.optimizer.lr", lr, f"a number above 0, at most {MOST_LR:g}")
    drawn = stage.sampler.get("epoch_length") or 1
    sane = not isinstance(drawn, int) or drawn <= MOST_DRAWN
    require(sane, f"{name}.sampler.epoch_length", drawn, f"a whole number from 1 to {MOST_DRAWN}")
    betas = stage.optimizer.get("betas", [0.0, 0.0])
    pair = isinstance(betas, list) and len(betas) == 2 and all(is_number(beta, 0) and beta < 1 for beta in betas)
    require(pair, f"{name}.optimizer.betas", betas, "a list of two numbers from 0 to below 1")
    decay, momentum = (stage.optimizer.get(key, 0) for key in ("weight_decay", "momentum"))
    require(is_number(decay, 0), f"{name}.optimizer.weight_decay", decay, "a number of 0 or more")
    below_1 = is_number(momentum, 0) and momentum < 1
    require(below_1, f"{name}.optimizer.momentum", momentum, "a number of 0 or more and below 1")
    power = stage.feature_power
    require(0 < power < math.inf, f"{name}.feature_power", power, "a number above 0; 1 leaves features as they are")
    require_choice(f"{name}.batch_norm", stage.batch_norm, BATCH_NORMS)
    for stream_name, stream in stage.streams.items():
        _check_stream(f"{name}.streams.{stream_name}", stream, world_size)
    for module, node in stage.modules.items():
        _check_module(f"{name}.modules.{module}", module, node)
    for term_name, term in stage.terms.items():
        key = f"{name}.terms.{term_name}.weight"
        require(0 <= term.weight < math.inf, key, term.weight, "a number of 0 or more")
        if not term.loss.get("_target_"):
            raise ConfigError(f"{name}.terms.{term_name} has no loss: add +loss@{name}.terms.{term_name}.loss=NAME")
        known = " | ".join(["null", *stage.streams])
        there = term.stream is None or term.stream in stage.streams
        require(there, f"{name}.terms.{term_name}.stream", term.stream, f"{known} (of {name}.streams)")


def _check_stream(key: str, stream: Stream, world_size: int) -> None:
    if not stream.sampler.get("_target_"):
        raise ConfigError(f"{key} has no sampler: choose +stream@{key}=NAME, or +sampler@{key}.sampler=NAME")
    size = stream.batch_size
    whole = size is None or (size >= 1 and size % world_size == 0)
    require(whole, f"{key}.batch_size", size, f"null (the stage's), or a multiple of the {world_size} devices")
    if stream.held_out is not None:
        each, of = stream.held_out.per_class, stream.held_out.of
        require(each >= 1, f"{key}.held_out.per_class", each, "1 or more images of each class")
        require_choice(f"{key}.held_out.of", of, HELD_OUT_OF)


def _check_module(key: str, name: str, node: Mapping[str, Any]) -> None:
    taken = name in ("backbone", "classifier") or not name.isidentifier()
    require(not taken, f"{key.rpartition('.')[0]} name", name, "a name of letters, digits and _ of its own")
    for own in ("reads", "gives"):
        value = node.get(own) or []
        names = isinstance(value, list) and all(isinstance(field, str) for field in value)
        require(names, f"{key}.{own}", value, "a list of names, or null for the class's own")
    for own in ("trainable", "detached", "keep"):
        value = node.get(own)
        require(value is None or isinstance(value, bool), f"{key}.{own}", value, "true or false")
    start = node.get("start") or "fresh"
    require(isinstance(start, str), f"{key}.start", start, "fresh, an earlier stage or a path")


def check_keywords(node: Any, path: str = "") -> None:
    """Every node with an ltexp `_target_` may hold that class's keywords only, with values of their types.

    Raises:
        ConfigError: for the first key or value that does not fit.
    """
    if not isinstance(node, Mapping | DictConfig):
        return
    target = node.get("_target_")
    accepted = accepted_keywords(target) if isinstance(target, str) and is_ours(target) else None
    if accepted is not None:
        reserved = MODULE_KEYS if MODULE.fullmatch(path) else ()
        for key, value in node.items():
            if key not in reserved:
                _check_keyword(str(key), value, accepted, path)
    for key, child in node.items():
        check_keywords(child, f"{path}.{key}".lstrip("."))


def _check_keyword(key: str, value: object, accepted: Mapping[str, str], path: str) -> None:
    if key.startswith("_"):
        return
    with within(path):
        if key not in accepted and (path, key) == ("backbone", "tuning"):
            raise ConfigError(
                "this fine_tuning is for networks of timm: add backbone=timm (or clip_vit), or fine_tuning=none", key
            )
        if key not in accepted:
            raise UnknownKeyError(key, accepted)
        require(fits(value, accepted[key]), key, value, expected(accepted[key]))
