"""The schema of a run's config, and the checks that need neither torch nor data.

A composed config is checked against these dataclasses before anything is written or trained, so that a mistake is
answered in about a second. What they leave free (`dict[str, Any]`) are nodes built by `hydra.utils.instantiate`; their
keys are checked against the signature of their `_target_`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from ltexp.errors import ConfigError
from ltexp.names import unknown_name
from ltexp.signature import accepted_keywords, fits

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
BATCH_NORMS = ("train", "statistics", "frozen")
ACCELERATORS = ("auto", "cpu", "gpu")
FILES_OF_A_BACKBONE = ("weights", "vectors")  # keys of a backbone that may name a file it starts from
PARTS = ("backbone", "classifier", "auxiliary")  # of a stage's model


@dataclass
class Init:
    """Where a stage's parts start from: `fresh`, `stage1`, or the path of a run's folder or a checkpoint file."""

    backbone: str = "fresh"
    classifier: str = "fresh"
    auxiliary: str = "fresh"


@dataclass
class Trainable:
    """Which parts learn; `batch_norm` governs the batch norms apart from this."""

    backbone: bool = True
    classifier: bool = True
    auxiliary: bool = True
    backbone_from_auxiliary: bool = True  # whether the auxiliary network's losses train the backbone as well


@dataclass
class Term:
    """A further loss term of a stage's objective."""

    weight: float = 1.0
    loss: dict[str, Any] = field(default_factory=dict)


@dataclass
class StageConfig:
    """One stage of training. conf/config.yaml explains each key and holds the defaults."""

    epochs: int = MISSING
    batch_size: int = MISSING
    init: Init = field(default_factory=Init)
    trainable: Trainable = field(default_factory=Trainable)
    batch_norm: str = "train"
    training_set: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    features: dict[str, Any] = field(default_factory=dict)
    feature_power: float = 1.0
    classifier: dict[str, Any] = field(default_factory=dict)
    auxiliary: dict[str, Any] = field(default_factory=dict)
    teacher: str | None = None
    loss: dict[str, Any] = field(default_factory=dict)
    loss_weight: float = 1.0
    terms: dict[str, Term] = field(default_factory=dict)
    reweighting: dict[str, Any] = field(default_factory=lambda: {"_target_": "ltexp.losses.reweighting.NoReweighting"})
    sampler: dict[str, Any] = field(default_factory=dict)
    mixing: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    lr_factors: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None


@dataclass
class TrainerConfig:
    """Devices, precision and housekeeping of training (conf/trainer/)."""

    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"
    channels_last: bool = True
    sync_batch_norm: bool = False
    gradient_clip_val: float | None = None
    checkpoint_every: int = 1
    log_every: int = 50
    progress: bool = True


@dataclass
class EvaluationConfig:
    """How accuracy and calibration are measured; shot bounds after Liu et al., CVPR 2019."""

    many_shot_above: int = 100
    few_shot_below: int = 20
    calibration_bins: int = 15
    every: int = 10
    figures: bool = True


@dataclass
class Paths:
    """Folders; a frozen config holds them absolute."""

    data: str = "data"
    outputs: str = "outputs"


@dataclass
class StageCacheConfig:
    """Where trained stages are shared between runs."""

    enabled: bool = True
    dir: str = "outputs/stage_cache"


@dataclass
class Config:
    """A whole run. `choices` names what each config group was set to; `overrides` is what the user typed."""

    seed: int = 0
    resume: bool = False
    paths: Paths = field(default_factory=Paths)
    stage_cache: StageCacheConfig = field(default_factory=StageCacheConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    stage1: StageConfig = field(default_factory=StageConfig)
    stage2: StageConfig | None = None
    choices: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)

    @property
    def stages(self) -> dict[str, StageConfig]:
        """The stages of this run in order, by name."""
        return {"stage1": self.stage1} | ({"stage2": self.stage2} if self.stage2 else {})


