"""A Hydra sweeper over a list of jobs. Hydra takes plugins from the namespace package `hydra_plugins` alone."""

import json
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from ltexp.config.composer import products
from ltexp.config.words import key_of


class Listed(Sweeper):
    """Hands listed jobs, each with the command line's overrides, to the launcher in one go.

    Args:
        jobs: the jobs, each a list of overrides, or a JSON file of them.
    """

    def __init__(self, jobs: Any) -> None:
        self.jobs = jobs
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra calls this first."""
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Runs every job, also after one that failed, and then raises the first failure."""
        assert self.launcher is not None
        results = self.launcher.launch(listed_jobs(self.jobs, arguments), initial_job_idx=0)
        for result in results:
            _ = result.return_value  # raises what the job raised
        return results


def listed_jobs(jobs: Any, arguments: list[str]) -> list[list[str]]:
    """The overrides of each job, after those of the command line; where these list values, for each of them.

    What is typed stands in the place of what the jobs list for the same key, and jobs that so become equal are one.

    Args:
        jobs: those of `Listed`.
        arguments: such as `seed=0,1,2`.
    """
    listed = json.loads(Path(jobs).read_text(encoding="utf-8")) if isinstance(jobs, str) else jobs
    typed = {key_of(text) for text in arguments}
    left = dict.fromkeys(tuple(text for text in job if key_of(text) not in typed) for job in listed)
    return [[*product, *job] for job in left for product in products(arguments)]
