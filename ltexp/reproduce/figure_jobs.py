"""Which runs of ltexp a drawing of a figure is of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import yaml

from ltexp.config.path import group_files
from ltexp.papers import Cell, all_cells
from ltexp.papers.figures import Drawing
from ltexp.reproduce.jobs import Job, job_of


@dataclass(frozen=True)
class Runs:
    """What a drawing is of, but for the seeds.

    Attributes:
        jobs: in the order of drawing.
        lacking: runs that ltexp cannot do, each with the reason.
    """

    jobs: tuple[Job, ...]
    lacking: tuple[str, ...]


def runs_of(drawing: Drawing, extra: Sequence[str]) -> Runs:
    """The jobs of a drawing.

    Args:
        drawing: one of a figure's.
        extra: further overrides of every job.
    """
    found: list[Job] = []
    lacking: list[str] = []
    for run in drawing.runs:
        job = job_of(_cells()[run]) if isinstance(run, str) else _job(run)
        if isinstance(job, str):
            lacking.append(f"{run}: {job}")
        else:
            found.append(job)
    if drawing.sweep:
        found += _of_sweep(drawing.sweep)
    return Runs(tuple(job.with_extra([*drawing.settings, *extra]) for job in found), tuple(lacking))


def number_of_runs(drawing: Drawing) -> int:
    """How many runs a drawing is of, under one seed."""
    return len(drawing.runs) + (len(_of_sweep(drawing.sweep)) if drawing.sweep else 0)


@cache
def _cells() -> dict[str, Cell]:
    return {cell.name: cell for cell in all_cells()}


def _job(run: Mapping[str, Any], settings: Sequence[str] = ()) -> Job:
    ratio = run.get("ratio")
    imbalance = run.get("imbalance", None if ratio is None else "longtail")
    own = (*run.get("settings", ()), *settings)
    return Job(run["method"], run["dataset"], imbalance, ratio, run["backbone"], own)


def _of_sweep(node: Mapping[str, Any]) -> list[Job]:
    """The jobs of a file in conf/sweep/, on the data that `node` names."""
    content = yaml.safe_load(group_files("sweep")[node["name"]].read_text(encoding="utf-8"))
    (method,) = [entry["override /method"] for entry in content["defaults"] if "override /method" in entry]
    sweeper = content["hydra"]["sweeper"]
    # plain lists of values, so that `list` needs no Hydra to count them
    axes = [
        [f"{key}={value.strip()}" for value in values.split(",")] for key, values in sweeper.get("params", {}).items()
    ]
    jobs = sweeper.get("jobs") or list(product(*axes))
    found = []
    for words in jobs:
        chosen = [word.removeprefix("method=") for word in words if word.startswith("method=")] or [method]
        settings = [word for word in words if not word.startswith("method=")]
        found.append(_job({**node, "method": chosen[0]}, settings))
    return found