def by_imbalance_ratio(table: Mapping[int, Any], *, _root_: DictConfig) -> Any:
    """Resolver `${by_imbalance_ratio:{100:0.4, 50:0.3}}`: the entry of the listed ratio nearest in proportion."""
    balanced = OmegaConf.select(_root_, "dataset.imbalance") == "balanced"
    ratio = 1.0 if balanced else max(float(OmegaConf.select(_root_, "dataset.imbalance_ratio", default=1.0)), 1.0)
    return table[min(table, key=lambda listed: abs(math.log(listed / ratio)))]


def by_backbone(table: Mapping[str, Any], *, _root_: DictConfig) -> Any:
    """Resolver `${by_backbone:{resnext50:256, other:512}}`: the entry of the chosen backbone, or of `other`."""
    return table.get(str(OmegaConf.select(_root_, "choices.backbone")), table["other"])


OmegaConf.register_new_resolver("by_imbalance_ratio", by_imbalance_ratio, replace=True)
OmegaConf.register_new_resolver("by_backbone", by_backbone, replace=True)


def to_config(container: dict[str, Any]) -> Config:
    """Checks a resolved, plain config and returns it typed.

    Raises:
        ConfigError: for an unknown key, a wrong type, a value out of range or a composition that cannot work.
    """
    if container.get("stage1") is None:
        raise ConfigError("stage1 is null: a run has at least a stage 1; leave out `stage1=null`")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), container)
        config = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise ConfigError(_unknown_key(error, container)) from None
    except OmegaConfBaseException as error:
        raise ConfigError(_wrong_value(error)) from None
    assert isinstance(config, Config)
    check_keywords(container)
    check_values(config)
    return config


def load(path: Path) -> Config:
    """The config of a run's folder (its config.yaml).

    Raises:
        ConfigError: if the file is missing or is not a run's config.
    """
    return to_config(load_plain(path))


def load_plain(path: Path) -> dict[str, Any]:
    """The content of a run's config.yaml, as it is.

    Raises:
        ConfigError: if the file is missing or damaged.
    """
    try:
        container = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; is this the folder of a run?") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(f"{path} is damaged: it is not YAML") from None
    if not isinstance(container, dict):
        raise ConfigError(f"{path} is not the config of a run")
    return {str(key): value for key, value in container.items()}


def _wrong_value(error: OmegaConfBaseException) -> str:
    key, reason = str(error.full_key or error.key), str(error).splitlines()[0]
    if "annot assign" in reason:
        stage, _, group = key.rpartition(".")
        choice = f"{group}@{key}" if stage else key
        return f"{key} is not one value: choose with {choice}=NAME, or set a key below {key}"
    return f"{key}: {reason[0].lower()}{reason[1:]}"


def _unknown_key(error: ConfigKeyError, container: dict[str, Any]) -> str:
    full_key = str(error.full_key or error.key)
    parent = full_key.rpartition(".")[0]
    fields = OmegaConf.select(OmegaConf.structured(Config), parent) if parent else OmegaConf.structured(Config)
    if parent == "stage2":
        fields = OmegaConf.structured(StageConfig)
    known = [f"{parent}.{name}".lstrip(".") for name in fields] if fields is not None else []
    return unknown_name("key", full_key, known)


