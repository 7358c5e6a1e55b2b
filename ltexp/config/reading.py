"""From a plain config, or the file of one, to the checked and typed config."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from ltexp.config.checks import check_keywords, check_values
from ltexp.config.lightning import check_lightning, own_callbacks, typed_trainer
from ltexp.config.moved import in_todays_keys
from ltexp.config.numbers import check_numbers
from ltexp.config.path import group_files
from ltexp.config.schema import Config, StageConfig, Stream, Term, names_stage, with_stages
from ltexp.errors import ConfigError
from ltexp.names import alias_of, unknown_name

ADDED = {  # by what a stage has by name, how one is brought
    "terms": "+loss@{}.NAME.loss=FILE",
    "modules": "+module@{}.NAME=FILE",
    "streams": "+stream@{}.NAME=FILE",
}


def to_config(container: dict[str, Any]) -> Config:
    """Checks a resolved, plain config and returns it typed.

    Raises:
        ConfigError: for an unknown key, a wrong type, a value out of range or a composition that cannot work.
    """
    if container.get("stage1") is None:
        raise ConfigError("stage1 is null: a run has at least a stage 1; leave out `stage1=null`")
    check_numbers(container)
    trainer = container.get("trainer") or {}
    callbacks = container.get("callbacks", own_callbacks(trainer))
    container = container | {"trainer": typed_trainer(trainer), "callbacks": callbacks or {}}
    container = {key: node for key, node in container.items() if node is not None or not names_stage(key)}
    for key in filter(names_stage, container):
        if isinstance(container[key], dict) and not {"batch_size", "loss"} & container[key].keys():
            raise ConfigError(no_stage(key))
    schema = with_stages(filter(names_stage, container))
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), container)
        config = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise ConfigError(_unknown_key(error, container)) from None
    except OmegaConfBaseException as error:
        raise ConfigError(_wrong_value(error)) from None
    assert isinstance(config, Config)
    check_keywords(container)
    check_values(config)
    check_lightning(config)
    return config


def load(path: Path) -> Config:
    """The config of a run's folder (its config.yaml).

    Raises:
        ConfigError: if the file is missing or is not a run's config.
    """
    return to_config(load_plain(path))


def load_plain(path: Path) -> dict[str, Any]:
    """The content of a run's config.yaml, in today's keys.

    Raises:
        ConfigError: if the file is missing or damaged.
    """
    try:
        container = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; is this the folder of a run?") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(f"{path} is damaged: it is not YAML") from None
    if not isinstance(container, dict):
        raise ConfigError(f"{path} is not the config of a run")
    return in_todays_keys({str(key): value for key, value in container.items()})


def _wrong_value(error: OmegaConfBaseException) -> str:
    key, reason = str(error.full_key or error.key), str(error).splitlines()[0]
    if "annot assign" in reason:
        return not_one_value(key)
    if "is not Optional" in reason:
        return f"{key}=null: it cannot be left out; choose with {key.rpartition('.')[2]}@{key}=NAME, or set its keys"
    if missing := re.search(r"missing mandatory value: (\w+)", reason):
        return f"{missing[1]} has no value: set it again, it cannot be left out ({key})"
    return f"{key}: {reason[0].lower()}{reason[1:]}"


@cache
def is_node(key: str) -> bool:
    """Whether a dotted key of a config has keys below it."""
    node: Any = OmegaConf.structured(with_stages([stage] if names_stage(stage := key.partition(".")[0]) else []))
    for part in key.split("."):
        node = node.get(part) if isinstance(node, DictConfig) and part in node else None
    return isinstance(node, DictConfig)


def not_one_value(key: str) -> str:
    """What to do instead of giving a value to a key that has keys below it."""
    place, _, name = key.rpartition(".")
    if place and name in ADDED:
        return f"{key} is not one value: {ADDED[name].format(key)} adds one"
    choice = f"choose with {f'{name}@{key}' if place else name}=NAME, or " if group_files(name) else ""
    return f"{key} is not one value: {choice}set a key below {key}"


def no_stage(name: str) -> str:
    """One line on keys of a stage that a run does not have."""
    files = ", ".join(group_files("stage"))
    return (
        f"there is no {name}: `/stage@{name}: FILE` in the method's defaults list, or +stage@{name}=FILE on the "
        f"command line, brings it; FILE is one of {files}"
    )


def _unknown_key(error: ConfigKeyError, container: dict[str, Any]) -> str:
    full_key = str(error.full_key or error.key)
    parent = full_key.rpartition(".")[0]
    known = [f"{parent}.{name}".lstrip(".") for name in _keys_of(parent)]
    if (meant := alias_of(full_key, dotted_keys(container))) is not None:
        return f"unknown key '{full_key}': did you mean '{meant}'?"
    return unknown_name("key", full_key, known)


def _keys_of(place: str) -> list[str]:
    """The keys that the schema has for the node at a dotted place."""
    schema: Any = Config
    path = place.split(".") if place else []
    if path and names_stage(path[0]):
        schema, path = StageConfig, path[1:]
        if path[1:] and path[0] in ("terms", "streams"):
            schema, path = Term if path[0] == "terms" else Stream, path[2:]
    fields = OmegaConf.structured(schema)
    found = OmegaConf.select(fields, ".".join(path)) if path else fields
    return [str(key) for key in found] if isinstance(found, DictConfig) else []


def dotted_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a nested mapping, inner nodes included."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield f"{prefix}{key}"
            yield from dotted_keys(child, f"{prefix}{key}.")
