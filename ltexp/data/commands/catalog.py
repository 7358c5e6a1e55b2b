"""The datasets of conf/dataset/, for the commands that look at data without composing a run."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ltexp.config.path import group_files, readable
from ltexp.errors import ConfigError
from ltexp.names import unknown_name


def datasets() -> list[str]:
    """The names of all files in conf/dataset/ and the same folder of the user's config folders."""
    return list(group_files("dataset"))


def dataset_config(name: str) -> dict[str, Any]:
    """The keys of a file in conf/dataset/ over those of the datasets that it extends, without the recipe.

    Raises:
        ConfigError: if there is none of this name.
    """
    if name not in datasets():
        raise ConfigError(unknown_name("dataset", name, datasets()))
    file = group_files("dataset")[name]
    with readable(file):
        own = OmegaConf.load(file)
    assert isinstance(own, DictConfig)
    extended = [entry for entry in own.pop("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    merged = OmegaConf.to_container(OmegaConf.merge(*map(dataset_config, extended), own))
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def datasets_of_folder(folder: str) -> list[str]:
    """The datasets whose files lie in `<data root>/<folder>`."""
    return [name for name in datasets() if dataset_config(name).get("source", {}).get("folder") == folder]


def resolve(names: list[str]) -> dict[str, str]:
    """What the user named, dataset or folder of the data root, as names of conf/dataset/; nothing named: all.

    Those of a user's own images, which say nowhere where these lie, are not among all.

    Raises:
        ConfigError: for a name that is neither.
    """
    known = datasets()
    if not names:
        return {name: name for name in known if dataset_config(name)["source"].get("folder", "") is not None}
    found = {}
    for name in names:
        readers = [name] if name in known else datasets_of_folder(name)
        if not readers:
            folders = {dataset_config(other)["source"].get("folder") for other in known} - {None}
            raise ConfigError(unknown_name("dataset", name, [*known, *folders]))
        found[name] = readers[0]
    return found


def build_source(folder: str) -> Any:
    """The source of the datasets whose files lie in `<data root>/<folder>`."""
    from ltexp.config.build import build  # takes as long to import as everything else that reads this file

    return build(dataset_config(datasets_of_folder(folder)[0])["source"], path="dataset.source")


def as_path(text: str) -> Path:
    """A path that a user typed, with `~` expanded."""
    return Path(text).expanduser()
