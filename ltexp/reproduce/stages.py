"""What a composition makes of its stages, read from the files of conf/ without composing them.

Composing takes Hydra a quarter of a second; a table has dozens of compositions, and a plan should be there at once.
Here is read what a plan needs: the choice of each part of a stage and the values that files and overrides set on it.
Equal readings on equal data compose to equal stages; tests/test_reproduce_compositions.py holds both against Hydra.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ltexp.config import nearest_in_proportion
from ltexp.config.path import conf_dir

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STAGES = ("stage1", "stage2")


@dataclass
class StageReading:
    """A stage as the files of a composition set it.

    Attributes:
        choices: the file chosen for each part, by group and part, such as `loss loss`.
        values: nested keys as they are set, interpolations as written.
        backbone: the keys that files and overrides set on the backbone, such as its experts.
    """

    choices: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """Epochs of the stage."""
        return int(self.values["epochs"])

    @property
    def trains_backbone(self) -> bool:
        """Whether its backbone learns."""
        return bool(self.values["trainable"]["backbone"])

    @property
    def signature(self) -> str:
        """Equal for stages that are set alike, a choice's own values included."""
        whole = dict(self.values)
        for key, choice in self.choices.items():
            group, part = key.split(" ")
            whole[part] = _merged(_load(conf_dir() / group / f"{choice}.yaml"), whole.get(part) or {})
        return json.dumps([self.choices, whole, self.backbone], sort_keys=True, default=str)


def read_stages(overrides: Iterable[str]) -> dict[str, StageReading]:
    """The stages, by name, that the overrides of `ltexp train` compose to."""
    typed = [(text.lstrip("+").partition("=")[0], text.partition("=")[2]) for text in overrides]
    chosen = dict(typed)
    primary = _load(conf_dir() / "config.yaml")
    reading = _Reading(chosen)
    default = {key: name for entry in primary["defaults"] if isinstance(entry, dict) for key, name in entry.items()}
    reading.defaults(primary["defaults"], "")
    reading.set_values(primary)
    dataset, method = chosen.get("dataset", default["dataset"]), chosen.get("method", default["method"])
    for path in (f"dataset/{dataset}", f"method/{method}", f"paper/{chosen.get('paper', f'{method}/{dataset}')}"):
        reading.file(path)
    reading.ratio = _load(conf_dir() / "dataset" / f"{dataset}.yaml").get("imbalance_ratio", 1.0)
    for key, value in typed:
        if "@stage" in key:
            reading.override(key, value)
    reading.choose()
    for key, value in typed:
        if "@stage" not in key:
            reading.override(key, value)
    return reading.finish()


