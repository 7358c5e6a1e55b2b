"""What a finished run had that its words do not give today: recipes change, and records stay."""

from functools import cache
from pathlib import Path

from ltexp.config import load, to_config
from ltexp.config.identity import other_keys, value_of
from ltexp.errors import LtexpError
from ltexp.report.records import Run
from ltexp.reproduce.stages import frozen, hash_today, is_hydras
from ltexp.run_folder import CONFIG

_OWN = ("sweep=", "resume=", "seed=", "paths.", "stage_cache.")


def changed_since(run: Run) -> tuple[str, ...]:
    """`KEY=VALUE` of the run's config for each key that another value comes of today, from what was typed.

    Nothing where that cannot be said: without its config.yaml, or where its words do not compose any more.
    """
    typed = run.record.get("overrides") or ()
    words = [text for text in typed if not is_hydras(text) and not text.startswith(_OWN)]
    return _changed_since(run.folder, tuple(words), str(run.record.get("config_hash")))


@cache
def _changed_since(folder: Path, words: tuple[str, ...], hash_then: str) -> tuple[str, ...]:
    if not (folder / CONFIG).is_file() or hash_today(words) in (None, hash_then):
        return ()
    try:
        then, now = load(folder / CONFIG), to_config(frozen(words))
    except LtexpError:
        return ()
    return tuple(f"{key}={as_typed(value_of(then, key))}" for key in other_keys(then, now) if key != "seed")


def as_typed(value: object) -> str:
    """A value of a config as it is typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
