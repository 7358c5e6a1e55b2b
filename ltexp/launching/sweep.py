"""Checks every job before the first one starts, and freezes all jobs of a sweep at its start."""

import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.ltexp_listed import listed_jobs
from ltexp.config import names_stage
from ltexp.config.build import build
from ltexp.config.composer import LayeredLoader, as_typed, products
from ltexp.config.lightning import group_loggers, trainer_config
from ltexp.config.monitored import check_monitored
from ltexp.config.require import require_path
from ltexp.config.words import key_of
from ltexp.data.commands.check import require_present
from ltexp.errors import ConfigError, LtexpError
from ltexp.files import write_text
from ltexp.launching.checks import check_compositions, check_jobs, check_places, check_subfolders
from ltexp.launching.devices import check_devices
from ltexp.launching.explain import explain
from ltexp.launching.freeze import freeze
from ltexp.launching.header import remember
from ltexp.launching.outcome import DRY_RUN_VARIABLE, job_name, say
from ltexp.launching.places import place_jobs, write_places
from ltexp.launching.prepared import start_prepared
from ltexp.launching.start import require_own, require_own_sweep
from ltexp.run_folder import FROZEN


class ValidateAndFreeze(Callback):
    """Hydra calls this before it writes anything.

    Left alone, Hydra composes each job of a sweep when it launches it: a mistake in the last job would show after all
    others have trained, and an edit of conf/ during the sweep would change the jobs still to come.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        with _ending_at_errors():
            if (folder := _typed_folder(config, "hydra.run.dir")) is not None:
                require_own(folder)
            if DRY_RUN_VARIABLE not in os.environ and str(config.trainer.num_nodes) == "1":
                start_prepared(sweep=False, several=str(config.trainer.devices) != "1")
            frozen = freeze(config)
            check_devices(trainer_config(frozen["trainer"]))
            check_data(frozen)
            if DRY_RUN_VARIABLE in os.environ:
                HydraConfig.instance().set_config(config)  # which the name of the folder is made of
                show_config(Path(str(config.hydra.run.dir)), frozen)
                sys.exit()  # before Hydra makes the folder

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with _ending_at_errors():
            require_path("paths.outputs", config.paths.outputs)  # a search composes its jobs later
            if (folder := _typed_folder(config, "hydra.sweep.dir")) is not None:
                require_own_sweep(folder)
            target = config.hydra.launcher._target_
            if target.endswith("submitit_launcher.SlurmLauncher") and shutil.which("sbatch") is None:
                raise ConfigError("hydra/launcher=submitit_slurm: there is no sbatch here; see also launcher=slurm")
            check = getattr(get_class(target), "check", None)
            if check is not None:
                check()
            if DRY_RUN_VARIABLE not in os.environ:
                start_prepared(sweep=True, several=str(config.trainer.devices) != "1")
            self._freeze_jobs(config)

    def _freeze_jobs(self, config: DictConfig) -> None:
        if config.hydra.sweeper._target_.endswith("Listed"):
            _freeze_listed(config)
            return
        if not config.hydra.sweeper._target_.endswith("BasicSweeper"):
            # a search chooses its next jobs by the results of the last; each is checked when it starts
            if DRY_RUN_VARIABLE not in os.environ:
                _forget_jobs(Path(config.hydra.sweep.dir))
            return
        loader = GlobalHydra.instance().config_loader()
        swept = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]  # of conf/sweep/
        jobs = products([*swept, *as_typed(config.hydra.overrides.task)])
        check_jobs(jobs, swept, config)
        frozen: list[dict[str, Any]] = []
        opened: list[tuple[dict[str, Any], bool]] = []  # each dataset, and whether it has a validation split
        subfolders = []
        if len(jobs) > 1:
            say(f"{len(jobs)} jobs, all checked before the first starts")
        for number, overrides in enumerate(jobs):
            try:
                _say_what_is_left_out(loader, job_name(number, len(jobs)), overrides)
                composed = loader.load_sweep_config(config, overrides)
                frozen.append(freeze(composed))
                subfolders.append(subfolder(composed, number))
                _check_data_once(frozen[-1], opened)
            except (LtexpError, HydraException, OmegaConfBaseException) as error:
                reason = explain(error, [*as_typed(config.hydra.overrides.hydra), *overrides])
                raise ConfigError(f"{job_name(number, len(jobs))} ({' '.join(overrides)}): {reason}") from None
        check_subfolders(subfolders)
        check_places([trainer_config(job["trainer"]) for job in frozen], config)
        check_compositions(frozen, jobs)
        sweep = Path(config.hydra.sweep.dir)
        places = _places(config, frozen)
        if DRY_RUN_VARIABLE in os.environ:
            for number, job in enumerate(frozen):
                group_loggers(job, sweep.name)
                show_config(sweep / places.get(number, subfolders[number]), job)
            sys.exit()  # before anything is written
        for number, job in enumerate(frozen):
            write_text(frozen_path(sweep, number), OmegaConf.to_yaml(OmegaConf.create(job)))
        write_places(sweep, places)


def _forget_jobs(sweep: Path) -> None:
    """Takes away what an earlier sweep in this folder wrote of its jobs, which are not those of this one."""
    write_places(sweep, {})
    for path in (sweep / FROZEN).glob("*.yaml"):
        path.unlink()


def show_config(folder: Path, plain: dict[str, Any]) -> None:
    """Prints the config of a run that is not to be made, and the folder that it would have."""
    print(f"# {folder.absolute()}\n{OmegaConf.to_yaml(OmegaConf.create(plain))}", end="")


def subfolder(composed: DictConfig, number: int) -> str:
    """The folder of a sweep's job inside that of the sweep, as Hydra will name it."""
    if _is_of_number(composed):
        return str(number)
    with open_dict(composed):
        composed.hydra.job.num, composed.hydra.job.id = number, f"job_id_for_{number}"
    running = HydraConfig.instance()
    before = running.cfg
    try:
        running.set_config(composed)  # which the name may be made of
        return str(composed.hydra.sweep.subdir)
    finally:
        running.cfg = before


