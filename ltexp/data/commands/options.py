"""The `key=value` words of `python -m ltexp.data`."""

from collections.abc import Iterable, Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ltexp.errors import ConfigError
from ltexp.names import unknown_name


def split_words(words: Sequence[str], keys: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """(names, options): the words without `=`, and the others as text by key.

    Raises:
        ConfigError: for a key that is not among `keys`.
    """
    known = list(keys)
    names = [word for word in words if "=" not in word]
    options = dict(word.split("=", 1) for word in words if "=" in word)
    for key in options:
        if key not in known:
            raise ConfigError(unknown_name("key", key, known))
    return names, options


def parse_value(key: str, text: str) -> Any:
    """`text` read as YAML, as on Hydra's command line.

    Raises:
        ConfigError: if it is no YAML.
    """
    try:
        return OmegaConf.to_container(OmegaConf.create(f"value: {text}"))["value"]  # type: ignore[index,call-overload]
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{key}={text} cannot be read: {str(error).splitlines()[0]}") from None


def parse_flag(key: str, text: str) -> bool:
    """`true` or `false`. Raises a ConfigError for anything else."""
    if text.lower() not in ("true", "false"):
        raise ConfigError(f"invalid {key}={text}: expected true or false")
    return text.lower() == "true"
