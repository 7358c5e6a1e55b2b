"""Hydra launchers: where the jobs of a sweep run. Hydra takes plugins from the namespace package `hydra_plugins` alone.

Each stands before Hydra's own plugin for joblib or submitit, which need not be installed until it is chosen.
"""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from ltexp.config import TrainerConfig
from ltexp.config.composer import as_typed, products
from ltexp.config.words import key_of
from ltexp.errors import ConfigError
from ltexp.launching.devices import device_count, free_gpus, visible_gpus
from ltexp.launching.outcome import DRY_RUN_VARIABLE, Outcome, SweepError, is_failed, job_name, say
from ltexp.launching.places import read_places


class LaunchError(HydraException):
    """A sweep that cannot be started."""


@dataclass
class Announced:
    """The task of a job, which says first which of the sweep's jobs it is.

    Attributes:
        task: the job's task function.
        total: the number of jobs.
        common: overrides that all jobs have.
    """

    task: Any
    total: int = 0
    common: frozenset[str] = frozenset()

    def __call__(self, job: DictConfig) -> Any:
        """Runs the job."""
        runtime = HydraConfig.get()
        own = [text for text in as_typed(runtime.overrides.task) if text not in self.common]
        if DRY_RUN_VARIABLE not in os.environ:
            say(f"{job_name(runtime.job.num, self.total)}: {' '.join(own)}")
        return self.task(job)


class PluginLauncher(Launcher):
    """A launcher over one of Hydra's.

    Attributes:
        plugin: its module.
        package: that installs it.
        total: the number of jobs where they come in several batches; None: those of one batch.
    """

    plugin: ClassVar[str]
    package: ClassVar[str]
    launcher: Launcher
    announced: Announced
    total: int | None = None

    @classmethod
    def check(cls) -> None:
        """Before anything is written.

        Raises:
            LaunchError: if the plugin, or what it drives, is missing.
        """
        if find_spec(cls.plugin) is None:
            raise LaunchError(f"launcher={cls.__name__.lower()} needs {cls.package}: pip install {cls.package}")

    def set_up(self, launcher: Launcher, context: HydraContext, task: TaskFunction, config: DictConfig) -> None:
        """Hands all that Hydra gives a launcher on to the one that runs the jobs."""
        self.launcher, self.announced = launcher, Announced(task)
        if (trials := config.hydra.sweeper.get("trials")) is not None:
            seeds = [text for text in as_typed(config.hydra.overrides.task) if key_of(text) == "seed"]
            self.total = trials * len(products(seeds))  # each trial is a run with each of them
        self.folder = str(config.hydra.sweep.dir)
        self.chosen = any(key_of(text) == "hydra.sweep.dir" for text in as_typed(config.hydra.overrides.hydra))
        launcher.setup(hydra_context=context, task_function=self.placed(self.announced), config=config)

    def placed(self, task: TaskFunction) -> TaskFunction:
        """The task of a job where it runs."""
        return task

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs all jobs; says which is running, and in the end what came of them.

        Raises:
            SweepError: if a job failed, unless a search tries others.
        """
        jobs, several = [list(job) for job in job_overrides], len(job_overrides) > 1
        self.announced.total = self.total or initial_job_idx + len(jobs)
        self.announced.common = frozenset(set[str].intersection(*map(set, jobs)) if several else ())
        outcome = Outcome(initial_job_idx, self.announced.total, self.announced.common, time.time())
        places = read_places(Path(self.folder))
        for number, job in enumerate(jobs, initial_job_idx):
            job += [f"hydra.sweep.subdir={places[number]}"] if number in places else []
        results = self.launcher.launch(jobs, initial_job_idx)
        if DRY_RUN_VARIABLE in os.environ:
            return results
        failed = outcome.tell(results, summed_up=self.total is None)
        if failed and self.total is None:  # a search goes on
            place = "" if self.chosen else f"hydra.sweep.dir={self.folder} "
            said = f"{failed} of {len(jobs)} jobs failed"
            refused = all(isinstance(result._return_value, ConfigError) for result in results if is_failed(result))
            if not refused or not any(text.lower() == "resume=true" for job in jobs for text in job):
                said += f"; the same command with {place}resume=true continues the sweep"
            raise SweepError(said)
        return results


@dataclass(frozen=True)
class GpuLauncher:
    """The task of a job, on GPUs that it alone uses.

    Attributes:
        task: the job's task function.
        jobs_per_gpu: the number of jobs that may share one.
    """

    task: Any
    jobs_per_gpu: int

    def __call__(self, job: DictConfig) -> Any:
        """Waits until as many GPUs are free as the job wants, and runs it there."""
        if job.trainer.accelerator == "cpu" or not visible_gpus():
            return self.task(job)
        before = os.environ.get("CUDA_VISIBLE_DEVICES")
        with free_gpus(device_count(job.trainer), self.jobs_per_gpu) as gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
            try:
                return self.task(job)
            finally:
                os.environ.pop("CUDA_VISIBLE_DEVICES")
                os.environ |= {} if before is None else {"CUDA_VISIBLE_DEVICES": before}


class Basic(PluginLauncher):
    """Jobs one after the other on this machine."""

    plugin, package = "hydra._internal.core_plugins.basic_launcher", "hydra-core"

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra calls this first."""
        self.set_up(BasicLauncher(), hydra_context, task_function, config)


