"""Interpolations that conf/ may use: settings that depend on the imbalance ratio, the backbone or the dataset."""

import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf


def by_imbalance_ratio(table: Mapping[int, Any], *, _root_: DictConfig) -> Any:
    """Resolver `${by_imbalance_ratio:{100:0.4, 50:0.3}}`: the entry of the listed ratio nearest in proportion."""
    balanced = OmegaConf.select(_root_, "dataset.imbalance") == "balanced"
    ratio = 1.0 if balanced else float(OmegaConf.select(_root_, "dataset.imbalance_ratio", default=1.0))
    return nearest_in_proportion(table, ratio)


def nearest_in_proportion(table: Mapping[int, Any], ratio: float) -> Any:
    """The entry of the key nearest to `ratio` by their quotient."""
    return table[min(table, key=lambda listed: abs(math.log(listed / max(ratio, 1.0))))]


def by_backbone(table: Mapping[str, Any], *, _root_: DictConfig) -> Any:
    """Resolver `${by_backbone:{resnext50:256, other:512}}`: the entry of the chosen backbone, or of `other`."""
    return table.get(str(OmegaConf.select(_root_, "choices.backbone")), table["other"])


def by_dataset(table: Mapping[str, Any], *, _root_: DictConfig) -> Any:
    """Resolver `${by_dataset:{inat18:0.2, other:1.0}}`: the entry of the chosen dataset, or of `other`."""
    return table.get(str(OmegaConf.select(_root_, "choices.dataset")), table["other"])


OmegaConf.register_new_resolver("by_imbalance_ratio", by_imbalance_ratio, replace=True)
OmegaConf.register_new_resolver("by_backbone", by_backbone, replace=True)
OmegaConf.register_new_resolver("by_dataset", by_dataset, replace=True)
