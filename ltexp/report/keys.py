"""Keys of overrides as short as they stay unique."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from ltexp.report.text import shorten


def short_keys(keys: Iterable[str], known: Iterable[str] = ()) -> dict[str, str]:
    """By key: its last parts, as many as tell it from all other `keys` and `known` ones.

    `stage2.loss.head_smoothing` is `head_smoothing`; `stage1.epochs` stays whole beside `stage2.epochs`. Of
    `loss@stage2.loss` the part after the @ counts, `stage2.loss`, which is the place that the choice is made for.
    """
    asked = list(dict.fromkeys(keys))
    paths = {key: place_of(key) for key in asked}
    endings = Counter(ending for path in {*paths.values(), *map(place_of, known)} for ending in _endings(path))
    return {key: next((e for e in _endings(path) if endings[e] == 1), path) for key, path in paths.items()}


def place_of(key: str) -> str:
    """The place in the config that an override's key sets, without Hydra's signs."""
    return key.lstrip("+~").rpartition("@")[2] or key


def short_override(text: str, names: dict[str, str], most: int | None = None) -> str:
    """An override with its key as `names` has it and at most `most` columns of value; a removing one keeps its sign."""
    key, separator, value = text.partition("=")
    value = value if most is None else shorten(value, most)
    name = names.get(key, key)
    return f"{name}{separator}{value}" if separator else f"{'~' if text.startswith('~') else ''}{name}"


def config_keys(config: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all nodes and values of a config."""
    if prefix:
        yield prefix
    for key, value in config.items() if isinstance(config, dict) else ():
        yield from config_keys(value, f"{prefix}.{key}" if prefix else str(key))


def _endings(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