def check_values(config: Config) -> None:
    """Checks values against each other and their ranges.

    Raises:
        ConfigError: for the first that cannot be, with what is expected instead.
    """
    _require(config.seed >= 0, "seed", config.seed, "a whole number from 0")
    trainer = config.trainer
    _require(trainer.accelerator in ACCELERATORS, "trainer.accelerator", trainer.accelerator, " | ".join(ACCELERATORS))
    _require(trainer.precision in PRECISIONS, "trainer.precision", trainer.precision, " | ".join(PRECISIONS))
    for name in ("devices", "checkpoint_every", "log_every"):
        _require(getattr(trainer, name) >= 1, f"trainer.{name}", getattr(trainer, name), "at least 1")
    _require(config.evaluation.every >= 0, "evaluation.every", config.evaluation.every, "0 (never) or more")
    bins, clip = config.evaluation.calibration_bins, trainer.gradient_clip_val
    _require(bins >= 1, "evaluation.calibration_bins", bins, "at least 1")
    _require(clip is None or clip > 0, "trainer.gradient_clip_val", clip, "a number above 0, or null")
    synchronised = trainer.sync_batch_norm and (trainer.devices == 1 or trainer.accelerator == "cpu")
    _require(not synchronised, "trainer.sync_batch_norm", True, "false: it needs several GPUs (trainer.devices)")
    few, many = config.evaluation.few_shot_below, config.evaluation.many_shot_above
    _require(few <= many + 1, "evaluation.few_shot_below", few, f"at most many_shot_above + 1 = {many + 1}")
    ratio = config.dataset.get("imbalance_ratio")
    _require(ratio is None or ratio >= 1, "dataset.imbalance_ratio", ratio, "at least 1 (largest over smallest class)")
    for name, stage in config.stages.items():
        _check_stage(name, stage, trainer.devices)
        for key in stage.training_set:
            if key not in config.dataset:
                known = [f"{name}.training_set.{own}" for own in config.dataset if own != "_target_"]
                raise ConfigError(unknown_name("key", f"{name}.training_set.{key}", known))


def _check_stage(name: str, stage: StageConfig, world_size: int) -> None:
    _require(stage.epochs >= 0, f"{name}.epochs", stage.epochs, "0 or more")
    _require(stage.batch_size >= 1, f"{name}.batch_size", stage.batch_size, "at least 1")
    _require(
        stage.batch_size % world_size == 0,
        f"{name}.batch_size",
        stage.batch_size,
        f"a multiple of the {world_size} devices (it is the batch of all devices together)",
    )
    for group in ("augmentation", "classifier", "loss", "sampler", "mixing", "optimizer", "schedule"):
        if not getattr(stage, group).get("_target_"):
            raise ConfigError(f"{name}.{group} has no _target_: choose it with {group}@{name}.{group}=NAME")
    _require(stage.loss_weight > 0, f"{name}.loss_weight", stage.loss_weight, "a number above 0")
    lr = stage.optimizer.get("lr")
    _require(isinstance(lr, int | float) and lr > 0, f"{name}.optimizer.lr", lr, "a number above 0")
    for key in ("momentum", "weight_decay"):
        value = stage.optimizer.get(key, 0)
        _require(isinstance(value, int | float) and value >= 0, f"{name}.optimizer.{key}", value, "a number from 0")
    power = stage.feature_power
    _require(0 < power < math.inf, f"{name}.feature_power", power, "a number above 0; 1 leaves features as they are")
    _require(stage.batch_norm in BATCH_NORMS, f"{name}.batch_norm", stage.batch_norm, " | ".join(BATCH_NORMS))
    for part in PARTS:
        start = getattr(stage.init, part)
        _require(name != "stage1" or start != "stage1", f"{name}.init.{part}", start, "fresh or a path")
    for term_name, term in stage.terms.items():
        key = f"{name}.terms.{term_name}.weight"
        _require(0 <= term.weight < math.inf, key, term.weight, "a number from 0")
    if name == "stage1":
        _require(stage.teacher != "stage1", "stage1.teacher", stage.teacher, "null or a path")
        _require(stage.epochs >= 1 or stage.checkpoint is not None, "stage1.epochs", stage.epochs, "at least 1")


def _require(holds: bool, key: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{key}={value} cannot be: expected {expected}")


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
    if key not in accepted:
        raise ConfigError(unknown_name("key", f"{path}.{key}", [f"{path}.{name}" for name in accepted]))
    if not fits(value, accepted[key]):
        raise ConfigError(f"{path}.{key}={value} cannot be: expected {accepted[key]}")