def _is_of_number(config: DictConfig) -> bool:
    """Whether the folders of a sweep's jobs are those of their numbers, and not named by the user."""
    named = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    assert isinstance(named, dict)
    return bool(named["subdir"] == "${hydra.job.num}")


def _typed_folder(config: DictConfig, key: str) -> Path | None:
    """The folder as typed; None for the usual one, and for one that only a job can name (`${hydra:...}`)."""
    words = as_typed(config.hydra.overrides.hydra)
    typed = [text.partition("=")[2] for text in words if key_of(text) == key]
    if typed and "$" not in typed[-1]:
        require_path(key, OmegaConf.select(config, key) or "")
    return Path(str(OmegaConf.select(config, key))) if typed and "$" not in typed[-1] else None


def _places(config: DictConfig, frozen: list[dict[str, Any]]) -> dict[int, str]:
    """The folders of jobs that have another than that of their number; none where the user names the folders.

    Raises:
        ConfigError: if there are some, and the launcher is none of ours, which alone know of them.
    """
    sweep = Path(config.hydra.sweep.dir)
    if not _is_of_number(config) or not (places := place_jobs(sweep, frozen)):
        return {}
    first = next(iter(places))
    if not config.hydra.launcher._target_.startswith("hydra_plugins.ltexp_launchers."):
        raise ConfigError(
            f"hydra.sweep.dir={sweep}: {job_name(first, len(frozen))} finds another config in {sweep / str(first)}: "
            "choose another hydra.sweep.dir, or launcher=basic, joblib, slurm or local, which finds it a folder"
        )
    shown = [f"{job_name(number, len(frozen))} in {place}" for number, place in places.items()]
    say(f"{sweep} has runs already: {', '.join(shown[:3])}{' ...' if shown[3:] else ''}")
    return places


