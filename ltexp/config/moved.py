"""Configs of older runs in today's keys."""

import re
from typing import Any

# modules of `_target_`s in configs of older runs: what was where
_MOVED = {
    "ltexp.data.dataset": "ltexp.data.images.dataset",
    "ltexp.data.arrays": "ltexp.data.images.arrays",
    "ltexp.data.digits": "ltexp.data.images.digits",
    "ltexp.data.augmentation.CropFlip": "ltexp.data.images.augmentation.CropFlip",
    "ltexp.data.file_augmentation": "ltexp.data.files.augmentation",
    "ltexp.data.file_dataset": "ltexp.data.files.dataset",
    "ltexp.data.image_folders": "ltexp.data.files.folder_source",
    "ltexp.data.image_lists": "ltexp.data.files.list_source",
    "ltexp.data.places": "ltexp.data.files.places",
    "ltexp.data.articles": "ltexp.data.text.articles",
    "ltexp.data.text_dataset": "ltexp.data.text.dataset",
    "ltexp.features.source.Extracted": "ltexp.features.source.ExtractedFeatures",
}
_OLD_NAME = re.compile("|".join(rf"{re.escape(old)}(?![\w])" for old in _MOVED))
_FIRST = {new: old for old, new in _MOVED.items()}
_NEW_NAME = re.compile("|".join(rf"{re.escape(new)}(?![\w])" for new in _FIRST))


def in_todays_keys(container: dict[str, Any]) -> dict[str, Any]:
    """The config of a run's folder with what has another place today, in that place."""
    for name in ("stage1", "stage2"):
        if isinstance(stage := container.get(name), dict):
            _auxiliary_as_module(stage)
    _rename_targets(container, _OLD_NAME, _MOVED)
    if isinstance(dataset := container.get("dataset"), dict):
        _without_idle_keys(dataset)
    return container


def with_first_targets(container: dict[str, Any]) -> dict[str, Any]:
    """The config with the `_target_`s of the first records, for hashes that stay what they were."""
    _rename_targets(container, _NEW_NAME, _FIRST)
    return container


def _rename_targets(node: Any, pattern: re.Pattern[str], names: dict[str, str]) -> None:
    if isinstance(node, dict):
        target = node.get("_target_")
        if isinstance(target, str):
            node["_target_"] = pattern.sub(lambda found: names[found[0]], target)
        for child in node.values():
            _rename_targets(child, pattern, names)


def _without_idle_keys(dataset: dict[str, Any]) -> None:
    """Keys of a dataset that had no effect were taken; now they are refused."""
    if dataset.get("imbalance") == "given" and "imbalance_ratio" in dataset:
        dataset["imbalance_ratio"] = None
    for key in ("validation", "test"):
        held_out = dataset.get(key)
        if isinstance(held_out, dict) and not held_out.get("fraction") and "max_per_class" in held_out:
            held_out["max_per_class"] = None


def _auxiliary_as_module(stage: dict[str, Any]) -> None:
    """`auxiliary` was a part of every stage; now it is one of its modules."""
    node = stage.pop("auxiliary", None) or {}
    start = stage.get("init", {}).pop("auxiliary", "fresh")
    trainable = stage.get("trainable", {})
    learns, trains_backbone = trainable.pop("auxiliary", True), trainable.pop("backbone_from_auxiliary", True)
    if node.get("_target_"):
        wiring = {"start": start, "trainable": learns, "detached": not trains_backbone}
        stage.setdefault("modules", {})["auxiliary"] = node | wiring
