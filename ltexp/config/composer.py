"""Hydra's config loader with the rule of layers: `ltexp train`, sweeps, `--cfg job` and tests compose with it.

The one place that knows Hydra from the inside.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra._internal.defaults_list as hydra_defaults
import hydra._internal.hydra as hydra_main
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.defaults_list import _create_interpolation_map
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.default_element import ConfigDefault, GroupDefault, ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf, open_dict

from ltexp.config import resolvers  # noqa: F401 - what the files of conf/ interpolate with
from ltexp.config.layers import RECIPE, Fold, Layer, merged
from ltexp.config.path import conf_dir, user_config_dirs
from ltexp.config.schema import STAGE
from ltexp.errors import ConfigError
from ltexp.names import unknown_name

PRIMARY = "config"
NOT_OF_A_RUN = ("hydra", "launcher")  # where a run runs is no part of what it is
_SCHEMA = SearchPathQuery(provider="schema")
SETTINGS = "settings"  # key of a method: whose settings it takes, a folder of conf/paper/


class Files(ConfigRepository):
    """The files of the search path, read once in a process unless they change."""

    def load_config(self, config_path: str) -> Any:
        """Hydra's `ConfigResult` of a file."""
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() != "file" or config_path.startswith("hydra/"):
            return super().load_config(config_path)
        file = Path(source.path.removeprefix("file://"), source._normalize_file_name(config_path))
        loaded = _parsed(self, config_path, file, file.stat().st_mtime_ns)
        entries = [copy.copy(entry) for entry in loaded.defaults_list]  # Hydra writes into them
        return replace(loaded, defaults_list=entries)


_PARSED: dict[tuple[str, int], Any] = {}


def _parsed(files: Files, config_path: str, file: Path, stamp: int) -> Any:
    key = f"{file}", stamp
    if key not in _PARSED:
        _PARSED[key] = ConfigRepository.load_config(files, config_path)
    return _PARSED[key]


