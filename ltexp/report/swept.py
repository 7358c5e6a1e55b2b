"""The keys that a set of runs swept, and the value of each run."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ltexp.report.groups import Group
from ltexp.report.keys import config_keys, short_keys
from ltexp.report.predicted import changed
from ltexp.report.records import Run
from ltexp.run_folder import CONFIG

FACTS = {
    "method": "method",
    "dataset": "dataset",
    "backbone": "backbone",
    "dataset.imbalance": "imbalance",
    "dataset.imbalance_ratio": "imbalance_ratio",
}
UNKNOWN = "–"
_WORDS = {"true": True, "false": False, "null": None}
_OPENING = ("[", "'", '"')  # what YAML reads as Hydra does


def swept_values(groups: Sequence[Group]) -> dict[str, list[str]]:
    """The value of each group for every key whose values differ, facts of the record first, then keys as typed.

    A run that did not type a key has the value in its config.yaml.
    """
    typed = {key for group in groups for key in _typed(group.runs[0])}
    columns = {key: [value_text(group.record[name]) for group in groups] for key, name in FACTS.items()}
    columns |= {key: [_value(group.runs[0], key) for group in groups] for key in sorted(typed - set(FACTS))}
    return {key: values for key, values in columns.items() if len(set(values)) > 1}


def in_place_of(groups: Sequence[Group], columns: dict[str, list[str]]) -> dict[str, list[str]]:
    """`columns` with one key less where some runs typed another key in the place of a swept one.

    Class weights by beta = 0.9, 0.99 and by weighting=inverse_frequency are one sweep: the last is a value of its own
    beside the numbers, whatever beta its config has.
    """
    typed = [set(_typed(group.runs[0])) for group in groups]
    for key, instead in ((a, b) for a in columns for b in columns if a != b):
        of_key, of_other = ([name in own for own in typed] for name in (key, instead))
        apart = all(one != other for one, other in zip(of_key, of_other, strict=True))
        names = [value for value, own in zip(columns[instead], of_other, strict=True) if own]
        if apart and sum(of_key) > 1 and any(of_other) and all(number(name) is None for name in names):
            pairs = zip(columns[key], columns[instead], of_other, strict=True)
            merged = {key: [other if own else value for value, other, own in pairs]}
            return {name: values for name, values in columns.items() if name != instead} | merged
    return columns


def short_names(groups: Sequence[Group]) -> dict[str, str]:
    """By the key of any override of these groups: the end of it that no other key has.

    Other keys are those that were typed, and those of the config of one run for each method.
    """
    typed = {text.partition("=")[0] for group in groups for text in group.runs[0].overrides}
    folders = {str(group.record["method"]): group.runs[0].folder for group in groups}
    known = {key for folder in folders.values() for key in config_keys(_config(folder / CONFIG))}
    short = short_keys(typed, known)
    return short | {key.lstrip("+~"): name for key, name in short.items()}


def number(text: str) -> float | None:
    """`text` as a number; None where it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def sort_key(text: str) -> tuple[bool, float, str]:
    """Numbers by size, then names by the alphabet."""
    value = number(text)
    return value is None, value or 0.0, text


def _typed(run: Run) -> dict[str, str]:
    pairs = (text.lstrip("+").partition("=") for text in run.overrides)
    return {key.removeprefix("~"): value if separator else "removed" for key, separator, value in pairs}


def value_text(value: object) -> str:
    """A value of a config as it is typed; a float as short as it stays the same number."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(value_text, value))}]"
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}"
    return short if float(short) == value else f"{value:.0f}" if value.is_integer() else repr(value)


def _value(run: Run, key: str) -> str:
    typed = _typed(run)
    if key in typed:
        return value_text(_read(typed[key]))
    choices = run.record.get("choices") or {}
    if key in choices:
        return str(choices[key])
    node: Any = _config(run.folder / CONFIG)
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return UNKNOWN
        node = node[part]
    return UNKNOWN if isinstance(node, dict) else value_text(node)


def _read(text: str) -> object:
    """A typed value as it stands in a config: whole numbers with all their digits, and words as they are."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if text[:1] in _OPENING:
        with suppress(yaml.YAMLError):
            return yaml.safe_load(text)
    value = number(text)
    return text if value is None or text.lstrip("+-").isdecimal() else value


def _config(path: Path) -> Any:
    return _content(path, changed(path))


@cache
def _content(path: Path, changed: int) -> Any:
    try:
        return yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError):
        return None