class Joblib(PluginLauncher):
    """Jobs side by side on this machine; conf/launcher/joblib.yaml explains the keys."""

    plugin, package = "hydra_plugins.hydra_joblib_launcher", "hydra-joblib-launcher"

    def __init__(self, n_jobs: int | None, jobs_per_gpu: int) -> None:
        if jobs_per_gpu < 1 or (n_jobs is not None and n_jobs < 1):
            raise LaunchError("launcher.n_jobs and launcher.jobs_per_gpu are at least 1")
        self.n_jobs, self.jobs_per_gpu = n_jobs, jobs_per_gpu

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra calls this first."""
        self.check()
        from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher

        n_jobs = self.n_jobs or jobs_at_a_time(config.trainer, self.jobs_per_gpu)
        self.set_up(JoblibLauncher(n_jobs=n_jobs, batch_size=1), hydra_context, task_function, config)

    def placed(self, task: TaskFunction) -> TaskFunction:
        return GpuLauncher(task, self.jobs_per_gpu)


def jobs_at_a_time(trainer: TrainerConfig | DictConfig, jobs_per_gpu: int) -> int:
    """As many jobs as the GPUs of this machine have room for; one without any."""
    gpus = [] if trainer.accelerator == "cpu" else visible_gpus() or []
    return max(1, len(gpus) // device_count(trainer) * jobs_per_gpu)


class Slurm(PluginLauncher):
    """An allocation a job; conf/launcher/slurm.yaml explains the keys."""

    at_the_end: ClassVar[str] = "Ctrl-C does not stop them"

    plugin, package = "hydra_plugins.hydra_submitit_launcher", "hydra-submitit-launcher"

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    @classmethod
    def check(cls) -> None:
        super().check()
        if cls is Slurm and shutil.which("sbatch") is None:
            raise LaunchError("launcher=slurm: there is no sbatch here; type this on a login node of the cluster")

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra calls this first."""
        self.check()
        from ltexp.launching import submitted

        if config.trainer.devices == "auto":
            raise LaunchError("trainer.devices=auto counts the GPUs of the machine it is typed on: write their number")
        settings = self.settings | {"name": "ltexp", "tasks_per_node": 1}
        if settings["gpus_per_node"] is None and config.trainer.accelerator != "cpu":
            settings["gpus_per_node"] = config.trainer.devices
        if "cpus_per_task" in settings and settings["cpus_per_task"] is None:
            settings["cpus_per_task"] = 8 * config.trainer.devices
        launcher = getattr(submitted, type(self).__name__)(**settings)
        self.set_up(launcher, hydra_context, task_function, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits all jobs and waits for them."""
        folder = str(self.settings["submitit_folder"]).replace("%j", "")
        jobs = "1 job is" if len(job_overrides) == 1 else f"{len(job_overrides)} jobs are"
        say(f"{jobs} submitted, with logs in {folder}; {self.at_the_end}")
        return super().launch(job_overrides, initial_job_idx)


class Local(Slurm):
    """The same on this machine; conf/launcher/local.yaml explains the keys."""

    at_the_end = "they end with this command"
