"""What a config passes on to Lightning: keywords of its Trainer, and callbacks by name.

Lightning's Trainer has about forty keywords. Those that would break a promise of ours are refused with what to set
instead; any other may be set. None of this imports torch: the keywords are read from Lightning's source.
"""

import ast
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from ltexp.config.require import require
from ltexp.config.schema import Config, TrainerConfig
from ltexp.errors import ConfigError, SettingError, UnknownKeyError

# keywords that conf/trainer lists, with the value that leaves training as it is
USUAL: dict[str, Any] = {
    "gradient_clip_algorithm": None,
    "limit_train_batches": None,
    "limit_val_batches": None,
    "limit_test_batches": None,
    "overfit_batches": 0,
    "fast_dev_run": False,
    "max_time": None,
    "strategy": "auto",
    "deterministic": None,
    "benchmark": None,
    "inference_mode": True,
    "profiler": None,
    "detect_anomaly": False,
    "enable_model_summary": False,
}
# keywords of the Trainer that are not passed on: what to set instead, and where it is not plain, why
REFUSED = {
    "max_epochs": "set stage1.epochs or stage2.epochs",
    "min_epochs": "set stage1.epochs or stage2.epochs, and for early stopping callbacks.early_stopping.patience",
    "max_steps": "a stage is a number of epochs: set stage1.epochs or stage2.epochs",
    "min_steps": "a stage is a number of epochs: set stage1.epochs or stage2.epochs",
    "accumulate_grad_batches": "set trainer.accumulate; stageN.batch_size stays that of a step",
    "use_distributed_sampler": "our samplers give one stream on any number of processes: choose sampler@stageN.sampler",
    "callbacks": "choose callbacks=NAME, or add one with +callbacks.NAME._target_=CLASS",
    "logger": "choose logger=NAME",
    "check_val_every_n_epoch": "set evaluation.every",
    "val_check_interval": "evaluation takes place between epochs: set evaluation.every",
    "num_sanity_val_steps": "an evaluation before training would draw nothing of use: set evaluation.every",
    "reload_dataloaders_every_n_epochs": "a stage's loader lasts for the stage: choose sampler@stageN.sampler",
    "default_root_dir": "set hydra.run.dir",
    "plugins": "processes are started by torch's launcher: set trainer.devices, trainer.precision or trainer.strategy",
    "enable_checkpointing": "set callbacks.resume=null for no checkpoints to resume from",
    "enable_progress_bar": "set trainer.progress",
    "sync_batchnorm": "set trainer.sync_batch_norm",
    "barebones": "it turns off the checks of the loss: set callbacks.progress=null, logger=none and evaluation.every=0",
    "limit_predict_batches": "predictions are those of the test split: set trainer.limit_test_batches",
}
# keywords that change what is shown or how fast it is computed, but not what is computed
IMMATERIAL = (
    "profiler",
    "detect_anomaly",
    "enable_model_summary",
    "inference_mode",
    "log_every_n_steps",
    "enable_autolog_hparams",
    "model_registry",
)
PARTIAL = ("fast_dev_run", "limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")
PROFILERS = ("simple", "advanced", "pytorch")
OWN_CALLBACKS = {
    "statistics": "AgreeOnStatistics",
    "monitor": "Monitor",
    "norms": "FeatureNorms",
    "progress": "Progress",
    "resume": "ResumeCheckpoint",
}
# callbacks of Lightning's that watch and leave training as it is; any other may change what a stage trains to
_WATCHERS = frozenset(
    f"pytorch_lightning.callbacks.{name}"
    for name in (
        "DeviceStatsMonitor",
        "LearningRateMonitor",
        "ModelCheckpoint",
        "ModelSummary",
        "RichModelSummary",
        "RichProgressBar",
        "ThroughputMonitor",
        "TQDMProgressBar",
    )
)


def typed_trainer(node: Mapping[str, Any]) -> dict[str, Any]:
    """A config's `trainer` node as `TrainerConfig` has it: keywords of Lightning's in a dictionary of their own.

    Raises:
        ConfigError: a key that is neither ours nor Lightning's, or one of Lightning's that is refused.
    """
    own = {field.name for field in fields(TrainerConfig)} - {"lightning"}
    typed = {str(key): value for key, value in node.items() if key in own}
    passed = {str(key): value for key, value in node.items() if key not in own}
    for key in passed:
        check_keyword(key)
    usual = {key for key, value in passed.items() if key in USUAL and _same(value, USUAL[key])}
    return typed | {"lightning": {key: value for key, value in passed.items() if key not in usual}}


