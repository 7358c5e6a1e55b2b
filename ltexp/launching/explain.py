"""Says in one line what was wrong with a command line, with the nearest name that exists."""

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ltexp.config.composer import compose
from ltexp.config.path import VARIABLE, choices_with, group_names, user_config_dirs
from ltexp.config.reading import dotted_keys, no_stage
from ltexp.config.schema import names_stage
from ltexp.config.signature import GIVEN, accepted_keywords
from ltexp.errors import ConfigError, LtexpError
from ltexp.names import alias_of, plain, unknown_name

OVERRIDE_TOO_EARLY = re.compile(r"In '?([^':]+)'?: Override '([^']+)' is defined before '([^']+)'")

TWICE = re.compile(r"@(\w+)\.\S+ appears more than once in the final defaults list")

MOST_OWN = 8  # keys of a part that a line names
CHOSEN_TWICE = re.compile(r"Multiple values for (\S+)\. To override a value use 'override (\S+: (\S+))'")
# a file sets what the class that another file chooses does not take
NOT_IN = re.compile(r"Key '(?P<key>\w+)' not in '(?P<chosen>\w+)'.*full_key: (?P<place>[\w.]+)\.\w+", re.S)
TAKES_NO = re.compile(
    r"(?P<chosen>\w+)\.__init__\(\) got an unexpected keyword argument '(?P<key>\w+)'"
    r".*full_key: (?P<place>[\w.]+)",
    re.S,
)
SEVERAL_VALUES = re.compile(r"Ambiguous value for argument '(.*)'\n")


def explain(error: Exception, arguments: list[str]) -> str:
    """One line for `error`, which the command-line `arguments` led to."""
    if isinstance(error, LtexpError):
        return str(error)
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, LtexpError | HydraException):
        return explain(error.__cause__, arguments)  # of a sweeper or a launcher, which says what is wrong with its keys
    said = str(error) or str(error.__cause__)  # Hydra's error around OmegaConf's may be empty
    if none := TAKES_NO.search(said) or NOT_IN.search(said):
        return _of_another_file(none["chosen"], none["key"], none["place"], arguments)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return unknown_name(group or "config", choice, error.options) + _own_files(choice, error.options)
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


def _of_another_file(chosen: str, key: str, place: str, arguments: Sequence[str]) -> str:
    """What to leave out where one file chooses a sweeper or launcher and another sets what it does not take."""
    group = place.replace(".", "/")
    typed = [text for text in arguments if text.lstrip("+").startswith((f"{group}=", "sweep="))]
    return f"{place}.{key}: {chosen} takes no {key}: leave out {' or '.join(typed) or f'{place}.{key}'}"


def _own_files(choice: str, options: Sequence[str]) -> str:
    """Where files of one's own are found, for a choice that is not just misspelt while no folder of them is named."""
    if user_config_dirs() or get_close_matches(plain(choice), map(plain, options), n=1, cutoff=0.75):
        return ""
    return f" (files of your own are found with --config-dir DIR or ${VARIABLE})"


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


def _of_defaults_list(said: str, arguments: list[str]) -> str:
    """What is wrong with a defaults list, or with what the arguments make of it; empty: nothing that is known."""
    if order := OVERRIDE_TOO_EARLY.search(said):
        file, override, later = (part.replace(" :", ":") for part in order.groups())
        typed = override.replace(f"@{file.partition('/')[0]}.", "@")  # Hydra has put the file's own group in
        later = later.rpartition(": ")[2]
        return f"{file}: 'override /{typed}' stands before '{later}' in the defaults list: put override lines last"
    if twice := CHOSEN_TWICE.search(said):
        key, line, choice = twice.groups()
        typed = f"{key}={choice}"
        if f"+{typed}" in arguments:
            return f"+{typed}: there is a choice of {key} already: leave out the +"
        return f"a file chooses {key} once more: write '- override /{line}' in its defaults list"
    if no_group := re.search(r"config group '([^']+)' does not exist", said):
        return unknown_name("group", no_group[1], group_names())
    twice = TWICE.search(said)
    if twice and (added := [text for text in arguments if f"@{twice[1]}=" in text]):
        return f"{added[0]}: there is a {twice[1]} already, if only as null: leave out the +, or add a stage3"
    return ""


def _composition(error: ConfigCompositionException, arguments: list[str]) -> str:
    if line := _of_defaults_list(str(error), arguments):
        return line
    found = re.search(r"[Cc]ould not override '([^']+)'", str(error))
    if not found:
        return _first_line(error)
    key = found.group(1)
    config, groups = known_keys(arguments)
    stage = key.rpartition("@")[2].partition(".")[0]
    if names_stage(stage) and stage not in config:
        return no_stage(stage)
    if "@" in key or "/" in key:
        return unknown_name("choice", key, groups)
    if (none := _null_parent(config, key)) is not None:
        return f"'{key}' has no effect: {none} is null here (the method has no {none})"
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException) and "not in" not in str(cause):
        return f"{key}: {_first_line(cause)}"
    known = [*dotted_keys(OmegaConf.to_container(config)), *groups]
    if key in known:
        try:
            compose(_choices(arguments, groups))
        except LtexpError as choices:  # which are wrong themselves
            return str(choices)
        except (HydraException, OmegaConfBaseException):
            pass
        return f"'{key}' cannot be set together with the rest of this command line"
    return _unknown(config, key, known)


