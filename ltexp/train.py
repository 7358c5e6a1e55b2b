"""Train a run: `ltexp train method=mislas dataset=cifar100_lt`.

Composes the config with Hydra, checks it, freezes it into the run's folder and starts the work on that file. Nothing
here imports torch, so a mistake on the command line is answered at once.
"""

import os
import re
import sys
from collections.abc import Sequence
from contextlib import chdir, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ltexp.config.composer import as_typed, install, products
from ltexp.config.lightning import group_loggers
from ltexp.config.path import conf_dir, group_names, take_config_dirs
from ltexp.config.words import key_of, parse_value
from ltexp.errors import ConfigError, LtexpError
from ltexp.launching.explain import explain
from ltexp.launching.freeze import freeze
from ltexp.launching.nodes import requeued
from ltexp.launching.outcome import DRY_RUN_VARIABLE
from ltexp.launching.prepared import end_prepared
from ltexp.launching.signals import Stopped, number_of, raised_signals
from ltexp.launching.single import train_one
from ltexp.launching.start import JobError, run_in_folder
from ltexp.launching.sweep import frozen_path, show_config
from ltexp.launching.trials import is_stopped
from ltexp.run_folder import CONFIG
from ltexp.terminal import print_anywhere

WITH_VALUE = (  # flags of Hydra that take one
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun"),
)
DRY_RUN = "--dry-run"
NOT_WITH_SWEEPS = ("--cfg", "-c", "--info", "-i", "--package", "-p")


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def job(composed: DictConfig) -> None:
    """One job: a single run, or one of a sweep."""
    runtime = HydraConfig.get()
    with_hydra = OmegaConf.create({"hydra": OmegaConf.to_container(runtime)}, flags={"allow_objects": True})
    with_hydra.merge_with(composed)
    folder = Path(runtime.runtime.output_dir)
    typed = any(key_of(text) in ("hydra.run.dir", "hydra.sweep.dir") for text in as_typed(runtime.overrides.hydra))
    note_other_folder(runtime)
    try:
        with chdir(runtime.runtime.cwd):  # paths are those of where it was typed, also with hydra.job.chdir=true
            plain = _frozen_at_sweep_start(runtime) or freeze(with_hydra)
        if runtime.mode == RunMode.MULTIRUN:
            group_loggers(plain, Path(runtime.sweep.dir).name)
        if DRY_RUN_VARIABLE in os.environ:  # of a sweeper of others, whose jobs are not known before
            show_config(folder, plain)
            return
        # a job script of the user's that is queued again names a new folder, and so does not know that of its run
        own = (folder / CONFIG).exists() or ("SUBMITIT_EXECUTOR" in os.environ and not plain["resume"])
        if requeued():
            plain["resume"] = True
        run_in_folder(plain, folder, chosen=typed or (requeued() and own))
    except LtexpError as error:
        if runtime.mode != RunMode.MULTIRUN:
            sys.exit(1 if isinstance(error, JobError) else f"ltexp: {error}")
        if not isinstance(error, JobError) and not is_stopped(folder):  # by a search, which says so itself
            print(f"ltexp: {error}", file=sys.stderr, flush=True)
        raise  # Hydra goes on with the other jobs; the launcher names those that failed


def note_other_folder(runtime: Any) -> None:
    """Says once that a folder was typed which is not that of this kind of job."""
    one, several = (f"hydra.{kind}.dir" for kind in ("run", "sweep"))
    single = runtime.mode != RunMode.MULTIRUN
    idle, own = (several, one) if single else (one, several)
    typed = {key_of(text) for text in as_typed(runtime.overrides.hydra)}
    if idle in typed and own not in typed and (single or runtime.job.num == 0):
        what = "one run: set hydra.run.dir, or add -m" if single else "a sweep: set hydra.sweep.dir"
        print(f"note: {idle} has no effect on {what}", file=sys.stderr, flush=True)


def _frozen_at_sweep_start(runtime: Any) -> dict[str, Any] | None:
    if runtime.mode != RunMode.MULTIRUN:
        return None
    path = frozen_path(Path(runtime.sweep.dir), runtime.job.num)
    if not path.exists():
        return None
    frozen = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(frozen, dict)
    same = frozen["overrides"] == list(runtime.overrides.task)
    return {str(key): value for key, value in frozen.items()} if same else None


