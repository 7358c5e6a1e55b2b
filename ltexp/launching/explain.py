"""Says in one line what was wrong with a command line, with the nearest name that exists."""

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ltexp.config.composer import compose
from ltexp.config.reading import dotted_keys
from ltexp.errors import ConfigError, LtexpError
from ltexp.names import alias_of, unknown_name

OVERRIDE_TOO_EARLY = re.compile(r"In '?([^':]+)'?: Override '([^']+)' is defined before '([^']+)'")

SEVERAL_VALUES = re.compile(r"Ambiguous value for argument '(.*)'\n")


def explain(error: Exception, arguments: list[str]) -> str:
    """One line for `error`, which the command-line `arguments` led to."""
    if isinstance(error, LtexpError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return unknown_name(group or "config", choice, error.options)
    if isinstance(error, OverrideParseException):
        return _unreadable(str(error.override))
    if several := SEVERAL_VALUES.match(str(error)):
        key, _, values = several[1].partition("=")
        return (
            f"{several[1]} are several values: add -m for a job with each, or write '{key}=[{values}]' for a list and "
            f"'{key}=\"{values}\"' for a text"
        )
    if isinstance(error, ConfigCompositionException):
        return _composition(error, arguments)
    return _first_line(error)


@contextmanager
def explained(overrides: Sequence[str]) -> Iterator[None]:
    """Within the block whatever is wrong with `overrides` is raised in one line.

    Raises:
        ConfigError: in the place of Hydra's and OmegaConf's errors.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, list(overrides))) from None


def _unreadable(override: str) -> str:
    """What cannot be read, with the quotes that make a text of the value: those of a shell around Hydra's."""
    key, sign, value = override.partition("=")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    quoted = f'{key}="{escaped}"'
    with suppress(HydraException):
        OverridesParser.create().parse_override(quoted)
        if sign:
            return f"cannot read the override '{override}': to give that text as it stands, write {shlex.quote(quoted)}"
    return f"cannot read the override '{override}': write key=value, with quotes around special characters"


def _composition(error: ConfigCompositionException, arguments: list[str]) -> str:
    if order := OVERRIDE_TOO_EARLY.search(str(error)):
        file, override, later = (part.replace(" :", ":") for part in order.groups())
        typed = override.replace(f"@{file.partition('/')[0]}.", "@")  # Hydra has put the file's own group in
        later = later.rpartition(": ")[2]
        return f"{file}: 'override /{typed}' stands before '{later}' in the defaults list: put override lines last"
    found = re.search(r"[Cc]ould not override '([^']+)'", str(error))
    if not found:
        return _first_line(error)
    key = found.group(1)
    config, groups = known_keys(arguments)
    if "@" in key or "/" in key:
        return unknown_name("choice", key, groups)
    if (none := _null_parent(config, key)) is not None:
        return f"'{key}' has no effect: {none} is null here (the method has no {none})"
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and "not in" not in str(cause):
        return f"{key}: {_first_line(cause)}"
    known = [*dotted_keys(OmegaConf.to_container(config)), *groups]
    if key in known:
        return f"'{key}' cannot be set together with the rest of this command line"
    if (meant := alias_of(key, known)) is not None:
        return f"unknown key '{key}': did you mean '{meant}'?"
    siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
    return unknown_name("key", key, siblings if "." in key and siblings else known)


def known_keys(arguments: list[str]) -> tuple[DictConfig, list[str]]:
    """The config that the readable choices among `arguments` compose to, and the names of its groups.

    Args:
        arguments: those of `ltexp train`; what of them cannot be read or composed is left out.
    """
    plain = compose([])
    groups = [str(key) for key in plain.hydra.runtime.choices if "hydra/" not in str(key)]
    readable = [text for text in arguments if "=" in text and not text.startswith("-")]
    chosen = [
        part.input_line or ""
        for part in OverridesParser.create().parse_overrides(readable)
        if not part.is_sweep_override() and part.get_key_element().lstrip("+") in groups
    ]
    try:
        return compose(chosen), groups
    except (LtexpError, HydraException, OmegaConfBaseException):
        return plain, groups


def _null_parent(config: DictConfig, key: str) -> str | None:
    parent = key.split(".")[0]
    return parent if "." in key and parent in config and config[parent] is None else None


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n\n")[0].split())
