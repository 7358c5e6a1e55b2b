"""Runs over several machines: where they meet, and what each looks at before it joins."""

import os
import re
import time
from pathlib import Path

from ltexp.config import Config, load
from ltexp.config.identity import differing_keys
from ltexp.errors import ConfigError
from ltexp.processes.failure import first_failure
from ltexp.run_folder import CONFIG

REQUEUED = "LTEXP_REQUEUED"  # environment variable of a job that submitit started again
PATIENCE = 60.0  # seconds until the node that holds the folder must have written its config


def meeting_point(config: Config, folder_agreed: bool) -> str | None:
    """HOST:PORT where the nodes of a run meet; None for a run on one.

    Args:
        config: the run's config.
        folder_agreed: whether the command on every node names the same folder.

    Raises:
        ConfigError: if several nodes could not find each other, or if SLURM's allocation is another one.
    """
    nodes = config.trainer.num_nodes
    if int(os.environ.get("SLURM_LOCALID", 0)) > 0:
        raise ConfigError("SLURM started several tasks on this node: one is enough (--ntasks-per-node=1)")
    if nodes == 1:
        return None
    if not folder_agreed:
        raise ConfigError(f"the {nodes} nodes share one folder: add hydra.run.dir=FOLDER to the command of each")
    if config.trainer.rendezvous is not None:
        return config.trainer.rendezvous
    allocated = int(os.environ.get("SLURM_NNODES", os.environ.get("SLURM_JOB_NUM_NODES", 1)))
    if "SLURM_JOB_NODELIST" in os.environ and allocated == nodes:
        return f"{first_host(os.environ['SLURM_JOB_NODELIST'])}:{20000 + int(os.environ['SLURM_JOB_ID']) % 20000}"
    if "SLURM_JOB_NODELIST" in os.environ:
        raise ConfigError(f"trainer.num_nodes={nodes}, but SLURM allocated {allocated}: make them equal")
    raise ConfigError(
        f"trainer.num_nodes={nodes} needs a place to meet: add trainer.rendezvous=HOST:PORT, HOST one of the nodes, "
        "to the command of each"
    )


def first_host(nodes: str) -> str:
    """The first host of a list as SLURM writes it: `gpu[07-09,12],login` gives `gpu07`."""
    first = re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes)
    return first.split(",")[0]


def join_run(folder: Path, config: Config) -> None:
    """Returns when the node that holds the folder has prepared it for this config.

    Raises:
        ConfigError: if what is run there is another config, or if nothing was written in time.
    """
    deadline = time.monotonic() + PATIENCE
    while not (folder / CONFIG).exists() or first_failure(folder) is not None:
        if time.monotonic() > deadline:
            raise ConfigError(f"another process holds {folder} but wrote no config there in {PATIENCE:.0f} seconds")
        time.sleep(0.2)
    if keys := differing_keys(load(folder / CONFIG), config):
        raise ConfigError(
            f"{folder} is being run with another config ({', '.join(keys)}): give every node the same command"
        )


def requeued() -> bool:
    """Whether this job of a cluster was started before, so that what lies in its folder is its own."""
    return REQUEUED in os.environ or int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0