class _Reading:
    """Collects choices and values file by file, weakest first."""

    def __init__(self, typed: Mapping[str, str]) -> None:
        self.typed = typed
        self.choices: dict[str, str] = {}  # group@stage.part: name
        self.values: dict[str, Any] = {name: {} for name in _STAGES}
        self.backbone: dict[str, Any] = {}
        self.chosen: dict[str, Any] = {}  # by `choose`
        self.ratio = 1.0  # of the dataset's file

    def file(self, path: str) -> None:
        full = conf_dir() / f"{path}.yaml"
        if not full.is_file():
            return
        content = _load(full)
        self.defaults(content.get("defaults", []), path.rpartition("/")[0])
        self.set_values(content)

    def defaults(self, entries: list[Any], group: str) -> None:
        own = {}
        for entry in entries:
            if isinstance(entry, str):
                if entry.startswith("/"):
                    self.file(entry[1:].partition("@")[0])
                elif entry != "_self_":
                    self.file(f"{group}/{entry}")
                continue
            for key, name in entry.items():
                words = str(key).removeprefix("override ").removeprefix("optional ")
                if "@stage" in words:
                    own[words.removeprefix("/")] = str(name)
                elif "@_global_" in words:
                    self.file(f"{words.removeprefix('/').partition('@')[0]}/{name}")
                elif words.startswith("/"):  # a choice of the method's own, such as soft_labels
                    self.file(f"{words[1:]}/{self.typed.get(words[1:], name)}")
        self.choices |= own  # after the files it inherits from

    def set_values(self, content: Mapping[str, Any]) -> None:
        for name in _STAGES:
            if name in content:
                self._merge(name, content[name])
        if isinstance(content.get("backbone"), dict):
            self.backbone = _merged(self.backbone, content["backbone"])
        self.chosen |= content.get("choose", {})

    def _merge(self, name: str, node: Any) -> None:
        if node is None:
            self.values[name] = None
        else:
            self.values[name] = _merged(self.values[name] or {}, node)

    def override(self, key: str, value: str) -> None:
        name, _, rest = key.partition(".")
        if key.lstrip("~") in _STAGES:
            self._merge(key.lstrip("~"), yaml.load(value, Loader=_LOADER))
        elif "@stage" in key:
            stage, _, part = key.partition("@")[2].partition(".")
            if self.choices.get(key) != value:
                self.values[stage].pop(part, None)  # a replaced choice starts from its own file
            self.choices[key] = value
        elif name in (*_STAGES, "backbone") and rest:
            node: Any = yaml.load(value, Loader=_LOADER)
            for part in reversed(rest.split(".")):
                node = {part: node}
            if name == "backbone":
                self.backbone = _merged(self.backbone, node)
            else:
                self._merge(name, node)

    def choose(self) -> None:
        """What a method or a paper's settings choose, where nothing is typed, as `ltexp.launching.freeze` does it."""
        open_keys = {key: node for key, node in self.chosen.items() if key not in self.typed}
        for key, node in sorted(open_keys.items(), key=lambda entry: "@" in str(entry[1])):
            stage, _, part = key.partition("@")[2].partition(".")
            if self.values[stage] is None:
                continue
            name, values = next(iter(node.items())) if isinstance(node, dict) else (str(node), {})
            if "@" in name and (name := self.choices[name]) == self.choices.get(key):
                continue
            self.choices[key] = name
            self.values[stage][part] = dict(values)

    def finish(self) -> dict[str, StageReading]:
        found = {}
        for name, values in self.values.items():
            if values is None:
                continue
            of_stage = {key: choice for key, choice in self.choices.items() if f"@{name}." in key}
            choices = {key.replace(f"@{name}.", " "): choice for key, choice in of_stage.items()}
            found[name] = StageReading(choices, self._resolved(values), self.backbone)
        return found

    def _resolved(self, values: dict[str, Any]) -> dict[str, Any]:
        """What is written as another stage's, such as `${stage1.epochs}`, as that is set."""
        found: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(value, dict):
                value = self._resolved(value)
            if match := re.fullmatch(r"\$\{(stage[12])\.(\w+)\}", str(value)):
                value = (self.values[match[1]] or {}).get(match[2])
            if match := re.fullmatch(r"\$\{(by_\w+):(\{.*\})\}", str(value)):
                value = self._looked_up(match[1], yaml.load(re.sub(r"(\w):", r"\1: ", match[2]), Loader=_LOADER))
            found[key] = value
        return found

    def _looked_up(self, resolver: str, table: dict[Any, Any]) -> Any:
        """What a resolver of `ltexp.config` takes from its table."""
        if resolver != "by_imbalance_ratio":  # but by_backbone or by_dataset
            return table.get(self.typed.get(resolver.removeprefix("by_")), table["other"])
        return nearest_in_proportion(table, float(self.typed.get("dataset.imbalance_ratio", self.ratio)))


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(old)
    for key, value in new.items():
        under = both.get(key)
        both[key] = _merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return both


@cache
def _load(path: Path) -> dict[str, Any]:
    content = yaml.load(path.read_bytes(), Loader=_LOADER)
    return content if isinstance(content, dict) else {}
