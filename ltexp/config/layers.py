"""How the files of a composition set values: one rule of layers.

From weak to strong: `config.yaml`, the dataset's recipe, the method, its paper's settings, an experiment, the command
line. Every part of a stage is a choice (`loss@stage1.loss: ldam`), and the choice that the strongest layer makes starts
from its own file. A value that a file sets on a part belongs to the choice in force at the file's own layer; a file may
also name the choice that it means, `loss: {ldam: {scale: 20}}`. A value reaches no other choice: when a stronger layer
makes another one, it is left out.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ltexp.config.schema import MODULE_KEYS, STAGE
from ltexp.errors import ConfigError
from ltexp.names import unknown_name

ENTRIES = (
    "terms",
    "modules",
    "streams",
)  # named parts of a stage, there where one is chosen or has a `_target_`
RECIPE = "recipe"  # of a stage: what its choices may read, see the resolver of that name
WHOLE = re.compile(r"\$\{([\w.]+)\}")  # a part that is the same as another
SAME_AS = "_same_as_"  # the same, with values of its own
Options = Callable[[str], Iterable[str]]


@dataclass(frozen=True)
class Layer:
    """A file that sets values anywhere in the config.

    Attributes:
        path: such as `method/mislas`.
        content: its keys, interpolations as written.
        chooses: the choices in its own defaults list, name by package (`stage1.loss`).
    """

    path: str
    content: Mapping[str, Any]
    chooses: Mapping[str, str]

    @property
    def says_stages(self) -> bool:
        """Whether it decides which stages there are: a method or an experiment, not a paper's settings for several."""
        return self.path.split("/")[0] in ("method", "experiment")


