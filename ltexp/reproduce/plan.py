"""What is to be run for some cells, what is measured already, and what the rest costs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.text import Text

from ltexp.papers import Cell
from ltexp.report.records import counts_of
from ltexp.report.table import duration
from ltexp.reproduce.cost import Cost, precision_of
from ltexp.reproduce.jobs import Job, job_of
from ltexp.reproduce.measured import Outputs, trained_in
from ltexp.reproduce.stages import read_stages


@dataclass
class Plan:
    """Jobs of some cells.

    Attributes:
        seeds: asked for.
        extra: further overrides of every job, which the jobs here have among theirs.
        jobs: each with the cells that it measures.
        missing: the seeds of each job that no finished run has.
        published_only: reason why cells have no job, and the cells.
        impossible: what the cells of a job still need, and the cells.
        stages: each distinct training of a first stage, mostly stage 1, that is missing, (what it is, seed), with the
            job to run it first.
        shared: those trainings of the missing jobs that a finished run has done, in the precision asked for.
    """

    seeds: list[int]
    extra: list[str]
    jobs: dict[Job, list[Cell]] = field(default_factory=dict)
    missing: dict[Job, list[int]] = field(default_factory=dict)
    published_only: dict[str, list[Cell]] = field(default_factory=dict)
    impossible: dict[str, list[Cell]] = field(default_factory=dict)
    stages: dict[tuple[str, int], Job] = field(default_factory=dict)
    shared: set[tuple[str, int]] = field(default_factory=set)

    @property
    def to_run(self) -> list[tuple[Job, int]]:
        """The missing runs; the first of each distinct first stage comes first, so that parallel jobs seldom wait."""
        everything = [(job, seed) for job, seeds in self.missing.items() for seed in seeds]
        leading = {(job, seed) for (_, seed), job in self.stages.items()}
        return sorted(everything, key=lambda run: run not in leading)


def make_plan(cells: Sequence[Cell], outputs: Outputs, seeds: Sequence[int], extra: Sequence[str]) -> Plan:
    """The plan for `cells` under `seeds` with the overrides `extra`."""
    plan = Plan(list(seeds), list(extra))
    for cell in cells:
        job = job_of(cell)
        if isinstance(job, Job):
            plan.jobs.setdefault(job.with_extra(extra), []).append(cell)
        else:
            plan.published_only.setdefault(job, []).append(cell)
    complete(plan, outputs)
    return plan


def complete(plan: Plan, outputs: Outputs) -> None:
    """Finds what is missing of the plan's jobs, and which trainings of first stages that takes."""
    finished: set[tuple[str, int]] = set()
    precision = precision_of(plan.extra)
    for job in plan.jobs:
        done = outputs.done(job)
        alike = [seed for seed, run in done.items() if trained_in(run) == precision]
        finished |= {(first_stage_key(job), seed) for seed in alike}
        if absent := [seed for seed in plan.seeds if seed not in done]:
            plan.missing[job] = absent
    for job in [job for job in plan.missing if job.files]:
        reason = f"needs FILE: {' '.join(job.files)}"
        plan.impossible.setdefault(reason, []).extend(plan.jobs.pop(job))
        del plan.missing[job]
    for job, absent in plan.missing.items():
        for seed in absent:
            key = first_stage_key(job), seed
            if key in finished:
                plan.shared.add(key)
            else:
                plan.stages.setdefault(key, job)


def first_stage_key(job: Job) -> str:
    """Equal for jobs that share their first stage."""
    data = [text for text in job.overrides if text.lstrip("+").startswith("dataset.")]
    facts: list[Any] = [job.dataset, job.backbone, data]
    first = next(iter(read_stages(job.overrides).values()))
    return json.dumps([facts, first.signature])


def show_plan(plan: Plan, cost: Cost) -> RenderableType:
    """The plan for people: commands, first stages, what is there, and the time that the rest takes."""
    lines: list[Text] = []
    for job, cells in plan.jobs.items():
        names = ", ".join(f"{cell.paper}/{cell.table}/{cell.row}/{cell.column}" for cell in cells[:3])
        more = f" and {len(cells) - 3} more" if len(cells) > 3 else ""
        lines += show_job(plan, job, f"{names}{more}")
    for what, reasons in (("cannot run", plan.impossible), ("published number only,", plan.published_only)):
        for reason, cells in reasons.items():
            lines.append(Text(f"{what} {counts_of(len(cells), 'cell')} ({_examples(cells)}): {reason}", style="dim"))
    lines.append(Text(_summary(plan, cost)))
    return Lines(*lines)


def show_job(plan: Plan, job: Job, name: str) -> list[Text]:
    """Whether the job, which people know as `name`, is measured, and else the command that does it."""
    absent = plan.missing.get(job, [])
    done = [seed for seed in plan.seeds if seed not in absent]
    state = "measured" if not absent else f"measured: seed {', '.join(map(str, done))}" if done else "to run"
    lines = [Text(f"{name}: {state}", style="dim" if not absent else "")]
    return lines + ([Text(f"  {job.command(absent)}", style="bold")] if absent else [])


def _examples(cells: Sequence[Cell]) -> str:
    rows = list(dict.fromkeys(f"{cell.paper}/{cell.table}/{cell.row}" for cell in cells))
    return ", ".join(rows[:3]) + (", ..." if len(rows) > 3 else "")


def _summary(plan: Plan, cost: Cost) -> str:
    cells = sum(map(len, plan.jobs.values()))
    total = cells + sum(len(others) for found in (plan.impossible, plan.published_only) for others in found.values())
    runs = len(plan.to_run)
    lines = [
        f"{cells} of {total} cells can be run, by {counts_of(len(plan.jobs), 'composition')} under "
        f"{counts_of(len(plan.seeds), 'seed')}: {len(plan.jobs) * len(plan.seeds) - runs} runs measured, {runs} to run"
    ]
    return "\n".join(lines + show_cost(plan, cost))


def show_cost(plan: Plan, cost: Cost) -> list[str]:
    """first stages that the missing runs train, and the time of all; nothing if none is missing."""
    if not plan.to_run:
        return []
    stages = f"{counts_of(len(plan.stages), 'first-stage training')} in them"
    there = f" ({len(plan.shared)} more are there already)" if plan.shared else ""
    each = [job for job, seeds in plan.missing.items() for _ in seeds]
    seconds, unknown = cost.of_runs(plan.stages.values(), each, plan.extra)
    return [stages + there, f"time on this machine, one run at a time: {_time(seconds, unknown)}"]


def _time(seconds: float, unknown: Sequence[str]) -> str:
    if not unknown:
        return f"about {duration(seconds)}, evaluation apart"
    what = ", ".join(unknown)
    hint = f"no throughput on record for {what}: the first finished run of it gives one"
    return f"unknown: {hint}" if not seconds else f"at least {duration(seconds)}; {hint}"
