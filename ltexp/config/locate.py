"""Finds what a `_target_` names, and says in one line why it cannot be found."""

import importlib
import traceback
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from ltexp.config.require import within
from ltexp.config.sources import is_ours
from ltexp.errors import SettingError
from ltexp.names import nearest


def locate(target: str) -> Any:
    """The class or function at a dotted path, as Hydra finds it: the last parts may be attributes.

    Raises:
        SettingError: of the key `_target_`, for a module that is not found or fails, or that has no such name.
    """
    first, *others = target.split(".")
    if not all([first, *others]):
        raise SettingError("_target_", target, "the dotted path of a class or function that can be imported")
    found: Any = _imported(first, target)
    path = first
    for name in others:
        if hasattr(found, name):
            found = getattr(found, name)
        elif isinstance(found, ModuleType) and (inner := _imported(f"{path}.{name}", target, path)) is not None:
            found = inner
        else:
            near = nearest(name, [known for known in dir(found) if not known.startswith("_")])
            hint = f"; did you mean '{path}.{near}'?" if near else ""
            raise SettingError("_target_", target, f"the path of a class or function, and {path} has no {name}{hint}")
        path = f"{path}.{name}"
    return found


def check_targets(node: Any, path: str = "") -> None:
    """Every `_target_` of a config that is not of ltexp's can be found.

    Raises:
        SettingError: for the first that cannot, with its key.
    """
    for place, target in targets(node, path):
        if not is_ours(target):
            with within(place):
                locate(target)


def targets(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key of the node, its `_target_`) of every node of a config that has one."""
    if isinstance(node, Mapping) and isinstance(target := node.get("_target_"), str):
        yield path, target
    children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from targets(child, f"{path}.{key}".lstrip("."))


def _imported(module: str, target: str, parent: str | None = None) -> ModuleType | None:
    """A module; None where `parent` is there and has none of that name."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module and parent is not None:
            return None
        if error.name == module:
            raise SettingError(
                "_target_",
                target,
                f"a module on the Python path, and there is no {module}: put the folder that it lies in on PYTHONPATH, "
                "in training and after it",
            ) from error
        raise _failing(module, target, error) from error
    except Exception as error:
        raise _failing(module, target, error) from error


def _failing(module: str, target: str, error: Exception) -> SettingError:
    if isinstance(error, SyntaxError) and error.filename:
        place, reason = f"{error.filename}:{error.lineno}", error.msg
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames[1:] else module
        reason = next(iter(str(error).splitlines()), "")
    said = f"{place}: {type(error).__name__}: {reason}"
    return SettingError("_target_", target, f"a module that can be imported, and {module} fails at {said}")
