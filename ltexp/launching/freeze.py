"""Turns a composed Hydra config into the plain, resolved, checked config that a run is started on."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ltexp.config import FILES_OF_A_BACKBONE, FILES_OF_A_DATASET, names_stage, to_config
from ltexp.config.composer import NOT_OF_A_RUN
from ltexp.config.places import OF_A_DATASET
from ltexp.config.require import require_path
from ltexp.errors import ConfigError
from ltexp.launching.devices import device_count


def freeze(composed: DictConfig) -> dict[str, Any]:
    """The plain config of one job: resolved, with absolute paths, the choices made and the overrides typed.

    Args:
        composed: what Hydra composed, its own `hydra` node included.

    Raises:
        ConfigError: for anything in it that cannot work.
    """
    try:
        task = OmegaConf.masked_copy(composed, [str(key) for key in composed if key not in NOT_OF_A_RUN])
        container = OmegaConf.to_container(task, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from None
    assert isinstance(container, dict)
    plain = {str(key): value for key, value in container.items()}
    if plain["trainer"].get("devices") == "auto":
        plain["trainer"]["devices"] = device_count(plain["trainer"])
    plain["overrides"] = list(composed.hydra.overrides.task)
    to_config(plain)
    _make_absolute(plain)
    return plain


def _make_absolute(plain: dict[str, Any]) -> None:
    """Paths as seen from where the command was typed, so that the config means the same from anywhere."""
    for place, node, key in _paths(plain):
        require_path(f"{place}.{key}", node[key])
        if node[key] not in (None, "fresh") and not names_stage(node[key]):
            node[key] = str(Path(node[key]).expanduser().absolute())
    for key in FILES_OF_A_BACKBONE:
        file = plain["backbone"].get(key)
        require_path(f"backbone.{key}", file)
        if file and Path(file).expanduser().exists():  # else it names weights of torchvision's
            plain["backbone"][key] = str(Path(file).expanduser().absolute())
    for key, value in (plain["dataset"].get("source") or {}).items():
        if f"dataset.source.{key}" in OF_A_DATASET:  # below the data root, if it is not absolute
            require_path(f"dataset.source.{key}", value)


def _paths(plain: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    """Where a config has paths: the full key of a node, the node, and a key of it."""
    places = [("paths", plain["paths"], "outputs"), ("paths", plain["paths"], "data")]
    places.append(("stage_cache", plain["stage_cache"], "dir"))
    for name, stage in plain.items():
        if names_stage(name) and stage is not None:
            places += [(name, stage, "checkpoint"), (name, stage, "teacher")]
            places += [(f"{name}.init", stage["init"], part) for part in stage["init"]]
            places += [(f"{name}.teachers", stage["teachers"], own) for own in stage.get("teachers", {})]
            modules = stage.get("modules", {}).items()
            places += [(f"{name}.modules.{own}", node, "start") for own, node in modules if "start" in node]
    return places + [("dataset", plain["dataset"], key) for key in FILES_OF_A_DATASET if key in plain["dataset"]]
