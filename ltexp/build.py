"""Builds the object that a config node describes."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate


def build(node: Mapping[str, Any], /, *args: Any, **keywords: Any) -> Any:
    """The object of `node`'s `_target_`, from the node's own keys and the arguments given here.

    The arguments are handed over as they are: `instantiate` alone would copy arrays and tensors into a config first.
    """
    return instantiate({**node, "_partial_": True})(*args, **keywords)