class LayeredLoader(ConfigLoaderImpl):
    """Composes as Hydra does, but for values on parts of a stage, which follow `ltexp.config.layers`."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        for folder in reversed(user_config_dirs()):
            config_search_path.prepend(provider="user", path=f"file://{folder}", anchor=_SCHEMA)
        self.repository = Files(config_search_path)
        self._stages: dict[tuple[str, ...], frozenset[str]] = {}  # that a run has, by its overrides

    def _load_configuration_impl(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *arguments: Any, **keywords: Any
    ) -> DictConfig:
        if config_name != PRIMARY:  # a part alone, or a frozen config
            return super()._load_configuration_impl(config_name, overrides, run_mode, *arguments, **keywords)
        chosen = self._with_paper(overrides)
        self._papers = next((text.removeprefix("paper=[")[:-1] for text in chosen if text.startswith("paper=[")), "")
        self._typed = OverridesParser.create().parse_overrides(overrides)
        if run_mode == RunMode.MULTIRUN:  # a stage that only some jobs have is no matter of the sweep's own config
            chosen = self._without_further(chosen)
        config: DictConfig = super()._load_configuration_impl(config_name, chosen, run_mode, *arguments, **keywords)
        with open_dict(config):
            config.hydra.overrides.task = [part.input_line for part in self._typed if not part.is_hydra_override()]
            if run_mode == RunMode.RUN:
                self._finish(config)
        return config

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The config of a job; overrides of a stage that its method does not have are left out (`without_absent`)."""
        kept, _ = self.without_absent(list(sweep_overrides))
        config: DictConfig = super().load_sweep_config(master_config, kept)
        return config

    def without_absent(self, overrides: list[str]) -> tuple[list[str], list[str]]:
        """(overrides that a run can have, those of stages that it does not have)."""
        parsed = OverridesParser.create().parse_overrides(overrides)
        stages = {stage for part in parsed if (stage := _stage_of(part))}
        if not stages:
            return overrides, []
        rest = [text for text, part in zip(overrides, parsed, strict=True) if _stage_of(part) is None]
        absent = stages - self._stages_of(rest)
        left_out = [text for text, part in zip(overrides, parsed, strict=True) if _stage_of(part) in absent]
        return [text for text in overrides if text not in left_out], left_out

    def _stages_of(self, overrides: list[str]) -> frozenset[str]:
        """The stages that a run has; looked up once for all jobs of a sweep that differ in these stages alone."""
        key = tuple(overrides)
        if key not in self._stages:
            config = self.load_configuration(PRIMARY, overrides, RunMode.RUN)
            self._stages[key] = frozenset(str(name) for name in config if config.get(name) is not None)
        return self._stages[key]

    def _without_further(self, overrides: list[str]) -> list[str]:
        """`overrides` without those of stages that conf/config.yaml does not have."""
        parsed = OverridesParser.create().parse_overrides(overrides)
        primary: Any = self.repository.load_config(PRIMARY)
        own = {entry.package for entry in primary.defaults_list}
        return [text for text, part in zip(overrides, parsed, strict=True) if _stage_of(part) in (None, *own)]

    def stage_of(self, override: str) -> str | None:
        """The stage that an override sets something of, or a choice of whose parts it makes."""
        return _stage_of(OverridesParser.create().parse_override(override))

    def _with_paper(self, overrides: list[str]) -> list[str]:
        """`overrides` with the choice of a paper's settings: of `paper=FAMILY`, else of the family that a method names.

        They are those of conf/paper/FAMILY/DATASET.yaml or, where there are none, of the dataset's recipe; of several
        families, `paper=[mislas,glag]`, the last is the strongest.

        Raises:
            ConfigError: a family that is typed and has no settings for the dataset.
        """
        typed = {text.partition("=")[0]: text for text in overrides}
        paper = typed.get("paper")
        rest = [text for text in overrides if text != paper]
        if paper in ("paper=null", "paper=none"):  # no settings but the method's own
            return rest
        chosen = {group: self._chosen_file(group, typed) for group in ("method", "dataset", "experiment")}
        if paper is None:
            family = self._settings_of(chosen["experiment"]) or self._settings_of(chosen["method"])
            file = self._file_of(family, chosen["dataset"]) if family else None
            return [*rest, f"paper={file}"] if file else rest
        families = [name.strip() for name in paper.removeprefix("paper=").strip("[]").split(",")]
        if len(families) == 1 and not self.repository.group_exists(f"paper/{families[0]}"):
            return overrides  # one file by its name
        files = [self._file_of(family, chosen["dataset"]) for family in families]
        for family in (family for family, file in zip(families, files, strict=True) if file is None):
            if not self.repository.group_exists(f"paper/{family}"):
                known = self.repository.get_group_options("paper", results_filter=ObjectType.GROUP)
                raise ConfigError(unknown_name("paper", family, known))
            there = ", ".join(self.repository.get_group_options(f"paper/{family}"))
            raise ConfigError(f"{paper}: that paper has no settings for {chosen['dataset']}, only for {there}")
        return [*rest, f"paper={files[0]}" if len(files) == 1 else f"paper=[{','.join(map(str, files))}]"]

    def _file_of(self, family: str, dataset: str | None) -> str | None:
        """The choice of group `paper` that has a family's settings for a dataset."""
        recipe = _chosen_in(self.repository, dataset, "recipe@_global_") if dataset else None
        names = (str(dataset).removeprefix("dataset/"), recipe)
        files = (f"{family}/{name}" for name in names if name)
        return next((file for file in files if self.repository.config_exists(f"paper/{file}")), None)

    def _chosen_file(self, group: str, typed: Mapping[str, str]) -> str | None:
        """The file of a group that is chosen: typed, by a sweep or an experiment that is typed, or by config.yaml."""
        if group in typed:
            name: str | None = typed[group].partition("=")[2]
        else:
            files = [f"{kind}/{typed[kind].partition('=')[2]}" for kind in ("sweep", "experiment") if kind in typed]
            names = [_chosen_in(self.repository, path, group) for path in (*files, PRIMARY)]
            name = next((name for name in names if name is not None), None)
        path = f"{group}/{name}"
        return path if name and self.repository.config_exists(path) else None

    def _settings_of(self, path: str | None) -> str | None:
        """The family of settings that a method, or else what it builds on, names."""
        if path is None:
            return None
        loaded: Any = self.repository.load_config(path)
        own: str | None = loaded.config.get(SETTINGS)
        bases = [str(entry.path) for entry in reversed(loaded.defaults_list) if isinstance(entry, ConfigDefault)]
        folder = path.rpartition("/")[0]
        named = (self._settings_of(f"{folder}/{base}") for base in bases if base != "_self_" and "/" not in base)
        return own or next((name for name in named if name), None)

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: Any) -> DictConfig:
        if not any(default.primary and default.config_path == PRIMARY for default in defaults):
            return super()._compose_config_from_defaults_list(defaults, repo)
        hydras = [default for default in defaults if default.primary or str(default.config_path).startswith("hydra/")]
        hydra = super()._compose_config_from_defaults_list(hydras, repo).hydra
        # plain dictionaries from here on: many times as fast as configs
        anywhere = [_layer(repo, str(default.config_path)) for default in defaults if not default.package]
        in_place = [default for default in defaults if default.package and default not in hydras]
        for layer in anywhere:
            hydra.merge_with(layer.content.get("hydra", {}))
        primary, *anywhere = sorted(anywhere, key=lambda layer: layer.path != PRIMARY)
        plain = merged({}, {key: value for key, value in primary.content.items() if key != "hydra"})
        for default in in_place:
            content = _plain(repo.load_config(default.config_path).config)
            for key in reversed(str(default.package).split(".")):
                content = {key: content}
            plain = merged(plain, content)
        parts = {str(default.package): default for default in in_place if _is_part(default.package)}
        self._choice_keys = {package: f"{_group(default)}@{package}" for package, default in parts.items()}
        fold = Fold(
            config=plain,
            choices={package: Path(str(default.config_path)).name for package, default in parts.items()},
            groups={package: _group(default) for package, default in parts.items()},
            typed=frozenset(str(part.package) for part in self._typed if part.package is not None),
            options=repo.get_group_options,
        )
        fold.run(anywhere, _choices_of_stages(repo, in_place))
        self._choices = fold.choices
        return OmegaConf.create({"hydra": hydra, **plain}, flags={"allow_objects": True})

    def _finish(self, config: DictConfig) -> None:
        """Resolves everything of the run and says which choices it is made of."""
        stages = [str(key) for key in config if STAGE.fullmatch(str(key))]
        for part in self._typed:
            if (stage := _stage_of(part)) in stages and config[stage] is None and part.package is not None:
                raise ConfigError(
                    f"'{part.input_line}' has no effect: {stage} is null here (the method has no {stage})"
                )
        parts = {package: name for package, name in self._choices.items() if config[package.split(".")[0]] is not None}
        made = {str(key): name for key, name in config.hydra.runtime.choices.items() if name}
        known = {key: name if isinstance(name, str) else ",".join(name) for key, name in made.items()}
        choices = {
            key: name for key, name in known.items() if "hydra/" not in key and not _is_part(key.partition("@")[2])
        }
        choices |= {"paper": self._papers} if self._papers else {}  # Hydra does not note a list of choices
        choices |= {self._choice_keys.get(package, package): name for package, name in parts.items()}
        choices.pop("launcher", None)
        # a frozen config that is run again has no groups to choose from, but remembers its choices
        config.choices = {**config.get("choices", {}), **choices}
        for key in [key for key in config if key not in NOT_OF_A_RUN]:
            if isinstance(node := config._get_node(key), Container):
                OmegaConf.resolve(node)
        for node in (config, *(config[stage] for stage in stages)):
            if node is not None:
                node.pop(RECIPE, None)
        config.pop(SETTINGS, None)


