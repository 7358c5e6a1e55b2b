"""Builds the object that a config node describes."""

import importlib
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from ltexp.errors import ConfigError, LtexpError


def build(node: Mapping[str, Any], /, *args: Any, **keywords: Any) -> Any:
    """The object of `node`'s `_target_`, from the node's own keys and the arguments given here.

    The arguments are handed over as they are: `instantiate` alone would copy arrays and tensors into a config first.

    Raises:
        ConfigError: if the target cannot be imported or does not take these keys.
    """
    target = node.get("_target_")
    try:
        partial = instantiate({**node, "_partial_": True})
    except InstantiationException as error:
        if isinstance(error.__cause__, LtexpError):
            raise error.__cause__ from None
        raise ConfigError(f"{target} cannot be built: {str(error).splitlines()[0]}") from error
    try:
        inspect.signature(partial).bind(*args, **keywords)
    except TypeError as error:
        raise ConfigError(f"{target}: {error}") from None
    return partial(*args, **keywords)


def target_sources(node: Any) -> dict[str, str]:
    """The source file's text of every `_target_` in a config, by module; what a stage trains to depends on it."""
    return {module: _source(module) for module in sorted(set(_modules(node)))}


def _modules(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping) and isinstance(target := node.get("_target_"), str):
        yield target.rpartition(".")[0]
    for child in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _modules(child)


@cache
def _source(module: str) -> str:
    path = getattr(importlib.import_module(module), "__file__", None)
    return Path(path).read_text(encoding="utf-8") if path and path.endswith(".py") else ""
