"""What is looked at of all jobs of a sweep together, before the first one starts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ltexp.config import TrainerConfig
from ltexp.config.composer import as_typed, products
from ltexp.errors import ConfigError, LtexpError
from ltexp.launching.devices import check_devices
from ltexp.launching.outcome import job_name
from ltexp.launching.prepared import ask
from ltexp.processes.failure import REFUSED


def check_jobs(jobs: Sequence[Sequence[str]], swept: Sequence[str], config: DictConfig) -> None:
    """Refuses a sweep that has no jobs, or that would end with the first batch of jobs in which one failed."""
    if not jobs:
        empty = next(text for text in [*swept, *as_typed(config.hydra.overrides.task)] if not products([text]))
        raise ConfigError(f"{empty} lists no value, so that the sweep has no jobs: name one or more")
    if (size := config.hydra.sweeper.get("max_batch_size")) is not None:
        raise ConfigError(
            f"hydra.sweeper.max_batch_size={size}: all jobs are one batch here; launcher.n_jobs of launcher=joblib and "
            "launcher.array_parallelism of launcher=slurm say how many run at a time"
        )


def check_subfolders(names: Sequence[str]) -> None:
    """Refuses a `hydra.sweep.subdir` that gives two jobs one folder, which the second would find taken."""
    first: dict[Path, int] = {}
    for number, name in enumerate(names):
        if (other := first.setdefault(Path(name), number)) != number:
            raise ConfigError(
                f"hydra.sweep.subdir={name} is the folder of {job_name(other, len(names))} and of "
                f"{job_name(number, len(names))}: name it by what differs, or leave it out"
            )


def check_places(trainers: list[TrainerConfig], config: DictConfig) -> None:
    """Jobs that run on this machine find their devices, and those of a cluster get allocations of their size."""
    if not config.hydra.launcher._target_.endswith((".Slurm", ".Local")):
        for trainer in trainers:
            check_devices(trainer)
        return
    sizes = {(trainer.devices, trainer.num_nodes) for trainer in trainers}
    if len(sizes) > 1:
        asked = "; ".join(f"trainer.devices={devices} trainer.num_nodes={nodes}" for devices, nodes in sorted(sizes))
        raise ConfigError(f"the jobs of this sweep ask for different allocations ({asked}): submit a sweep for each")
    ((devices, nodes),) = sizes
    # the launcher is told what all jobs have in common, and no key that stands in a list of values
    named, common = config.hydra.launcher.get("gpus_per_node") is not None, config.trainer.devices
    if not named and common not in (devices, "auto") and any(trainer.accelerator != "cpu" for trainer in trainers):
        raise ConfigError(
            f"each job of this sweep wants {devices} GPUs a node and would get {common}: "
            f"add launcher.gpus_per_node={devices}"
        )
    if (given := config.hydra.launcher.get("nodes") or nodes) != nodes:
        raise ConfigError(
            f"each job of this sweep wants {nodes} nodes and would get {given}: add launcher.nodes={nodes}"
        )


def check_compositions(frozen: list[dict[str, Any]], jobs: Sequence[Sequence[str]]) -> None:
    """What needs torch to be checked, in one process for all jobs."""
    status, answer = ask("ltexp.processes.preflight", json.dumps(frozen))
    if status == REFUSED:
        number, reason = json.loads(answer)
        raise ConfigError(f"{job_name(number, len(jobs))} ({' '.join(jobs[number])}): {reason}")
    if status != 0:
        raise LtexpError(f"the jobs of this sweep could not be checked (exit status {status})")
