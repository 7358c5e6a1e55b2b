"""Callbacks and schedules that wait for a metric: whether it is ever measured."""

from collections.abc import Mapping
from typing import Any

from ltexp.config.lightning import material_callbacks
from ltexp.errors import ConfigError
from ltexp.names import unknown_name

OF_A_SPLIT = ("all", "many", "medium", "few", "ece")
MEASURED = (
    "train_loss",
    *(f"{split}_{metric}" for split in ("validation", "test") for metric in OF_A_SPLIT),
    "validation_balanced",
)


def check_monitored(
    callbacks: Mapping[str, Any],
    schedules: Mapping[str, Mapping[str, Any]],
    has_validation: bool,
    every: int,
    epochs: Mapping[str, int],
) -> None:
    """Refuses callbacks and learning-rate schedules that wait for metrics which are never measured.

    Args:
        callbacks: the config's.
        schedules: the config node of each stage's, by the stage's name.
        has_validation: whether the dataset holds out a validation split.
        every: epochs between evaluations; 0: none.
        epochs: the epochs of each stage that is trained, by name.

    Raises:
        ConfigError: naming the callback or the schedule and what to set.
    """
    for name, node in callbacks.items():
        _check(f"callbacks.{name}", (node or {}).get("monitor"), has_validation, every, epochs)
    targets = (str(node["_target_"]) for node in material_callbacks(callbacks).values())
    others = any(not target.startswith("pytorch_lightning.") for target in targets)  # which may measure anything
    for stage, count in epochs.items():
        monitored = schedules[stage].get("monitor")
        if monitored is not None and monitored not in MEASURED and not others:
            raise ConfigError(unknown_name(f"metric in {stage}.schedule.monitor", str(monitored), MEASURED))
        _check(f"{stage}.schedule", monitored, has_validation, every, {stage: count})


def _check(key: str, monitored: Any, has_validation: bool, every: int, epochs: Mapping[str, int]) -> None:
    if not isinstance(monitored, str) or not monitored.startswith(("validation_", "test_")):
        return
    if monitored.startswith("validation_") and not has_validation:
        raise ConfigError(
            f"{key} waits for {monitored}, and the dataset holds out no validation split: hold one out, such as "
            "dataset.validation.fraction=0.1"
        )
    never = [stage for stage, count in epochs.items() if every == 0 or every > count]
    if never:
        raise ConfigError(
            f"{key} waits for {monitored}, which is never measured in {never[0]}: set evaluation.every to 1 or more "
            f"and at most {never[0]}.epochs"
        )
