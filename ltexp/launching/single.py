"""One run from Python: what `ltexp train` does with the words of a command line."""

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser

from ltexp.config.composer import compose
from ltexp.config.lightning import trainer_config
from ltexp.config.path import reading_config_dirs
from ltexp.config.require import require_path
from ltexp.config.words import key_of
from ltexp.errors import ConfigError
from ltexp.launching.devices import check_devices
from ltexp.launching.explain import explained
from ltexp.launching.freeze import freeze
from ltexp.launching.start import run_in_folder
from ltexp.launching.sweep import check_data


def train_one(
    overrides: Sequence[str] = (), folder: str | Path | None = None, config_dirs: Sequence[str | Path] = ()
) -> Path:
    """See `ltexp.train`; nothing is written before the config and the data are found to be sound."""
    words = [overrides] if isinstance(overrides, str) else list(overrides)
    flags = [word for word in words if word.startswith("-")]
    if flags:
        raise ConfigError(f"{flags[0]}: a flag of the command line; ltexp.train takes overrides, of one run")
    swept = [word for word in words if _is_sweep(word)]
    if swept:
        raise ConfigError(f"{swept[0]}: several values are a sweep, and ltexp.train trains one run: call it for each")
    if folder is not None and (typed := [word for word in words if _names_folder(word)]):
        raise ConfigError(f"{typed[0]}: the folder of the run is folder={folder} already: leave one of them out")
    with reading_config_dirs(config_dirs):
        return _train(words, folder)


def _train(words: list[str], folder: str | Path | None) -> Path:
    with explained(words):
        composed = compose(words)
        plain = freeze(composed)
        HydraConfig.instance().set_config(composed)  # which the name of the folder is made of
        require_path("folder", folder)
        require_path("hydra.run.dir", composed.hydra.run.dir or "")
        default = Path(str(composed.hydra.run.dir))
    check_devices(trainer_config(plain["trainer"]))
    check_data(plain)
    sys.stdout.flush()  # what the run prints comes after it
    typed = any(map(_names_folder, words))
    return run_in_folder(plain, Path(folder or default), chosen=typed or folder is not None)


def _names_folder(word: str) -> bool:
    return key_of(word) == "hydra.run.dir"


def _is_sweep(word: str) -> bool:
    with explained([word]):
        return any(part.is_sweep_override() for part in OverridesParser.create().parse_overrides([word]))
