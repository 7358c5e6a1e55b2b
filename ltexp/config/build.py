"""Builds the object that a config node describes."""

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from ltexp.config.locate import locate, targets
from ltexp.config.own_code import place_of
from ltexp.config.require import within
from ltexp.config.sources import is_ours, own_file
from ltexp.errors import ConfigError, LtexpError, UnknownKeyError

_INNER_KEY = re.compile(r"^full_key: (.*)$", re.MULTILINE)  # in Hydra's messages: of a node within the node

_PLACE = re.compile(r"(.*?)\[?(\d+)\]?")  # in such a key: of an element of a list


def build(node: Mapping[str, Any], /, *args: Any, path: str = "", **keywords: Any) -> Any:
    """The object of `node`'s `_target_`, from the node's own keys and the arguments given here.

    The arguments are handed over as they are: `instantiate` alone would copy arrays and tensors into a config first.

    Args:
        node: a config's node, with a `_target_`.
        args: further positional arguments of the target.
        path: the key of the node in the config, for messages, e.g. `stage1.loss`.
        keywords: further arguments of the target, by name.

    Raises:
        ConfigError: if the target cannot be imported or does not take these keys, or for a value that it refuses.
    """
    with within(path):
        try:
            partial = instantiate({**node, "_partial_": True})
        except InstantiationException as error:
            _explain(node, error)
        target = partial.func
        _check_arguments(target, node["_target_"], args, partial.keywords, keywords)
        try:
            return partial(*args, **keywords)
        except ConfigError as error:
            error.of_own_part |= _is_own(target)
            raise
        except (LtexpError, ImportError):  # the latter of an optional package, whose extra others name
            raise
        except Exception as error:
            if _is_ours(target):
                raise
            refused = _refused(str(node["_target_"]), error)
            refused.of_own_part = _is_own(target)
            raise refused from error


def _refused(target: str, error: Exception) -> ConfigError:
    """What a part that is not ltexp's raised while it was built, in one line."""
    if isinstance(error, ValueError):  # raised on purpose, of a setting
        return ConfigError(f"{target}: {_one_line(error)}")
    place = f" ({found})" if (found := place_of(error)) else ""
    return ConfigError(f"{target}: {type(error).__name__}: {_one_line(error)}{place}")


def _explain(node: Mapping[str, Any], error: InstantiationException) -> None:
    """Raises what `error` of Hydra's says, in one line, with the key of the inner node that it is about."""
    cause, found = error.__cause__, _INNER_KEY.search(str(error))
    path, inner = _inner(node, found.group(1)) if found else ("", node)
    with within(path):
        if isinstance(cause, LtexpError):
            raise cause from None
        target = inner.get("_target_")
        if isinstance(target, str) and isinstance(cause, ImportError | ValueError | TypeError):
            function = locate(target)
            if isinstance(cause, TypeError):
                _check_arguments(function, target, (), {k: v for k, v in inner.items() if not k.startswith("_")}, {})
        reason = _one_line(cause) if cause is not None else _one_line(error)
        raise ConfigError(f"{target} cannot be built: {reason}") from error


def _inner(node: Mapping[str, Any], full_key: str) -> tuple[str, Mapping[str, Any]]:
    """(dotted key, node) of a node within `node`, by the name that Hydra has for it, such as `parts1.inner`."""
    path: list[str] = []
    found: Any = node
    for key in full_key.split("."):
        if isinstance(found, Mapping) and key in found:
            path, found = [*path, key], found[key]
        elif (place := _PLACE.fullmatch(key)) and isinstance(found, Mapping) and place[1] in found:
            path, found = [*path, place[1], place[2]], found[place[1]][int(place[2])]
        else:
            return full_key, {}
    return ".".join(path), found if isinstance(found, Mapping) else {}


def _check_arguments(
    function: Callable[..., Any],
    target: str,
    args: tuple[Any, ...],
    listed: Mapping[str, Any],
    given: Mapping[str, Any],
) -> None:
    """Refuses keywords that the function does not take and arguments that it lacks.

    Args:
        listed: the keywords of the config's node.
        given: those that ltexp adds.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # a function in C may not tell its arguments
    parameters = signature.parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if all(p.kind != p.VAR_KEYWORD for p in parameters):
        for key in listed:
            if key not in named and key not in given:
                raise UnknownKeyError(key, [name for name in named[len(args) :] if name not in given])
        for key in given:
            if key not in named:
                where = f"def __init__(self, {key}, ...)" if inspect.isclass(function) else f"def ...({key}, ...)"
                raise ConfigError(f"{target} does not take {key}, which ltexp gives to it: {where}")
    try:
        signature.bind(*args, **{**listed, **given})
    except TypeError as error:
        if "'class_counts'" in str(error) and hasattr(function, "set_class_counts"):
            raise ConfigError(
                f"{target} is not given class_counts: a classifier gets them by set_class_counts(class_counts)"
            ) from None
        raise ConfigError(f"{target}: {error}") from None


def _is_ours(function: Callable[..., Any]) -> bool:
    return is_ours(getattr(function, "__module__", ""))


def _is_own(function: Callable[..., Any]) -> bool:
    return own_file(getattr(function, "__module__", "")) is not None


def _one_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def target_sources(node: Any) -> dict[str, str]:
    """The source file's text of every `_target_` in a config, by module; what a stage trains to depends on it."""
    return {module: _source(module) for module in sorted({target.rpartition(".")[0] for _, target in targets(node)})}


@cache
def _source(module: str) -> str:
    path = getattr(importlib.import_module(module), "__file__", None)
    return Path(path).read_text(encoding="utf-8") if path and path.endswith(".py") else ""
