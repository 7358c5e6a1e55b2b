"""The processes of a run: one a device, and which of them failed first.

A fifth of the time that Lightning takes to load went into scipy.signal, all of scipy with it: torchmetrics, which
Lightning imports, looks there for a window function of an audio metric. Here that module comes when it is used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_LATER = "scipy.signal"


class _Later(ModuleType):
    """Stands for a module until something of it is asked for."""

    hamming = None  # all that torchmetrics asks for, and only whether it is there

    def __getattr__(self, name: str) -> Any:
        if name in ("__spec__", "__file__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


if _LATER not in sys.modules:
    sys.modules[_LATER] = _Later(_LATER)
