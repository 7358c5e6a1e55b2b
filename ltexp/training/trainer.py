"""Lightning's Trainer for a stage: its keywords, callbacks, strategy and profiler, as the config has them."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.utils import get_class
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import profilers
from pytorch_lightning.callbacks import (
    Callback,
    Checkpoint,
    ModelSummary,
    ProgressBar,
    RichModelSummary,
    WeightAveraging,
)
from pytorch_lightning.strategies import DDPStrategy, Strategy

from ltexp.config import Config, StageConfig
from ltexp.config.build import build
from ltexp.config.lightning import OWN_CALLBACKS
from ltexp.distributed import world_size
from ltexp.errors import ConfigError
from ltexp.launching.trials import read_trial
from ltexp.training.callbacks.last_weights import KeepLastWeights
from ltexp.training.callbacks.prune import Prune
from ltexp.training.callbacks.whole_numbers import keep_whole_numbers
from ltexp.training.session import Session

PROFILERS = {
    "simple": profilers.SimpleProfiler,
    "advanced": profilers.AdvancedProfiler,
    "pytorch": profilers.PyTorchProfiler,
}
NOTHING = nullcontext()
OURS = ("gradient_clip_algorithm", "overfit_batches", "strategy", "profiler", "enable_model_summary")


def make_trainer(session: Session, name: str, stage: StageConfig) -> pl.Trainer:
    """The trainer of the stage `name`.

    Raises:
        ConfigError: for keywords or callbacks that Lightning refuses.
    """
    config, folder = session.config, session.folder / name
    settings, passed = config.trainer, dict(config.trainer.lightning)
    callbacks = make_callbacks(config, name, folder)
    if passed.get("enable_model_summary"):
        callbacks.append(RichModelSummary())
    every = config.evaluation.every
    keywords: dict[str, Any] = {
        "accelerator": "gpu" if session.device.type == "cuda" else "cpu",
        "devices": settings.devices,
        "num_nodes": settings.num_nodes,
        # said outright: inside a job of SLURM, Lightning would take that for the launcher
        "plugins": [TorchElasticEnvironment() if world_size() > 1 else LightningEnvironment()],
        "strategy": _strategy(session, passed.get("strategy", "auto")),
        "precision": settings.precision,
        "max_epochs": stage.epochs,
        "sync_batchnorm": settings.sync_batch_norm,
        "callbacks": callbacks,
        "logger": session.loggers or False,
        "profiler": _profiler(passed.get("profiler"), folder),
        "log_every_n_steps": 1,
        "default_root_dir": folder,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": max(1, every),
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "enable_model_summary": any(isinstance(callback, ModelSummary) for callback in callbacks),
    }
    if overfit := passed.get("overfit_batches"):
        keywords |= {"limit_train_batches": overfit, "limit_val_batches": overfit}
    keywords |= {key: value for key, value in passed.items() if key not in OURS}
    if every == 0:
        keywords["limit_val_batches"] = 0
    try:
        return pl.Trainer(**keywords)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ConfigError(f"trainer: {one_line(error)}") from error


def make_callbacks(config: Config, name: str, folder: Path) -> list[Callback]:
    """The callbacks of the stage `name` in the config's order, but that to resume from last.

    What a callback's class asks for and the config does not give is `folder` and `stage`, the stage's folder and name;
    a `dirpath` of null is the stage's folder as well.

    Raises:
        ConfigError: for a callback that cannot be built, naming it.
    """
    nodes = {key: dict(node) for key, node in config.callbacks.items() if node is not None}
    ours = [key for key in OWN_CALLBACKS if key in nodes and key != "resume"]
    order = [*ours, *(key for key in nodes if key not in OWN_CALLBACKS), *(["resume"] if "resume" in nodes else [])]
    made = [_callback(key, nodes[key], {"folder": folder, "stage": name}) for key in order]
    averaging = [callback for callback in made if isinstance(callback, WeightAveraging)]
    for callback in averaging:
        keep_whole_numbers(callback)
    if averaging:
        made.insert(0, KeepLastWeights(folder))  # first: at the end the others put the average in their place
    if (trial := read_trial(folder.parent)) is not None:
        stages = list(config.stages)
        before = sum(config.stages[stage].epochs for stage in stages[: stages.index(name)])
        made.append(Prune(trial, name, before, is_last=name == stages[-1]))
    return made


def _callback(key: str, node: dict[str, Any], facts: dict[str, Any]) -> Callback:
    if "dirpath" in node and node["dirpath"] is None:
        node["dirpath"] = str(facts["folder"])
    try:
        accepted = inspect.signature(get_class(node["_target_"])).parameters
        facts = {fact: value for fact, value in facts.items() if fact in accepted and fact not in node}
        callback = build(node, path=f"callbacks.{key}", **facts)
    except ConfigError:
        raise
    except (ImportError, ModuleNotFoundError, MisconfigurationException, TypeError, ValueError) as error:
        raise ConfigError(f"callbacks.{key}: {one_line(error)}") from error
    if not isinstance(callback, Callback):
        raise ConfigError(f"callbacks.{key}: {node['_target_']} is no callback of Lightning's")
    return callback


def _strategy(session: Session, chosen: Any) -> Strategy | str:
    if isinstance(chosen, dict):
        built: Strategy = build(chosen, path="trainer.strategy")
        return built
    if world_size() == 1:
        return "auto"  # nothing to share out
    backend = "nccl" if session.device.type == "cuda" else "gloo"
    unused: dict[str, Any] = {"find_unused_parameters": True} if chosen != "auto" and chosen != "ddp" else {}
    # each process's batch norms keep the statistics of its own shares, until `AgreeOnStatistics` takes their mean
    return DDPStrategy(process_group_backend=backend, broadcast_buffers=False, gradient_as_bucket_view=True, **unused)


class Unprofiled(profilers.PassThroughProfiler):
    """Does nothing, as Lightning's own, which makes a generator for it at each of some forty places of a step."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        return NOTHING


def _profiler(chosen: Any, folder: Path) -> profilers.Profiler:
    """Lightning would print its report to a logger that is silent here, so it goes to a file, fit-profile.txt."""
    if isinstance(chosen, str):
        return PROFILERS[chosen](dirpath=folder, filename="profile")  # type: ignore[no-any-return]
    built: profilers.Profiler = build(chosen, path="trainer.profiler") if chosen else Unprofiled()
    return built


def one_line(error: BaseException) -> str:
    """The first sentence of what Lightning says."""
    return " ".join(str(error).split("\n\n")[0].split())