def _unknown(config: DictConfig, key: str, known: list[str]) -> str:
    """What was probably meant by a key that `config`, with its `known` keys and groups, has not."""
    almost = get_close_matches(key, known, n=1, cutoff=0.95) if "." in key else []  # of a letter too few
    if (meant := almost[0] if almost else alias_of(key, known)) is not None:
        return f"unknown key '{key}': did you mean '{meant}'?"
    if (unlisted := _unlisted(config, key)) is not None:
        return unlisted
    parent, taken = key.rpartition(".")[0], _taken(config, key)
    siblings = [name for name in known if name.rpartition(".")[0] == parent] + [f"{parent}.{name}" for name in taken]
    siblings = [name for name in siblings if not name.rpartition(".")[2].startswith("_")]
    if other := _of_other_choices(config, key):
        own = [name.removeprefix(f"{parent}.") for name in dict.fromkeys(siblings)]
        return other + (f"; the one chosen has {', '.join(own)}" if own and len(own) <= MOST_OWN else "")
    words = key.split(".")
    for above in (".".join(words[:length]) for length in range(1, len(words))):
        if OmegaConf.select(config, above) == {}:
            return f"unknown key '{key}': {above} has no keys yet; +{key}=VALUE adds one"
    return unknown_name("key", key, siblings if parent in known else known)


def _taken(config: DictConfig, key: str) -> list[str]:
    """The keywords of the class whose node `key` is in, as far as its source tells."""
    node = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else None
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    return [name for name in accepted_keywords(str(target)) or () if name not in GIVEN] if target else []


def _unlisted(config: DictConfig, key: str) -> str | None:
    """What to do about a keyword that a class takes and its file does not list; None: it is none."""
    parent, _, name = key.rpartition(".")
    if name not in _taken(config, key):
        return None
    target = OmegaConf.select(config, parent)["_target_"]
    chosen = next(
        (
            f"{group.partition('@')[0]}/{choice}"
            for group, choice in config.choices.items()
            if (group.partition("@")[2] or group) == parent
        ),
        None,
    )
    file = f"conf/{chosen}.yaml" if chosen else "its file"
    return f"{target} takes {name}, but {file} does not list it: add '{name}: VALUE' there, or type +{key}=VALUE"


def _of_other_choices(config: DictConfig, key: str) -> str:
    """What to do about a key that other choices of its group have and this one has not; empty: none has."""
    parent, _, name = key.rpartition(".")
    group = parent.rpartition(".")[2]
    node = OmegaConf.select(config, parent) if parent else None
    if not isinstance(node, DictConfig) or get_close_matches(name, [str(own) for own in node], n=1, cutoff=0.8):
        return ""
    having = choices_with(group, name)
    if not having:
        return ""
    shown = ", ".join(having[:4]) + (" ..." if having[4:] else "")
    choose = f"{group}@{parent}" if parent != group else group
    return f"unknown key '{key}': {shown} {'has' if len(having) == 1 else 'have'} it: choose one with {choose}=NAME"


def known_keys(arguments: list[str]) -> tuple[DictConfig, list[str]]:
    """The config that the readable choices among `arguments` compose to, and the names of its groups.

    Args:
        arguments: those of `ltexp train`; what of them cannot be read or composed is left out.
    """
    bare = compose([])
    groups = [str(key) for key in bare.hydra.runtime.choices if "hydra/" not in str(key)]
    try:
        return compose(_choices(arguments, groups)), groups
    except (LtexpError, HydraException, OmegaConfBaseException):
        return bare, groups


def _choices(arguments: list[str], groups: Sequence[str]) -> list[str]:
    """Those of the arguments that choose a file of one of the groups."""
    readable = [text for text in arguments if "=" in text and not text.startswith("-")]
    return [
        part.input_line or ""
        for part in OverridesParser.create().parse_overrides(readable)
        if not part.is_sweep_override() and part.get_key_element().lstrip("+") in groups
    ]


def _null_parent(config: DictConfig, key: str) -> str | None:
    parent = key.split(".")[0]
    return parent if "." in key and parent in config and config[parent] is None else None


def _first_line(error: BaseException) -> str:
    if not str(error) and error.__cause__ is not None:  # Hydra's, around OmegaConf's
        return _first_line(error.__cause__)
    return " ".join(str(error).split("\n\n")[0].split())
