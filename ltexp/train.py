"""Train a run: `ltexp train method=mislas dataset=cifar100_lt`.

Composes the config with Hydra, checks it, freezes it into the run's folder and starts the work on that file. Nothing
here imports torch, so a mistake on the command line is answered at once.
"""

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ltexp.config.composer import install
from ltexp.config.lightning import group_loggers
from ltexp.config.path import conf_dir, take_config_dirs
from ltexp.errors import LtexpError
from ltexp.launching.explain import explain
from ltexp.launching.freeze import freeze
from ltexp.launching.nodes import requeued
from ltexp.launching.start import JobError, run_in_folder
from ltexp.launching.sweep import frozen_path
from ltexp.launching.trials import is_stopped
from ltexp.terminal import print_anywhere

WITH_VALUE = (  # flags of Hydra that take one
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"),
    *("--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun"),
)
DRY_RUN = "--dry-run"
DRY_RUN_VARIABLE = "LTEXP_DRY_RUN"
JOB_FAILED = "LTEXP_JOB_FAILED"  # set in this process once a job of the sweep has said what is wrong with it


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def job(composed: DictConfig) -> None:
    """One job: a single run, or one of a sweep."""
    runtime = HydraConfig.get()
    with_hydra = OmegaConf.create({"hydra": OmegaConf.to_container(runtime)}, flags={"allow_objects": True})
    with_hydra.merge_with(composed)
    folder = Path(runtime.runtime.output_dir)
    typed = any(text.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for text in runtime.overrides.hydra)
    try:
        plain = _frozen_at_sweep_start(runtime) or freeze(with_hydra)
        if runtime.mode == RunMode.MULTIRUN:
            group_loggers(plain, Path(runtime.sweep.dir).name)
        if DRY_RUN_VARIABLE in os.environ:
            print(f"# {folder}\n{OmegaConf.to_yaml(OmegaConf.create(plain))}", end="")
            return
        if requeued():
            plain["resume"] = True
        run_in_folder(plain, folder, chosen=typed or requeued())
    except LtexpError as error:
        if runtime.mode != RunMode.MULTIRUN:
            sys.exit(1 if isinstance(error, JobError) else f"ltexp: {error}")
        if not is_stopped(folder):  # by a search, which says so itself
            print(f"ltexp: {error}", file=sys.stderr, flush=True)
            os.environ[JOB_FAILED] = "1"
        raise  # Hydra goes on with the other jobs and raises this at their end


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
    try:
        job()
    except KeyboardInterrupt:
        sys.exit(130)
    except LtexpError as error:
        if JOB_FAILED not in os.environ:
            sys.exit(f"ltexp: {error}")
        sys.exit("ltexp: at least one job of the sweep failed; the same command with resume=true continues it")
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"ltexp: {explain(error, sys.argv[1:])}")
    except OSError as error:
        sys.exit(f"ltexp: {error.filename}: {error.strerror or error}")
    except ValueError as error:
        if "Config group override" not in str(error):  # Hydra's word for method=5
            raise
        sys.exit(f"ltexp: {error}")


if __name__ == "__main__":
    main()
