"""Which stages take steps that can be replayed (`trainer.step_graph`), found out before any data is read."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import pytorch_lightning as pl
from hydra.utils import get_class

from ltexp.config import StageConfig
from ltexp.errors import ConfigError
from ltexp.training.steps import Step

KEYWORDS = ("fused", "capturable")  # of optimizers that need nothing of the host, but for learning rates as numbers
WITHIN_STEPS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")
OFF = "or set trainer.step_graph=false"


def replayable_optimizer(stage: StageConfig) -> dict[str, bool]:
    """The keywords by which the stage's optimizer works in a graph; none: it cannot."""
    known = signature(get_class(stage.optimizer["_target_"])).parameters
    return {key: True for key in KEYWORDS if key in known}


def check_replayable(name: str, stage: StageConfig, step: Step) -> None:
    """Refuses a stage whose steps cannot be replayed.

    Args:
        name: of the stage.
        stage: its config.
        step: its.

    Raises:
        ConfigError: saying which part, and what to choose.
    """
    if not step.replayable:
        own = type(step).__name__
        raise ConfigError(f"{name}: steps of {own} cannot be replayed: choose step@{name}.step=standard, {OFF}")
    if not replayable_optimizer(stage):
        own = stage.optimizer["_target_"]
        raise ConfigError(
            f"{name}: {own} is neither fused nor capturable, so that its steps cannot be replayed: choose "
            f"optimizer@{name}.optimizer=sgd, {OFF}"
        )
    for key in KEYWORDS:
        if stage.optimizer.get(key) is False:
            raise ConfigError(f"{name}.optimizer.{key}=false, and a replayed step needs it: leave it out, {OFF}")


def check_hooks(callbacks: Mapping[str, Any]) -> None:
    """Refuses callbacks that act within steps, which a replay would leave out.

    Raises:
        ConfigError: naming one.
    """
    for name, node in callbacks.items():
        if node is None:
            continue
        chosen = get_class(node["_target_"])
        if any(getattr(chosen, hook, None) not in (None, getattr(pl.Callback, hook)) for hook in WITHIN_STEPS):
            raise ConfigError(
                f"callbacks.{name} acts within steps, and replayed steps leave it out: set callbacks.{name}=null, {OFF}"
            )