@dataclass
class Fold:
    """Folds layers into a config, weakest first.

    Args:
        config: the choices' own files, merged; changed in place.
        choices: name of the choice in force at the end, by package.
        groups: its config group, by package.
        typed: packages whose choice is on the command line.
        options: the choices that a group has.

    Attributes:
        absent: the stages that this run does not have.
    """

    config: dict[str, Any]
    choices: dict[str, str]
    groups: Mapping[str, str]
    typed: frozenset[str]
    options: Options
    absent: set[str] = field(default_factory=set)

    def run(self, layers: Iterable[Layer], seen: Mapping[str, str]) -> None:
        """Sets the values of all `layers`.

        Args:
            layers: weakest first.
            seen: the choices of config.yaml, which are in force below the first layer, by package.

        Raises:
            ConfigError: a file that names a choice together with keys, or a part that is the same as none.
        """
        layers, self._seen = list(layers), dict(seen)
        self._same = self._same_parts(layers)
        self.choices |= {package: self.choices[source] for package, source in self._same.items()}
        for layer in layers:
            self._seen |= layer.chooses
            self._merge(self.config, layer.content, "", layer)
        for stage in self.absent:
            self.config[stage] = None

    def _same_parts(self, layers: list[Layer]) -> dict[str, str]:
        """Which parts are the same as another's, at the end: `{stage2.schedule: stage1.schedule}`."""
        same: dict[str, str] = {}
        for layer in layers:
            for package in layer.chooses:
                same.pop(package, None)
            for stage, node in layer.content.items():
                if STAGE.fullmatch(str(stage)) and isinstance(node, Mapping):
                    same |= _whole_parts(f"{stage}", node, self.choices)
        return {package: source for package, source in same.items() if package not in self.typed}

    def _merge(self, target: dict[str, Any], content: Mapping[str, Any], path: str, layer: Layer) -> None:
        for key, value in content.items():
            if key == "hydra":  # Hydra's own
                continue
            place = f"{path}.{key}".lstrip(".")
            if STAGE.fullmatch(place):
                self._note_stage(place, value, layer)
                if value is None or not (layer.says_stages or place in target):
                    continue
            if self._is_entry(path) and not self._exists(place, value):
                continue
            if (package := self._part(place)) is not None:
                self._set_part(target, key, value, place, package, layer)
            elif isinstance(value, Mapping):
                node = target.get(key)
                target[key] = node if isinstance(node, dict) else {}
                self._merge(target[key], value, place, layer)
            else:
                target[key] = value

    def _note_stage(self, stage: str, value: Any, layer: Layer) -> None:
        if layer.says_stages and value is None:
            self.absent.add(stage)
        elif layer.says_stages:
            self.absent.discard(stage)

    def _is_entry(self, path: str) -> bool:
        stage, _, part = path.partition(".")
        return part in ENTRIES and STAGE.fullmatch(stage) is not None

    def _exists(self, place: str, value: Any) -> bool:
        """Whether the named part at `place` is there, for a choice or for what the file itself brings."""
        chosen = any(package == place or package.startswith(f"{place}.") for package in self.choices)
        return chosen or place in self._same or has_target(value)

    def _part(self, place: str) -> str | None:
        """The package of the choice that the node at `place` belongs to."""
        if place in self.choices or place in self._same:
            return place
        stage, _, rest = place.partition(".")
        factors, _, part = rest.partition(".")  # of the parameters of a part
        package = f"{stage}.{part}"
        return package if factors.endswith("_factors") and package in self.choices else None

    def _set_part(self, target: dict[str, Any], key: str, value: Any, place: str, package: str, layer: Layer) -> None:
        if source := _source_of(value):
            if self._same.get(package) == source:
                target[key] = _same_as(self.config, source)
            if not isinstance(value, Mapping):
                return
            value = {key: node for key, node in value.items() if key != SAME_AS}
        if not isinstance(value, Mapping):
            raise ConfigError(f"conf/{layer.path}.yaml: {place}={value} is not one value: choose in its defaults list")
        if "_target_" in value:
            if package not in self.typed:
                self.choices[package] = str(value["_target_"])
                target[key] = dict(value)
            return
        # how a module is wired does not depend on what it is
        wiring = MODULE_KEYS if self._is_entry(place.rpartition(".")[0]) else ()
        belonging = [(self.choices[package], {key: value[key] for key in value if key in wiring})]
        rest = {key: node for key, node in value.items() if key not in wiring}
        for name, values in [*belonging, *(self._by_choice(rest, package, layer) if rest else ())]:
            if values and name == self.choices[package]:
                node = target.get(key)
                target[key] = node if isinstance(node, dict) else {}
                self._merge(target[key], values, place, layer)  # a part of it may be a choice, too

    def _by_choice(
        self, value: Mapping[str, Any], package: str, layer: Layer
    ) -> list[tuple[str | None, Mapping[str, Any]]]:
        """The values of a part with the choice that each belongs to."""
        group = self.groups.get(package, "")
        options = set(self.options(group)) if group else set()
        named = [key for key, node in value.items() if key in options and (node is None or isinstance(node, Mapping))]
        if not named:
            self._check_misspelt(value, package, options, layer)
            return [(self._seen.get(package), value)]
        if len(named) < len(value):
            other = next(key for key in value if key not in named)
            hint = unknown_name(group, str(other), options)
            raise ConfigError(f"conf/{layer.path}.yaml: {package} names {named[0]} and has the key {other}: {hint}")
        return [(name, value[name] or {}) for name in named]

    def _check_misspelt(self, value: Mapping[str, Any], package: str, options: set[str], layer: Layer) -> None:
        """Refuses values under what is nearly a choice's name and no key of the part."""
        node: Any = self.config
        for step in package.split("."):
            node = node.get(step) if isinstance(node, Mapping) else None
        for key in (key for key, inner in value.items() if isinstance(inner, Mapping) and key not in (node or {})):
            if near := get_close_matches(str(key), sorted(options), n=1, cutoff=0.8):
                raise ConfigError(f"conf/{layer.path}.yaml: {package} has no {key}: did you mean '{near[0]}'?")


def _source_of(value: Any) -> str | None:
    """The part that a value says to be the same as."""
    text = value.get(SAME_AS) if isinstance(value, Mapping) else value
    source = WHOLE.fullmatch(text) if isinstance(text, str) else None
    return source[1] if source else None


def _whole_parts(path: str, node: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in node.items():
        place = f"{path}.{key}"
        if (source := _source_of(value)) in choices:
            found[place] = str(source)
        elif isinstance(value, Mapping):
            found |= _whole_parts(place, value, choices)
    return found


def _same_as(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The keys of the part `source`, each an interpolation of its value: what is typed there counts here too."""
    node: Any = config
    for key in source.split("."):
        node = node[key]
    return _references(node, source)


def _references(node: Mapping[str, Any], path: str) -> dict[str, Any]:
    return {
        key: _references(value, f"{path}.{key}") if isinstance(value, Mapping) and value else f"${{{path}.{key}}}"
        for key, value in node.items()
    }


def has_target(value: Any) -> bool:
    """Whether a node, or one within it, says what it is."""
    if not isinstance(value, Mapping):
        return False
    return "_target_" in value or any(has_target(child) for child in value.values())


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with the values of `new`, key by key at every depth."""
    both = dict(old)
    for key, value in new.items():
        under = both.get(key)
        both[key] = merged(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return both