def trainer_config(node: Mapping[str, Any]) -> TrainerConfig:
    """The settings of a checked config's `trainer` node."""
    return TrainerConfig(**typed_trainer(node))


def _same(value: object, usual: object) -> bool:
    """Equal and of one type: False is no 0, and 1 batch is not all of them (1.0)."""
    return value == usual and isinstance(value, bool) == isinstance(usual, bool)


def check_keyword(key: str) -> None:
    """Refuses a key of `trainer` that is not passed on to Lightning.

    Raises:
        ConfigError: with what to set instead, or the nearest name.
    """
    if key in REFUSED:
        raise ConfigError(f"trainer.{key} is not passed on to Lightning: {REFUSED[key]}")
    if key not in USUAL and key not in _keywords():
        own = [field.name for field in fields(TrainerConfig) if field.name != "lightning"]
        known = [*own, *USUAL, *(name for name in _keywords() if name not in REFUSED)]
        raise UnknownKeyError(key, dict.fromkeys(known)).below("trainer")


@cache
def _keywords() -> tuple[str, ...]:
    """The keywords of the installed Lightning's Trainer."""
    found = importlib.util.find_spec("pytorch_lightning")
    if found is None or found.origin is None:
        return ()
    tree = ast.parse((Path(found.origin).parent / "trainer" / "trainer.py").read_text(encoding="utf-8"))
    (trainer,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Trainer")
    (init,) = (node for node in trainer.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return tuple(argument.arg for argument in init.args.kwonlyargs)


def check_lightning(config: Config) -> None:
    """Checks the values of what is passed on to Lightning.

    Raises:
        ConfigError: for the first that cannot work.
    """
    _check_trainer(config.trainer)
    for name in ("statistics", "monitor"):
        if not config.callbacks.get(name):
            raise ConfigError(f"callbacks.{name} cannot be switched off: what is saved and recorded depends on it")
    for key, node in config.callbacks.items():
        if node is not None and not (isinstance(node, Mapping) and isinstance(node.get("_target_"), str)):
            raise SettingError(f"callbacks.{key}", node, "a node with a _target_, or null")
    for key, node in loggers(config.logger).items():
        if not isinstance(node, Mapping):
            raise ConfigError(f"logger.{key} belongs to a logger: set logger.NAME.{key}, such as logger.wandb.{key}")
        if not isinstance(node.get("_target_"), str):
            raise ConfigError(f"logger.{key} has no _target_: choose it with logger={key} or logger=[csv,{key}]")


def _check_trainer(trainer: TrainerConfig) -> None:
    expected = {
        **dict.fromkeys(_NEEDED, _SOME_BATCHES),
        **dict.fromkeys(("limit_val_batches", "overfit_batches"), _BATCHES),
        "fast_dev_run": "true, false or a number of batches",
        "max_time": "days, hours, minutes and seconds as DD:HH:MM:SS, or null",
        "gradient_clip_algorithm": "norm | value, or null",
        "deterministic": "true, false or warn",
        "profiler": " | ".join(PROFILERS) + ", a node with a _target_, or null",
        "strategy": " | ".join(STRATEGIES) + ", or a node with a _target_",
        **dict.fromkeys(("benchmark", "inference_mode", "detect_anomaly", "enable_model_summary"), "true or false"),
    }
    for key, value in trainer.lightning.items():
        require(key not in expected or _fits(key, value), f"trainer.{key}", value, expected.get(key, ""))
    if trainer.lightning.get("gradient_clip_algorithm") and trainer.gradient_clip_val is None:
        raise ConfigError("trainer.gradient_clip_algorithm clips nothing without trainer.gradient_clip_val: set both")


_BATCHES = "a number of batches, or a fraction of them from 0.0 to 1.0"
_SOME_BATCHES = "a number of batches, 1 or more, or a fraction of them above 0.0, at most 1.0"
_NEEDED = ("limit_train_batches", "limit_test_batches")  # without a batch there is no training and no accuracy


def _fits(key: str, value: Any) -> bool:
    if value is None:
        return key not in ("strategy", "inference_mode")
    if key.startswith("limit_") or key == "overfit_batches":
        whole = isinstance(value, int) and not isinstance(value, bool)
        number = whole or (isinstance(value, float) and 0 <= value <= 1)
        return number and (value > 0 if key in _NEEDED else value >= 0)
    if key in ("strategy", "profiler"):
        built = isinstance(value, Mapping) and isinstance(value.get("_target_"), str)
        return built or value in (STRATEGIES if key == "strategy" else PROFILERS)
    if key == "max_time":
        return isinstance(value, Mapping) or re.fullmatch(r"\d+:\d+:\d+:\d+", str(value)) is not None
    if key == "fast_dev_run":
        return isinstance(value, int) and value >= 0
    if key == "gradient_clip_algorithm":
        return value in ("norm", "value")
    return isinstance(value, bool) or (key == "deterministic" and value == "warn")


def material_lightning(trainer: TrainerConfig) -> dict[str, Any]:
    """The keywords passed on to Lightning that change what is computed."""
    return {key: value for key, value in trainer.lightning.items() if key not in IMMATERIAL}


def partial_settings(trainer: TrainerConfig) -> dict[str, Any]:
    """The keywords that make a run less than a full one, by their full keys."""
    found = {key: value for key, value in trainer.lightning.items() if key in PARTIAL}
    return {f"trainer.{key}": value for key, value in found.items() if not _takes_all(key, value)}


def _takes_all(key: str, value: Any) -> bool:
    """Whether the value leaves every batch in: a limit of 1.0 is a fraction, one of 1 a single batch."""
    return value is None or value is False or (key.startswith("limit_") and isinstance(value, float) and value == 1)


def may_stop(config: Config) -> list[str]:
    """The full keys of what may end a stage before its last epoch: a keyword of the Trainer, or callbacks that stop."""
    if config.trainer.lightning.get("fast_dev_run"):
        return ["trainer.fast_dev_run"]
    timed = ["trainer.max_time"] if config.trainer.lightning.get("max_time") is not None else []
    nodes = material_callbacks(config.callbacks)
    return timed + [f"callbacks.{name}" for name, node in nodes.items() if _stops(str(node["_target_"]))]


def is_timed(config: Config) -> bool:
    """Whether the clock may end a stage, so that its config does not say what it trains to."""
    timers = (str(node["_target_"]).endswith(".Timer") for node in material_callbacks(config.callbacks).values())
    return config.trainer.lightning.get("max_time") is not None or any(timers)


def _stops(target: str) -> bool:
    """Whether a callback may end a stage: of Lightning's own only these do."""
    own = target.startswith("pytorch_lightning.callbacks.")
    return not own or target.endswith((".EarlyStopping", ".Timer", ".LambdaCallback"))


def test_limit(trainer: TrainerConfig) -> float | None:
    """The batches of the test split that count at a stage's end, or a fraction of them; None: all."""
    if fast := trainer.lightning.get("fast_dev_run"):
        return int(fast)
    limit: float | None = trainer.lightning.get("limit_test_batches")
    return limit


def own_callbacks(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The callbacks of a config from before they could be chosen."""
    settings = TrainerConfig(**{key: value for key, value in typed_trainer(trainer).items() if key != "lightning"})
    nodes: dict[str, Any] = {
        name: {"_target_": f"ltexp.training.callbacks.{target}"} for name, target in OWN_CALLBACKS.items()
    }
    nodes["monitor"]["check_every"] = settings.log_every
    nodes["progress"] |= {"shown": settings.progress, "every": settings.log_every}
    nodes["resume"]["every"] = settings.checkpoint_every
    return nodes


def material_callbacks(callbacks: Mapping[str, Any]) -> dict[str, Any]:
    """The callbacks that may change what a stage trains to: all but ours and those of Lightning's that only watch."""
    return {
        name: dict(node)
        for name, node in callbacks.items()
        if node and name not in OWN_CALLBACKS and node["_target_"] not in _WATCHERS
    }


def loggers(node: Mapping[str, Any]) -> dict[str, Any]:
    """The loggers of a config by name; one alone may stand without, as in configs of earlier versions."""
    if "_target_" in node:
        return {"logger": node} if node["_target_"] else {}
    return {str(name): child for name, child in node.items() if child is not None}


def group_loggers(plain: Mapping[str, Any], group: str) -> None:
    """Gives the loggers of a plain config that have a `group` of null that of a sweep."""
    for node in loggers(plain["logger"]).values():
        if isinstance(node, dict) and node.get("group", group) is None:
            node["group"] = group
