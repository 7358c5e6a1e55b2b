"""The files of the search path and what their defaults lists choose."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra.core.default_element import ConfigDefault, GroupDefault, ResultDefault
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

from ltexp.config.layers import Layer
from ltexp.config.path import readable
from ltexp.config.schema import STAGE
from ltexp.errors import ConfigError

PRIMARY = "config"


class Files(ConfigRepository):
    """The files of the search path, read once in a process unless they change."""

    def load_config(self, config_path: str) -> Any:
        """Hydra's `ConfigResult` of a file.

        Raises:
            ConfigError: for one that is not YAML, or a list.
        """
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() != "file" or config_path.startswith("hydra/"):
            return super().load_config(config_path)
        file = Path(source.path.removeprefix("file://"), source._normalize_file_name(config_path))
        with readable(file):
            loaded = _parsed(self, config_path, file, file.stat().st_mtime_ns)
        if not isinstance(loaded.config, DictConfig):
            raise ConfigError(f"{file}: this is a list; a file of conf/ is made of keys, such as `seed: 1`")
        entries = [copy.copy(entry) for entry in loaded.defaults_list]  # Hydra writes into them
        return replace(loaded, defaults_list=entries)


_PARSED: dict[tuple[str, int], Any] = {}


def _parsed(files: Files, config_path: str, file: Path, stamp: int) -> Any:
    key = f"{file}", stamp
    if key not in _PARSED:
        _PARSED[key] = ConfigRepository.load_config(files, config_path)
    return _PARSED[key]


def is_part(package: str | None) -> bool:
    """Whether a package is of a part of a stage, such as stage1.loss."""
    stage, _, part = str(package or "").partition(".")
    return bool(part) and STAGE.fullmatch(stage) is not None


def layer_of(repo: Any, path: str) -> Layer:
    loaded = repo.load_config(path)
    return Layer(path, plain_content(loaded.config), _chosen(repo, loaded, ""))


def plain_content(config: Any) -> dict[str, Any]:
    """Its content, interpolations as written."""
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _chosen(repo: Any, loaded: Any, at: str) -> dict[str, str]:
    """The choices of parts in a file's own defaults list by package, with those that the chosen files make in turn.

    Args:
        at: where the file is mounted.
    """
    own: dict[str, str] = {}
    within: dict[str, str] = {}
    for entry in loaded.defaults_list:
        if isinstance(entry, GroupDefault) and isinstance(entry.value, str):
            package, path = f"{at}.{entry.package}".lstrip("."), f"{str(entry.group).lstrip('/')}/{entry.value}"
            if is_part(package):
                own[package] = entry.value
                if repo.config_exists(path):
                    within |= _chosen(repo, repo.load_config(path), package)
    return within | own


def choices_of_stages(repo: Any, defaults: Sequence[ResultDefault]) -> dict[str, str]:
    """The choices of the parts of all stages as the files of conf/stage/ have them, by package.

    Args:
        defaults: of conf/config.yaml, and of a method or a command line that brings a further stage.
    """
    found: dict[str, str] = {}
    for default in defaults:
        if STAGE.fullmatch(str(default.package)):
            found |= _choices_of_stage(repo, str(default.config_path), str(default.package))
    return found


def _choices_of_stage(repo: Any, path: str, at: str) -> dict[str, str]:
    loaded = repo.load_config(path)
    found: dict[str, str] = {}
    for entry in loaded.defaults_list:
        if isinstance(entry, ConfigDefault) and entry.path != "_self_":
            found |= _choices_of_stage(repo, f"{path.rpartition('/')[0]}/{entry.path}", at)
    return found | _chosen(repo, loaded, at)
