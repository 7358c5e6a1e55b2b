"""Hydra's config loader with the rule of layers: `ltexp train`, sweeps, `--cfg job` and tests compose with it.

The one place, with `config_files` and `paper_choice`, that knows Hydra from the inside.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import hydra._internal.defaults_list as hydra_defaults
import hydra._internal.hydra as hydra_main
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.defaults_list import _create_interpolation_map
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf, open_dict

from ltexp.config import resolvers  # noqa: F401 - what the files of conf/ interpolate with
from ltexp.config.config_files import PRIMARY, Files, choices_of_stages, is_part, layer_of, plain_content
from ltexp.config.layers import RECIPE, Fold, has_target, merged
from ltexp.config.paper_choice import SETTINGS, with_paper
from ltexp.config.path import conf_dir, user_config_dirs
from ltexp.config.reading import is_node, not_one_value
from ltexp.config.schema import STAGE
from ltexp.errors import ConfigError
from ltexp.names import nearest

NOT_OF_A_RUN = ("hydra", "launcher")  # where a run runs is no part of what it is
_SCHEMA = SearchPathQuery(provider="schema")


class LayeredLoader(ConfigLoaderImpl):
    """Composes as Hydra does, but for values on parts of a stage, which follow `ltexp.config.layers`."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        for folder in user_config_dirs():  # each before the schema, so behind those before it
            config_search_path.prepend(provider="user", path=f"file://{folder}", anchor=_SCHEMA)
        self.repository = Files(config_search_path)
        self._stages: dict[tuple[str, ...], frozenset[str]] = {}  # that a run has, by its overrides

    def _load_configuration_impl(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *arguments: Any, **keywords: Any
    ) -> DictConfig:
        if config_name != PRIMARY:  # a part alone, or a frozen config
            return super()._load_configuration_impl(config_name, overrides, run_mode, *arguments, **keywords)
        chosen = with_paper(self.repository, overrides)
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
        """The stage that an override sets something of, or chooses a part of or the file of."""
        return _stage_of(OverridesParser.create().parse_override(override))

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: Any) -> DictConfig:
        if not any(default.primary and default.config_path == PRIMARY for default in defaults):
            return super()._compose_config_from_defaults_list(defaults, repo)
        hydras = [default for default in defaults if default.primary or str(default.config_path).startswith("hydra/")]
        hydra = super()._compose_config_from_defaults_list(hydras, repo).hydra
        # plain dictionaries from here on: many times as fast as configs
        anywhere = [layer_of(repo, str(default.config_path)) for default in defaults if not default.package]
        in_place = [default for default in defaults if default.package and default not in hydras]
        for layer in anywhere:
            hydra.merge_with(layer.content.get("hydra", {}))
        primary, *anywhere = sorted(anywhere, key=lambda layer: layer.path != PRIMARY)
        plain = merged({}, {key: value for key, value in primary.content.items() if key != "hydra"})
        for default in in_place:
            content = plain_content(repo.load_config(default.config_path).config)
            for key in reversed(str(default.package).split(".")):
                content = {key: content}
            plain = merged(plain, content)
        parts = {str(default.package): default for default in in_place if is_part(default.package)}
        self._choice_keys = {package: f"{_group(default)}@{package}" for package, default in parts.items()}
        fold = Fold(
            config=plain,
            choices={package: Path(str(default.config_path)).name for package, default in parts.items()},
            groups={package: _group(default) for package, default in parts.items()},
            typed=frozenset(str(part.package) for part in self._typed if part.package is not None),
            options=repo.get_group_options,
        )
        fold.run(anywhere, choices_of_stages(repo, in_place))
        self._choices = fold.choices
        return OmegaConf.create({"hydra": hydra, **plain}, flags={"allow_objects": True})

    def _check_values(self) -> None:
        """Refuses one value for a key that has keys below it."""
        for part in self._typed:
            key, is_value = part.key_or_group, part.package is None and not part.is_sweep_override()
            if not is_value or self.repository.group_exists(key) or isinstance(part.value(), dict | list | None):
                continue
            if is_node(key):
                raise ConfigError(f"'{part.input_line}': {not_one_value(key)}")

    def _finish(self, config: DictConfig) -> None:
        """Resolves everything of the run and says which choices it is made of."""
        self._check_values()
        stages = [str(key) for key in config if STAGE.fullmatch(str(key))]
        for part in self._typed:
            stage = _stage_of(part)
            if stage in stages and config[stage] is None and part.package is not None:
                whole = "; +stage@stage3=FILE adds a stage to a method" if stage == part.package else ""
                raise ConfigError(
                    f"'{part.input_line}' has no effect: {stage} is null here (the method has no {stage}){whole}"
                )
        _check_named_parts(config, stages, self._typed)
        parts = {package: name for package, name in self._choices.items() if config[package.split(".")[0]] is not None}
        made = {str(key): name for key, name in config.hydra.runtime.choices.items() if name}
        known = {key: name if isinstance(name, str) else ",".join(name) for key, name in made.items()}
        choices = {
            key: name for key, name in known.items() if "hydra/" not in key and not is_part(key.partition("@")[2])
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


def _group(default: ResultDefault) -> str:
    return str(default.config_path).rpartition("/")[0]


def _stage_of(override: Override) -> str | None:
    """The stage that an override sets something of, or chooses a part of or the file of, and that it does not add."""
    package = override.package if override.package is not None else override.key_or_group
    is_its_file = override.key_or_group == "stage" and not override.is_add()
    return package.split(".")[0] if is_part(package) or is_its_file else None


def _check_named_parts(config: DictConfig, stages: Sequence[str], typed: Sequence[Override]) -> None:
    """Refuses what is typed of a term or a module that is not there; what files say of one is left out before.

    Raises:
        ConfigError: with the nearest that is there, and the choice that adds it.
    """
    for kind, group, part in (("terms", "loss", ".loss"), ("modules", "module", "")):
        for stage in stages:
            named = OmegaConf.select(config, f"{stage}.{kind}") or {}
            nodes = {str(name): node for name, node in named.items() if isinstance(node, DictConfig)}
            there = [name for name, node in nodes.items() if has_target(OmegaConf.to_container(node))]
            for name in nodes.keys() - set(there):
                place = f"{stage}.{kind}.{name}"
                for own in typed:
                    if _overlap(own.key_or_group, place):
                        near = nearest(name, there)
                        meant = f"did you mean '{near}'? " if near else ""
                        raise ConfigError(
                            f"'{own.input_line}' has no effect: {stage} has no {kind[:-1]} {name}; {meant}"
                            f"+{group}@{place}{part}=NAME adds one"
                        )


def _overlap(key: str, place: str) -> bool:
    """Whether one of two dotted keys lies within the other."""
    return f"{key}.".startswith(f"{place}.") or f"{place}.".startswith(f"{key}.")


def as_typed(overrides: Iterable[str]) -> list[str]:
    """What a config of Hydra's keeps of a command line (`hydra.overrides.task`), its interpolations as written."""
    return OmegaConf.to_container(overrides, resolve=False) if OmegaConf.is_list(overrides) else list(overrides)  # type: ignore[return-value]


def products(overrides: Sequence[str]) -> list[list[str]]:
    """The jobs of a sweep, each a list of overrides: every combination of the values that `overrides` list.

    What `KEY=glob(...)` lists is known only while Hydra runs.
    """
    running = GlobalHydra.instance()
    parser = OverridesParser.create(running.config_loader() if running.is_initialized() else None)
    (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides(list(overrides)), max_batch_size=None)
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


def compose(overrides: Sequence[str]) -> DictConfig:
    """The config that `ltexp train` composes of `overrides`, as typed, its `hydra` node included."""
    install()
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        loader = LayeredLoader(GlobalHydra.instance().config_loader().get_search_path())
        return loader.load_configuration(PRIMARY, list(overrides), RunMode.RUN, from_shell=False)
