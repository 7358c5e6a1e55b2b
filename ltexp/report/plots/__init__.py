"""Figures that need no run: class counts of datasets, and curves of the papers' formulas.

To add one, add a file with `draw(path, ...)`: `plot: <its name>` of a figure in ltexp/papers/figures/ then draws it.
Further parameters, texts, are options of that plot; one named `root` is the data root.
"""

import inspect
import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

from ltexp.errors import ConfigError
from ltexp.names import unknown_name


def plots() -> list[str]:
    """The names of all plots."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def options(name: str) -> list[str]:
    """The options that the plot `name` takes."""
    return list(inspect.signature(import_module(f"{__name__}.{name}").draw).parameters)[1:]


def draw(name: str, path: Path, **chosen: str) -> None:
    """Draws the plot `name` to `path` (.png, .pdf or .svg).

    Raises:
        ConfigError: for an unknown plot or option, or a file that cannot be written.
        DataError: for data that is not there.
    """
    if name not in plots():
        raise ConfigError(unknown_name("plot", name, plots()))
    for option in chosen:
        if option not in options(name):
            raise ConfigError(unknown_name(f"option of the plot {name}", option, options(name)))
    import_module(f"{__name__}.{name}").draw(path, **chosen)


def numbers(key: str, text: str) -> list[float]:
    """The numbers that `text` lists with commas between them.

    Raises:
        ConfigError: if one of them is no number above 0.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [0.0]
    if not all(value > 0 for value in values):
        raise ConfigError(f"invalid {key}={text}: expected numbers above 0 with commas between them")
    return values


def plain(axis: Any) -> None:
    """Gives an axis the small grid and the open frame that all plots have."""
    axis.grid(axis="y", color="#b0b0b0", linewidth=0.4, zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