def _is_part(package: str | None) -> bool:
    """Whether a package is of a part of a stage, such as stage1.loss."""
    stage, _, part = str(package or "").partition(".")
    return bool(part) and STAGE.fullmatch(stage) is not None


def _group(default: ResultDefault) -> str:
    return str(default.config_path).rpartition("/")[0]


def _layer(repo: Any, path: str) -> Layer:
    loaded = repo.load_config(path)
    return Layer(path, _plain(loaded.config), _chosen(repo, loaded, ""))


def _plain(config: Any) -> dict[str, Any]:
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
            if _is_part(package):
                own[package] = entry.value
                if repo.config_exists(path):
                    within |= _chosen(repo, repo.load_config(path), package)
    return within | own


def _chosen_in(repo: Any, path: str, group: str) -> str | None:
    """What a file's own defaults list chooses of a group (`method`, `recipe@_global_`)."""
    loaded = repo.load_config(path) if repo.config_exists(path) else None
    for entry in loaded.defaults_list if loaded is not None else ():
        if isinstance(entry, GroupDefault) and isinstance(entry.value, str):
            package = f"@{entry.package}" if entry.package else ""
            if f"{str(entry.group).lstrip('/')}{package}" == group:
                return entry.value
    return None


def _choices_of_stages(repo: Any, defaults: Sequence[ResultDefault]) -> dict[str, str]:
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


def _stage_of(override: Override) -> str | None:
    """The stage that an override sets something of, or a choice of whose parts it makes."""
    package = override.package if override.package is not None else override.key_or_group
    return package.split(".")[0] if _is_part(package) else None


def products(overrides: Sequence[str]) -> list[list[str]]:
    """The jobs of a sweep, each a list of overrides: every combination of the values that `overrides` list."""
    (jobs,) = BasicSweeper.split_arguments(
        OverridesParser.create().parse_overrides(list(overrides)), max_batch_size=None
    )
    return [list(job) for job in jobs]


def install() -> None:
    """Makes Hydra compose by the rule of layers, in this process."""
    vars(hydra_main)["ConfigLoaderImpl"] = LayeredLoader
    vars(hydra_defaults)["_create_interpolation_map"] = _interpolation_map


def _interpolation_map(overrides: Any, defaults_list: list[Any], self_added: bool) -> DictConfig:
    """What a defaults list may interpolate. Hydra makes it for every file: half of a composition's time."""
    if any(default.is_interpolation() for default in defaults_list if not default.is_self()):
        return _create_interpolation_map(overrides, defaults_list, self_added)
    return OmegaConf.create()


def compose(overrides: Sequence[str], further: Sequence[Path] = ()) -> DictConfig:
    """The config that `ltexp train` composes of `overrides`, its `hydra` node included.

    Args:
        overrides: those of a command line, as typed.
        further: folders of config groups before ltexp's own, as `--config-dir` names one.
    """
    install()
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        paths = GlobalHydra.instance().config_loader().get_search_path()
        for folder in further:
            paths.prepend(provider="command-line", path=f"file://{folder.absolute()}", anchor=_SCHEMA)
        loader = LayeredLoader(paths)
        return loader.load_configuration(PRIMARY, list(overrides), RunMode.RUN, from_shell=False)
