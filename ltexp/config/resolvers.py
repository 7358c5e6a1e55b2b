"""Interpolations for conf/: what a recipe says, and settings that depend on the imbalance ratio or the backbone."""

import math
from collections.abc import Mapping
from typing import Any

from omegaconf import Container, DictConfig, OmegaConf

from ltexp.config.schema import USUAL_RATIO


def recipe(key: str, otherwise: Any, *, _parent_: Container) -> Any:
    """Resolver `${recipe:lr,0.1}`: what the recipe of the stage says of `lr`, else the run's, else 0.1.

    A dataset's recipe, or a paper's settings, say in a stage's `recipe` what belongs to the data; a choice reads what
    it knows of it, wherever in the stage it stands.
    """
    node: Any = _parent_
    while node is not None:
        said = node.get("recipe") if isinstance(node, DictConfig) else None
        if isinstance(said, Mapping | DictConfig) and key in said:
            return said[key]
        node = node._get_parent()
    return otherwise


def by_imbalance_ratio(table: Mapping[int, Any], *, _root_: DictConfig) -> Any:
    """Resolver `${by_imbalance_ratio:{100:0.4, 50:0.3}}`: the entry of the listed ratio nearest in proportion."""
    balanced = OmegaConf.select(_root_, "dataset.imbalance") == "balanced"
    ratio = 1.0 if balanced else OmegaConf.select(_root_, "dataset.imbalance_ratio", default=1.0)
    return nearest_in_proportion(table, float(USUAL_RATIO if ratio is None else ratio))


def nearest_in_proportion(table: Mapping[int, Any], ratio: float) -> Any:
    """The entry of the key nearest to `ratio` by their quotient."""
    return table[min(table, key=lambda listed: abs(math.log(listed / max(ratio, 1.0))))]


def by_backbone(table: Mapping[str, Any], *, _root_: DictConfig) -> Any:
    """Resolver `${by_backbone:{resnext50:256, other:512}}`: the entry of the chosen backbone, or of `other`."""
    return table.get(str(OmegaConf.select(_root_, "choices.backbone")), table["other"])


OmegaConf.register_new_resolver("recipe", recipe, replace=True)
OmegaConf.register_new_resolver("by_imbalance_ratio", by_imbalance_ratio, replace=True)
OmegaConf.register_new_resolver("by_backbone", by_backbone, replace=True)
