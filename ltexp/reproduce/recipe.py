"""What a finished run had that its words do not give today: recipes change, and records stay."""

from dataclasses import asdict
from functools import cache
from pathlib import Path

from ltexp.config import Config, load, to_config
from ltexp.config.identity import other_keys
from ltexp.errors import LtexpError
from ltexp.report.records import Run
from ltexp.reproduce.stages import frozen, hash_today
from ltexp.run_folder import CONFIG

_OF_HYDRA = ("hydra.", "hydra/", "launcher=", "sweep=")
_OWN = ("resume=", "seed=", "paths.", "stage_cache.")


def changed_since(run: Run) -> tuple[str, ...]:
    """`KEY=VALUE` of the run's config for each key that another value comes of today, from what was typed.

    Nothing where that cannot be said: without its config.yaml, or where its words do not compose any more.
    """
    words = [text for text in run.record.get("overrides") or () if not text.startswith((*_OF_HYDRA, *_OWN))]
    return _changed_since(run.folder, tuple(words), str(run.record.get("config_hash")))


@cache
def _changed_since(folder: Path, words: tuple[str, ...], hash_then: str) -> tuple[str, ...]:
    if not (folder / CONFIG).is_file() or hash_today(words) in (None, hash_then):
        return ()
    try:
        then, now = load(folder / CONFIG), to_config(frozen(words))
    except LtexpError:
        return ()
    return tuple(f"{key}={as_typed(_value(then, key))}" for key in other_keys(then, now) if key != "seed")


def _value(config: Config, key: str) -> object:
    """The value of a dotted key."""
    value: object = asdict(config) | {name: asdict(stage) for name, stage in config.stages.items()}
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def as_typed(value: object) -> str:
    """A value of a config as it is typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
