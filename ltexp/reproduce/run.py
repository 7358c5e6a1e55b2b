"""Runs what a plan lacks, through `ltexp train` and whatever launcher is chosen."""

import json
import sys
import tempfile
from collections.abc import Sequence
from itertools import filterfalse
from pathlib import Path
from typing import Any

from ltexp.config.identity import digest
from ltexp.config.require import require_path
from ltexp.config.words import key_of
from ltexp.errors import ConfigError, LtexpError
from ltexp.reproduce.jobs import Job
from ltexp.reproduce.plan import Plan
from ltexp.reproduce.stages import frozen, is_hydras

_FIXED = ("seed", "method", "dataset", "backbone", "dataset.imbalance", "dataset.imbalance_ratio", "resume")


def check_extra(extra: Sequence[str]) -> None:
    """Raises a ConfigError for an override that is not the user's to give: it is what a cell says."""
    for text in extra:
        key = key_of(text)
        if key in _FIXED or key.startswith(("hydra.sweep", "hydra.run", "hydra/sweeper")):
            raise ConfigError(f"{key}= is set for each cell; choose the cells with table=, cells= and other filters")


def outputs_root(extra: Sequence[str]) -> Path:
    """Where the runs go: paths.outputs as typed, else outputs.

    Raises:
        ConfigError: if it is empty.
    """
    typed = typed_values(extra)
    require_path("paths.outputs", typed.get("paths.outputs"))
    return Path(typed.get("paths.outputs", "outputs"))


def typed_values(extra: Sequence[str]) -> dict[str, str]:
    """The values of overrides by key; those that remove a key have none."""
    return dict(text.lstrip("+").split("=", 1) for text in extra if "=" in text)


def check_jobs(plan: Plan) -> dict[str, str]:
    """Composes one missing run of each dataset and opens its data: what is wrong with them, by dataset.

    Raises:
        LtexpError: for an override among `plan.extra` that does not exist or cannot work.
    """
    from ltexp.launching.sweep import check_data

    problems: dict[str, str] = {}
    first = {job.dataset: job for job, _ in reversed(plan.to_run)}
    for dataset, job in first.items():
        frozen = compose_job(job)
        try:
            check_data(frozen)
        except LtexpError as error:
            problems[dataset] = str(error)
    return problems


def compose_job(job: Job) -> dict[str, Any]:
    """The frozen config of `job`.

    Raises:
        ConfigError: in one line, for whatever is wrong with an override.
    """
    return frozen([text for text in job.overrides if not is_hydras(text)])


def run_plan(plan: Plan) -> None:
    """Trains the plan's missing runs; returns when the last has ended, also if some have failed.

    Each has a folder of its own below `<outputs>/reproduce/`, named after what it runs: started again, an unfinished
    run continues there.
    """
    root = outputs_root(plan.extra) / "reproduce"
    jobs = [
        [*filterfalse(is_hydras, job.overrides), f"seed={seed}", f"hydra.sweep.subdir={folder_of(job)}/seed{seed}"]
        for job, seed in plan.to_run
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(jobs, file)
        file.flush()
        words = ["-m", "hydra/sweeper=listed", f"hydra.sweeper.jobs={file.name}", f"hydra.sweep.dir={root}"]
        _train([*words, "resume=true", *filter(is_hydras, plan.extra)])


def folder_of(job: Job) -> str:
    """Where the runs of a job go, below `<outputs>/reproduce/`."""
    elsewhere = ("hydra", "launcher", "paths.", "logger")
    kept = [text for text in job.overrides if not text.lstrip("+~").startswith(elsewhere)]
    return f"{job.dataset}/{job.method}-{digest(kept)[:8]}"


def _train(words: Sequence[str]) -> None:
    """`ltexp train WORDS` in this process, so that it ends with this one."""
    from ltexp.train import main

    typed, sys.argv = sys.argv, ["ltexp train", *words]
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, int) and end.code > 128:  # a signal
            raise
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr, flush=True)
    finally:
        sys.argv = typed
