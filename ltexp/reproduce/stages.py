"""What a composition makes of its stages, as far as a plan needs it; composed by Hydra once and then kept on disk.

Composing takes a third of a second, and a table has dozens of compositions.
"""

import atexit
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ltexp.config import in_order, names_stage, to_config
from ltexp.config.identity import config_hash, digest
from ltexp.config.path import conf_dir
from ltexp.errors import LtexpError
from ltexp.files import write_text
from ltexp.user_cache import user_cache


@dataclass(frozen=True)
class StageReading:
    """A stage as it is composed.

    Attributes:
        epochs: the stage's epochs.
        trains_backbone: whether its backbone learns.
        signature: equal for stages that are set alike, on backbones that are set alike.
    """

    epochs: int
    trains_backbone: bool
    signature: str


def read_stages(overrides: Iterable[str]) -> dict[str, StageReading]:
    """The stages, by name and in their order, that the overrides of `ltexp train` compose to.

    Raises:
        ConfigError: in one line, for whatever is wrong with an override.
    """
    kept, words = _kept(), tuple(overrides)
    key = json.dumps(words)
    if key not in kept:
        kept[key] = {name: asdict(stage) for name, stage in _compose(words).items()}
        _keep_at_exit()
    return {name: StageReading(**stage) for name, stage in kept[key].items()}


def hash_today(overrides: Sequence[str]) -> str | None:
    """The hash of the experiment that overrides of `ltexp train` make today; None where they make none."""
    kept, words = _kept(), tuple(overrides)
    key = json.dumps(["config_hash", *words])
    if key not in kept:
        try:
            kept[key] = config_hash(to_config(frozen(words)))
        except LtexpError:
            kept[key] = None
        _keep_at_exit()
    found: str | None = kept[key]
    return found


def is_hydras(override: str) -> bool:
    """Whether it speaks to Hydra, about the launcher say, and is no part of a run's config."""
    return override.lstrip("+~").startswith(("hydra.", "hydra/", "launcher"))


def frozen(overrides: Sequence[str]) -> dict[str, Any]:
    """The frozen config of overrides.

    Raises:
        ConfigError: in one line, for whatever is wrong with an override.
    """
    from ltexp.config.composer import compose
    from ltexp.launching.explain import explained
    from ltexp.launching.freeze import freeze

    with explained(overrides):
        return freeze(compose(overrides))


def _compose(overrides: tuple[str, ...]) -> dict[str, StageReading]:
    plain = frozen(overrides)
    stages = {name: plain[name] for name in in_order(filter(names_stage, plain)) if plain[name] is not None}
    return {
        name: StageReading(
            epochs=stage["epochs"],
            trains_backbone=stage["trainable"]["backbone"],
            signature=digest([stage, plain["backbone"]]),
        )
        for name, stage in stages.items()
    }


def _file() -> Path:
    """Where compositions of conf/ as it is now are kept."""
    code = Path(__file__).parents[1] / "config"
    files = sorted([*conf_dir().rglob("*.yaml"), *code.glob("*.py")])
    stamp = digest([[str(file), file.stat().st_mtime_ns] for file in files])
    return user_cache() / f"compositions-{stamp}.json"


@cache
def _kept() -> dict[str, Any]:
    return _read(_file())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@cache
def _keep_at_exit() -> None:
    atexit.register(_keep)


def _keep() -> None:
    """Adds what this process has composed to the file; those of other states of conf/ go."""
    path = _file()
    try:
        for older in path.parent.glob("compositions-*.json"):
            if older != path:
                older.unlink(missing_ok=True)
        write_text(path, json.dumps(_read(path) | _kept()))
    except (OSError, LtexpError):
        return  # a cache that cannot be written only costs time
