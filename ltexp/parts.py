"""The classes that the files of a config group name, found by their own names: what `ltexp.losses.LDAM` is.

A new file in `conf/loss/` is all that a new loss needs to be found here too.
"""

import importlib
import re
from functools import cache
from typing import Any

from ltexp.config.path import conf_dir
from ltexp.names import nearest

_TARGET = re.compile(r"^_target_: *([\w.]+)", re.MULTILINE)


@cache
def classes(group: str) -> dict[str, str]:
    """The dotted path of each class that a file of `conf/GROUP/` names, by the class's name, sorted."""
    texts = (path.read_text(encoding="utf-8") for path in (conf_dir() / group).glob("*.yaml"))
    paths = {found[1] for text in texts if (found := _TARGET.search(text))}
    return dict(sorted((path.rpartition(".")[2], path) for path in paths))


def find(module: str, group: str, name: str) -> Any:
    """The class `name` of a group.

    Args:
        module: the name of the module that it was asked of.
        group: a folder of `conf/`.
        name: of the class.

    Raises:
        AttributeError: if there is none.
    """
    known = {} if name.startswith("_") else classes(group)
    if name not in known:
        lower = {other.lower(): other for other in known}
        near = nearest(name.lower(), lower)
        hint = f"; did you mean {lower[near]!r}?" if near else ""
        raise AttributeError(f"module {module!r} has no attribute {name!r}{hint}")
    path, _, attribute = known[name].rpartition(".")
    return getattr(importlib.import_module(path), attribute)
