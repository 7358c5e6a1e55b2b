"""Configs of older runs in today's keys."""

from typing import Any


def in_todays_keys(container: dict[str, Any]) -> dict[str, Any]:
    """The config of a run's folder with what has another place today, in that place."""
    for name in ("stage1", "stage2"):
        if isinstance(stage := container.get(name), dict):
            _auxiliary_as_module(stage)
    return container


def _auxiliary_as_module(stage: dict[str, Any]) -> None:
    """`auxiliary` was a part of every stage; now it is one of its modules."""
    node = stage.pop("auxiliary", None) or {}
    start = stage.get("init", {}).pop("auxiliary", "fresh")
    trainable = stage.get("trainable", {})
    learns, trains_backbone = trainable.pop("auxiliary", True), trainable.pop("backbone_from_auxiliary", True)
    if node.get("_target_"):
        wiring = {"start": start, "trainable": learns, "detached": not trains_backbone}
        stage.setdefault("modules", {})["auxiliary"] = node | wiring
