"""Turns a composed Hydra config into the plain, resolved, checked config that a run is started on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ltexp.config import FILES_OF_A_BACKBONE, FILES_OF_A_DATASET, PARTS, to_config
from ltexp.errors import ConfigError

PRIMARY = "config"


def freeze(composed: DictConfig) -> dict[str, Any]:
    """The plain config of one job: resolved, with absolute paths, the choices made and the overrides typed.

    Args:
        composed: what Hydra composed, its own `hydra` node included.

    Raises:
        ConfigError: for anything in it that cannot work.
    """
    made = {key: value for key, value in composed.hydra.runtime.choices.items() if "hydra/" not in key and value}
    choices = {key: value if isinstance(value, str) else ",".join(value) for key, value in made.items()}
    choices.pop("launcher", None)  # where a run runs is no part of what it is
    overrides = list(composed.hydra.overrides.task)
    task = composed.copy()
    with open_dict(task):
        task.pop("hydra")
        task.pop("launcher", None)
        _reset_replaced_nodes(task, overrides, choices, task.pop("choose", {}))
        # a frozen config that is run again has no groups to choose from, but remembers its choices
        task.choices = {**OmegaConf.select(task, "choices", default={}), **choices}
        task.overrides = overrides
    try:
        container = OmegaConf.to_container(task, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from None
    assert isinstance(container, dict)
    plain = {str(key): value for key, value in container.items()}
    to_config(plain)
    _make_absolute(plain)
    return plain


def _make_absolute(plain: dict[str, Any]) -> None:
    """Paths as seen from where the command was typed, so that the config means the same from anywhere."""
    places = [(plain["paths"], "data"), (plain["paths"], "outputs"), (plain["stage_cache"], "dir")]
    for stage in (plain["stage1"], plain.get("stage2")):
        if stage is not None:
            places += [(stage, "checkpoint"), (stage, "teacher"), *((stage["init"], part) for part in PARTS)]
    places += [(plain["dataset"], key) for key in FILES_OF_A_DATASET if key in plain["dataset"]]
    for node, key in places:
        if node[key] not in (None, "fresh", "stage1"):
            node[key] = str(Path(node[key]).expanduser().absolute())
    for key in FILES_OF_A_BACKBONE:
        file = plain["backbone"].get(key)
        if file and Path(file).expanduser().exists():  # else it names weights of torchvision's
            plain["backbone"][key] = str(Path(file).expanduser().absolute())


def _reset_replaced_nodes(
    task: DictConfig, overrides: list[str], choices: dict[str, str], chosen: Mapping[str, Any]
) -> None:
    """A choice that the command line, or a paper's settings by `choose`, replaced starts from its own file.

    A method or a paper's settings may set keys of the choice that they expect (the smoothing factors of a loss, say).
    They mean nothing to the choice that replaced it, and where a key has the same name they would change it in silence.
    Hydra lets no file whose name is an interpolation override a choice, which is why `choose` is done here; what is
    typed has the last word. `choices` then holds what was chosen. `choose` gives a choice's name, its name with values
    as {NAME: {...}}, or another choice, whose name it shares.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    typed = {part.get_key_element(): part for part in parsed if _is_stage_choice(part)}
    values = {key: node for key, node in chosen.items() if isinstance(node, Mapping)}
    names = {key: str(next(iter(node))) if key in values else str(node) for key, node in chosen.items()}
    chosen = {key: name for key, name in names.items() if key not in typed and "@" not in name}
    shared = {key: (choices | chosen)[name] for key, name in names.items() if key not in typed and "@" in name}
    chosen |= {key: name for key, name in shared.items() if choices.get(key) != name}
    choices.update(chosen)
    if not typed and not chosen:
        return
    loader = GlobalHydra.instance().config_loader()
    others = [part.input_line or "" for part in parsed if not _is_stage_choice(part) and _is_choice(part, choices)]
    unreplaced = loader.load_configuration(PRIMARY, overrides=others, run_mode=RunMode.RUN).hydra.runtime.choices
    for key in sorted({**typed, **chosen}, key=len):  # a choice within a choice after the one it is part of
        group, _, package = key.partition("@")
        if (node := OmegaConf.select(task, package)) is None:
            continue
        name = choices[key]
        alone = loader.load_configuration(None, overrides=[f"+{group}@node={name}"], run_mode=RunMode.RUN).node
        # a choice that was made anyway keeps its values, unless they made another of it
        as_it_was = key not in chosen and unreplaced.get(key) == choices.get(key)
        if as_it_was and node.get("_target_") == alone.get("_target_"):
            continue
        if key in chosen and key in values:
            alone = OmegaConf.merge(alone, next(iter(values[key].values())))
        prefix = package + "."
        for part in parsed:
            if part.key_or_group.startswith(prefix) and not part.is_delete():
                OmegaConf.update(alone, part.key_or_group.removeprefix(prefix), part.value(), force_add=True)
        OmegaConf.update(task, package, alone, merge=False)
        if package.endswith(".classifier") and not any("lr_factors" in part.key_or_group for part in parsed):
            OmegaConf.select(task, package.removesuffix(".classifier")).lr_factors.pop("classifier", None)


def _is_stage_choice(part: Override) -> bool:
    return part.package is not None and part.package.startswith("stage")


def _is_choice(part: Override, choices: dict[str, str]) -> bool:
    return part.key_or_group in choices
