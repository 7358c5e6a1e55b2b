"""Which paper's settings a run has: those that are typed, else those that its method names."""

from collections.abc import Mapping
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra.core.default_element import ConfigDefault, GroupDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser

from ltexp.config.config_files import PRIMARY
from ltexp.errors import ConfigError
from ltexp.names import unknown_name

SETTINGS = "settings"  # key of a method: whose settings it takes, a folder of conf/paper/


def with_paper(repo: ConfigRepository, overrides: list[str]) -> list[str]:
    """`overrides` with the choice of a paper's settings: of `paper=FAMILY`, else of the family that a method names.

    They are those of conf/paper/FAMILY/DATASET.yaml or, where there are none, of the dataset's recipe; of several
    families, `paper=[mislas,glag]`, the last is the strongest.

    Raises:
        ConfigError: a family that is typed and has no settings for the dataset, or one that there is not.
    """
    typed = {text.partition("=")[0]: text for text in overrides}
    for key in (SETTINGS, f"+{SETTINGS}", f"++{SETTINGS}"):
        if key in typed:
            raise ConfigError(f"'{typed[key]}' has no effect: write paper={typed[key].partition('=')[2]}")
    paper = typed.get("paper")
    rest = [text for text in overrides if text != paper]
    named = _named(paper) if paper is not None else []
    if named in ([], ["none"]) and paper is not None:  # no settings but the method's own
        return rest
    chosen = {group: _chosen_file(repo, group, typed) for group in ("method", "dataset", "experiment")}
    if paper is None:
        family, path = _settings_of(repo, chosen["experiment"]) or _settings_of(repo, chosen["method"]) or ("", "")
        file = _file_of(repo, family, chosen["dataset"]) if family else None
        if family and not repo.group_exists(f"paper/{family}"):
            raise ConfigError(f"conf/{path}.yaml: {unknown_name(SETTINGS, family, _families(repo))}")
        return [*rest, f"paper={file}"] if file else rest
    if len(named) == 1 and not repo.group_exists(f"paper/{named[0]}"):
        return overrides  # one file by its name
    files = [_file_of(repo, family, chosen["dataset"]) for family in named]
    for family in (family for family, file in zip(named, files, strict=True) if file is None):
        if not repo.group_exists(f"paper/{family}"):
            raise ConfigError(unknown_name("paper", family, _families(repo)))
        there = ", ".join(repo.get_group_options(f"paper/{family}"))
        raise ConfigError(f"{paper}: that paper has no settings for {chosen['dataset']}, only for {there}")
    return [*rest, f"paper={files[0]}" if len(files) == 1 else f"paper=[{','.join(map(str, files))}]"]


def _named(override: str) -> list[str]:
    """The choices that an override names, without the quotes around them; none of `KEY=null`, one text of a sweep."""
    (part,) = OverridesParser.create().parse_overrides([override])
    if part.is_sweep_override():
        return [override.partition("=")[2]]
    value = part.value()
    return [] if value is None else [str(name) for name in (value if isinstance(value, list) else [value])]


def _families(repo: ConfigRepository) -> list[str]:
    families: list[str] = repo.get_group_options("paper", results_filter=ObjectType.GROUP)
    return families


def _file_of(repo: ConfigRepository, family: str, dataset: str | None) -> str | None:
    """The choice of group `paper` that has a family's settings for a dataset."""
    recipe = _recipe_of(repo, dataset) if dataset else None
    names = (str(dataset).removeprefix("dataset/"), recipe)
    files = (f"{family}/{name}" for name in names if name)
    return next((file for file in files if repo.config_exists(f"paper/{file}")), None)


def _chosen_file(repo: ConfigRepository, group: str, typed: Mapping[str, str]) -> str | None:
    """The file of a group that is chosen: typed, by a sweep or an experiment that is typed, or by config.yaml."""
    if group in typed:
        name = next(iter(_named(typed[group])), None)
    else:
        files = [f"{kind}/{one}" for kind in ("sweep", "experiment") if kind in typed for one in _named(typed[kind])]
        names = [_chosen_in(repo, path, group) for path in (*files, PRIMARY)]
        name = next((name for name in names if name is not None), None)
    path = f"{group}/{name}"
    return path if name and repo.config_exists(path) else None


def _settings_of(repo: ConfigRepository, path: str | None) -> tuple[str, str] | None:
    """(family of settings that a method, or else what it builds on, names; the file that names it)."""
    if path is None:
        return None
    loaded: Any = repo.load_config(path) if repo.config_exists(path) else None
    if loaded is not None and (own := loaded.config.get(SETTINGS)):
        return str(own), path
    return next((found for base in _bases(repo, path) if (found := _settings_of(repo, base))), None)


def _recipe_of(repo: ConfigRepository, path: str) -> str | None:
    """The recipe that a dataset, or else what it builds on, chooses."""
    own = _chosen_in(repo, path, "recipe@_global_")
    return own or next((found for base in _bases(repo, path) if (found := _recipe_of(repo, base))), None)


def _bases(repo: Any, path: str) -> list[str]:
    """The files of the same group that a file builds on, the strongest first."""
    loaded = repo.load_config(path) if repo.config_exists(path) else None
    entries = reversed(loaded.defaults_list) if loaded is not None else ()
    bases = [str(entry.path) for entry in entries if isinstance(entry, ConfigDefault)]
    folder = path.rpartition("/")[0]
    return [f"{folder}/{base}" for base in bases if base != "_self_" and "/" not in base]


def _chosen_in(repo: Any, path: str, group: str) -> str | None:
    """What a file's own defaults list chooses of a group (`method`, `recipe@_global_`)."""
    loaded = repo.load_config(path) if repo.config_exists(path) else None
    for entry in loaded.defaults_list if loaded is not None else ():
        if isinstance(entry, GroupDefault) and isinstance(entry.value, str):
            package = f"@{entry.package}" if entry.package else ""
            if f"{str(entry.group).lstrip('/')}{package}" == group:
                return entry.value
    return None
