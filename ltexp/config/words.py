"""The `key=value` words of the command lines beside Hydra's: `ltexp data`, `evaluate`, `report` and `reproduce`.

All four end alike: with status 0; with 2 where what was typed cannot work; with 1 where something else went wrong.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ltexp.config.require import require_choice
from ltexp.errors import ConfigError, LtexpError, UnknownKeyError
from ltexp.terminal import print_anywhere
from ltexp.usage import folded


def key_of(override: str) -> str:
    """The key, or choice, that an override of Hydra's sets, adds or removes."""
    return override.lstrip("+~").partition("=")[0]


def split_words(
    words: Sequence[str], keys: Iterable[str], is_other: Callable[[str], bool] | None = None
) -> tuple[list[str], dict[str, str]]:
    """(other words, options): the words that are no options of a command, and its options as text by key.

    Args:
        words: those of the command line.
        keys: the options that the command has.
        is_other: whether a word that is none of them belongs to the other words; default: see `is_place`.

    Raises:
        ConfigError: for an unknown key, one without a value, or an empty word.
    """
    known = list(keys)
    others, options = [], {}
    for word in words:
        if not word:
            raise ConfigError("one of the words is empty: was a variable of the shell not set?")
        key, separator, value = word.partition("=")
        if separator and key in known:
            if not value:
                raise ConfigError(f"{key}= names nothing")
            options[key] = value
        elif (is_other or is_place)(word):
            others.append(word)
        else:
            raise UnknownKeyError(key, known)
    return others, options


def is_place(word: str) -> bool:
    """Whether a word names a folder or file rather than an option: it has no `=`, or is a path that holds one."""
    key, separator, _ = word.partition("=")
    return not separator or "/" in key or Path(word).exists()


def parse_value(key: str, text: str) -> Any:
    """`text` read as YAML, as on Hydra's command line.

    Raises:
        ConfigError: if it is not YAML.
    """
    try:
        return OmegaConf.to_container(OmegaConf.create(f"value: {text}"))["value"]  # type: ignore[index,call-overload]
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{key}={text} cannot be read: {str(error).splitlines()[0]}") from None


def read_choice(options: Mapping[str, str], key: str, choices: Sequence[str]) -> str | None:
    """An option that is one of `choices`; None where it was not typed.

    Raises:
        ConfigError: for anything else.
    """
    if key in options:
        require_choice(key, options[key], choices)
    return options.get(key)


def read_flag(options: Mapping[str, str], key: str) -> bool | None:
    """An option that is `true` or `false`; None where it was not typed.

    Raises:
        ConfigError: for anything else.
    """
    text = read_choice(options, key, ("true", "false"))
    return None if text is None else text == "true"


@contextmanager
def own_keys(names: Mapping[str, str]) -> Iterator[None]:
    """Errors of the block name keys as the command has them, `precision` for `trainer.precision`.

    Args:
        names: the command's own by the beginnings of config keys.

    Raises:
        LtexpError: the block's own, with the other names.
    """
    try:
        yield
    except LtexpError as error:
        text = str(error)
        for key, own in names.items():
            text = re.sub(rf"(?<![\w.@]){re.escape(key)}", own, text)
        if text == str(error):
            raise
        raise (ConfigError if isinstance(error, ConfigError) else type(error))(text) from error.__cause__


def run_command(name: str, usage: str, action: Callable[[list[str]], int], arguments: Sequence[str] | None) -> int:
    """The exit status of a command: its usage without words or with --help, else what `action` answers to them.

    Args:
        name: of the command, for messages.
        usage: what --help prints.
        action: gets the words; see `status_of`.
        arguments: the words; None: those of the command line.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or {"-h", "--help"} & set(words):
        print(folded(usage.rstrip()))
        return 0
    return status_of(name, lambda: action(words))


def status_of(command: str, action: Callable[[], int]) -> int:
    """What `action` answers; a user's mistake is printed in one line and ends with 2 or 1."""
    print_anywhere()
    try:
        return action()
    except LtexpError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
