"""Hydra launchers: where the jobs of a sweep run. Hydra takes plugins from the namespace package `hydra_plugins` alone.

Each stands before Hydra's own plugin for joblib or submitit, which need not be installed until it is chosen.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from ltexp.config import TrainerConfig
from ltexp.launching.devices import device_count, free_gpus, visible_gpus


class LaunchError(HydraException):
    """A sweep that cannot be started."""


class PluginLauncher(Launcher):
    """A launcher over one of Hydra's plugins.

    Attributes:
        plugin: module of the plugin.
        package: that installs it.
    """

    plugin: ClassVar[str]
    package: ClassVar[str]
    launcher: Launcher

    @classmethod
    def check(cls) -> None:
        """Before anything is written.

        Raises:
            LaunchError: if the plugin, or what it drives, is missing.
        """
        if find_spec(cls.plugin) is None:
            raise LaunchError(f"launcher={cls.__name__.lower()} needs {cls.package}: pip install {cls.package}")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs all jobs; names those that failed, whose words went elsewhere."""
        results = self.launcher.launch(job_overrides, initial_job_idx)
        for number, result in enumerate(results, start=initial_job_idx):
            if result.status == JobStatus.FAILED:
                print(f"ltexp: job {number} failed: {result._return_value}", file=sys.stderr, flush=True)
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
        self.launcher = JoblibLauncher(n_jobs=n_jobs, batch_size=1)
        placed = GpuLauncher(task_function, self.jobs_per_gpu)
        self.launcher.setup(hydra_context=hydra_context, task_function=placed, config=config)


def jobs_at_a_time(trainer: TrainerConfig | DictConfig, jobs_per_gpu: int) -> int:
    """As many jobs as the GPUs of this machine have room for; one without any."""
    gpus = [] if trainer.accelerator == "cpu" else visible_gpus() or []
    return max(1, len(gpus) // device_count(trainer) * jobs_per_gpu)


class Slurm(PluginLauncher):
    """An allocation a job; conf/launcher/slurm.yaml explains the keys."""

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
        self.launcher = getattr(submitted, type(self).__name__)(**settings)
        self.launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits all jobs and waits for them."""
        folder = str(self.settings["submitit_folder"]).replace("%j", "")
        print(
            f"{len(job_overrides)} jobs are submitted, their logs go to {folder}; Ctrl-C does not stop them", flush=True
        )
        return super().launch(job_overrides, initial_job_idx)


class Local(Slurm):
    """The same on this machine; conf/launcher/local.yaml explains the keys."""