def flags_first(arguments: list[str]) -> list[str]:
    """The same arguments with the flags before the overrides: Hydra wants them there."""
    flags: list[str] = []
    overrides: list[str] = []
    waiting = False  # for the value of a flag
    for text in arguments:
        is_flag = text.startswith("-") and text != "-"
        (flags if is_flag or waiting else overrides).append(text)
        waiting = is_flag and text in WITH_VALUE
    return [*flags, *overrides]


def with_home(argument: str) -> str:
    """`KEY=~/FOLDER` as a shell would read it after a space; Hydra knows no home."""
    key, sign, value = argument.partition("=")
    return f"{key}={Path(value).expanduser()}" if sign and re.match("~[^/=]*/|~$", value) else argument


def check_flags(arguments: Sequence[str]) -> None:
    """Refuses flags of Hydra that cannot work here.

    Raises:
        ConfigError: with what to type instead.
    """
    names = {text.partition("=")[0] for text in arguments if text.startswith("-")}
    if "--experimental-rerun" in names:
        raise ConfigError(
            "--experimental-rerun: runs keep their config.yaml instead of a pickle; run it again with "
            "--config-path FOLDER --config-name config"
        )
    several = bool(names & {"-m", "--multirun"})
    if several and (found := names & set(NOT_WITH_SWEEPS)):
        raise ConfigError(f"{found.pop()} shows one config: leave out -m; --dry-run shows those of all jobs of a sweep")
    if several and (empty := _without_jobs([text for text in arguments if "=" in text and text[0] != "-"])):
        raise ConfigError(f"{empty} lists no value, so that the sweep has no jobs: name one or more")


def _without_jobs(overrides: Sequence[str]) -> str | None:
    """The override that lists no value, of a sweep that so has no jobs; None: there is none, or it cannot be read."""
    with suppress(HydraException):
        return next((text for text in overrides if not products([text])), None)
    return None


def no_name(arguments: Sequence[str]) -> str:
    """One line on a choice that is no name, such as `method=null`; empty: there is none."""
    for text in arguments:
        key, sign, value = text.partition("=")
        if sign and "." not in key.partition("@")[0] and key.partition("@")[0] in group_names():
            found = parse_value(key, value)
            if not isinstance(found, str | list):
                return f"{text}: a choice is a name; {key}=\"'{value}'\" if that is its name"
    return ""


def main() -> None:
    """The command; a user's mistake ends it with one line and status 1."""
    print_anywhere()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then leaves its errors to us
    install()
    try:
        sys.argv[1:] = take_config_dirs(sys.argv[1:])
    except LtexpError as error:
        sys.exit(f"ltexp: {error}")
    sys.argv[1:] = flags_first(sys.argv[1:])
    if DRY_RUN in sys.argv:
        sys.argv.remove(DRY_RUN)
        os.environ[DRY_RUN_VARIABLE] = "1"
    sys.argv[1:] = [with_home(text) for text in sys.argv[1:]]
    try:
        _run()
    finally:
        end_prepared()


def _run() -> None:
    """Runs the job, or jobs, of sys.argv, and ends this process with one line and status 1 where that fails."""
    try:
        check_flags(sys.argv[1:])
        with raised_signals():
            job()
    except (KeyboardInterrupt, Stopped) as signalled:
        sys.exit(128 + number_of(signalled))
    except LtexpError as error:
        sys.exit(f"ltexp: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"ltexp: {explain(error, sys.argv[1:])}")
    except OSError as error:
        if error.filename is None:  # of what is printed
            raise
        sys.exit(f"ltexp: {error.filename}: {error.strerror or error}")
    except ValueError as error:
        if "Config group override" not in str(error):  # Hydra's word for method=5
            raise
        sys.exit(f"ltexp: {no_name(sys.argv[1:]) or error}")


class _Callable(ModuleType):
    """Importing this module puts it in the place of the function `ltexp.train`, so it can be called likewise."""

    def __call__(self, *arguments: Any, **keywords: Any) -> Path:
        return train_one(*arguments, **keywords)


if __name__ == "__main__":
    main()
else:
    sys.modules[__name__].__class__ = _Callable