def _say_what_is_left_out(loader: Any, job: str, overrides: list[str]) -> None:
    """One line for what a sweep sets on a stage that the method of one of its jobs does not have."""
    assert isinstance(loader, LayeredLoader)
    kept, left_out = loader.without_absent(overrides)
    if left_out:
        stages = " and ".join(sorted({stage for text in left_out if (stage := loader.stage_of(text))}))
        say(f"{job} ({' '.join(kept)}) has no {stages}: {' '.join(left_out)} left out")


def _freeze_listed(config: DictConfig) -> None:
    """Jobs that stand for themselves: one that cannot be composed fails when its turn comes, not the others with it."""
    loader, sweep = GlobalHydra.instance().config_loader(), Path(config.hydra.sweep.dir)
    jobs, failed = listed_jobs(config.hydra.sweeper.jobs, as_typed(config.hydra.overrides.task)), 0
    only_shown = DRY_RUN_VARIABLE in os.environ
    for number, overrides in enumerate(jobs):
        try:
            composed = loader.load_sweep_config(config, overrides)
            job = freeze(composed)
        except (LtexpError, HydraException, OmegaConfBaseException) as error:
            if not only_shown:
                frozen_path(sweep, number).unlink(missing_ok=True)  # of an earlier sweep
            else:
                failed += 1
                reason = explain(error, [*as_typed(config.hydra.overrides.hydra), *overrides])
                print(f"ltexp: {job_name(number, len(jobs))} ({' '.join(overrides)}): {reason}", file=sys.stderr)
            continue
        if only_shown:
            show_config(sweep / subfolder(composed, number), job)
        else:
            write_text(frozen_path(sweep, number), OmegaConf.to_yaml(OmegaConf.create(job)))
    if failed:
        raise ConfigError(f"{failed} of {len(jobs)} jobs cannot work")
    if only_shown:
        sys.exit()  # before anything is written
    write_places(sweep, {})  # those of an earlier sweep are not of these jobs


def _check_data_once(frozen: dict[str, Any], opened: list[tuple[dict[str, Any], bool]]) -> None:
    """`check_data` of a job; of a dataset that an earlier job has `opened` only what the job waits for."""
    for dataset, has_validation in opened:
        if dataset == frozen["dataset"]:
            _check_waiting(frozen, has_validation)
            return
    opened.append((frozen["dataset"], check_data(frozen)))


def check_data(frozen: dict[str, Any]) -> bool:
    """Opens the job's dataset, which needs no torch, so that missing or too little data is known at once.

    That every image file is there is looked at here, once for all processes and jobs of the command.

    Returns:
        Whether it has a validation split.

    Raises:
        LtexpError: if the data is missing, damaged, or too little for what the config asks of it.
    """
    data = build(frozen["dataset"], root=frozen["paths"]["data"], path="dataset")
    require_present(data)
    for line in data.notes:
        print(f"{data.name}: {line}", flush=True)
    remember(frozen, data)
    _check_waiting(frozen, data.validation is not None)
    return data.validation is not None


def _check_waiting(frozen: dict[str, Any], has_validation: bool) -> None:
    """Refuses callbacks and schedules of the job that wait for what is never measured."""
    stages = {name: frozen[name]["epochs"] for name in frozen if names_stage(name) and frozen[name]}
    trained = {name: epochs for name, epochs in stages.items() if epochs and frozen[name].get("checkpoint") is None}
    schedules = {name: frozen[name]["schedule"] for name in trained}
    every = frozen["evaluation"]["every"]
    check_monitored(frozen.get("callbacks") or {}, schedules, has_validation, every, trained)


@contextmanager
def _ending_at_errors() -> Iterator[None]:
    # Hydra only warns of an exception in a callback, and would go on without its checks; it lets an exit through.
    try:
        yield
    except (LtexpError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"ltexp: {explain(error, sys.argv[1:])}")
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            sys.exit(f"ltexp: {error.filename}: {error.strerror or error}")
        traceback.print_exception(error)
        sys.exit(1)


def frozen_path(sweep_dir: Path, number: int) -> Path:
    """Where the config of a sweep's job is kept from the sweep's start."""
    return sweep_dir / FROZEN / f"{number}.yaml"
