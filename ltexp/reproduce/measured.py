"""Which finished runs measure which job, and under what protocol.

A run counts for a job by what its record says: the same method, dataset, imbalance, ratio and backbone, and the same
further overrides. Epochs, subset, precision and devices make a protocol: runs under different ones stand apart, and so
do runs of different configs, which the record's hash tells. A run on a part of the batches is another config, and so is
one from before its recipe changed. Nothing is averaged but seeds.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ltexp.config import STAGE
from ltexp.config.lightning import PARTIAL
from ltexp.errors import LtexpError
from ltexp.evaluation.record import seen_beyond
from ltexp.evaluation.shots import ShotRule
from ltexp.report.groups import Statistic, statistic
from ltexp.report.records import Run, is_own_setting
from ltexp.reproduce.jobs import Job
from ltexp.reproduce.recipe import as_typed, changed_since
from ltexp.reproduce.stages import read_stages

_SUBSET = ("dataset.subset.", "dataset.num_classes", "dataset.max_per_class", "dataset.validation.")
_NUMERICS = "accelerator|devices|num_nodes|precision|channels_last|compile|compile_backend|compile_mode|step_graph"
_PARTIAL = (*PARTIAL, "max_time")
_APART = re.compile(rf"({STAGE.pattern})\.epochs|trainer|trainer\.({_NUMERICS}|{'|'.join(_PARTIAL)})|sweep")
_SELECTION, _SHOTS = "last", ShotRule().text


@dataclass(frozen=True, order=True)
class Protocol:
    """How a group of runs was made, as far as it differs from the full protocol; empty parts are as it asks.

    Attributes:
        other: overrides that the job does not have, `without ...` those it lacks, and what its words do not give any
            more: another experiment.
        schedule: epochs of the stages where they are not the job's, such as `8 + 4 epochs`.
        subset: overrides that choose other images.
        selection: another epoch than the last, or other shot bounds.
        numerics: precision and devices, where they are not one device in 32 bits.
    """

    other: tuple[str, ...] = ()
    schedule: str = ""
    subset: tuple[str, ...] = ()
    selection: str = ""
    numerics: str = ""

    @property
    def full(self) -> bool:
        """Whether it is the published schedule on the whole data; numerics do not count."""
        return not (self.other or self.schedule or self.subset or self.selection)

    @property
    def text(self) -> str:
        """For people: the epoch that is reported, and whatever differs."""
        parts = [self.selection or "last epoch", self.schedule, *self.subset, self.numerics]
        parts += [f"other config: {' '.join(self.other)}"] if self.other else []
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Measured:
    """Runs of one job under one protocol and one config, a run for each seed.

    Attributes:
        protocol: the way in which they were made.
        mark: tells groups apart whose protocols read alike: another subset of the data, or another config.
        runs: the runs by seed.
    """

    protocol: Protocol
    mark: str
    runs: tuple[Run, ...]

    @property
    def text(self) -> str:
        """The protocol with the mark, and what these runs see beyond others."""
        beyond = seen_beyond(self.runs[0].record) if self.runs else ""
        parts = (self.protocol.text, self.mark, f"sees {beyond} also" if beyond else "")
        return ", ".join(part for part in parts if part)

    @property
    def seeds(self) -> list[int]:
        """The seeds that are done."""
        return [int(run.record["seed"]) for run in self.runs]

    def accuracy(self, split: str) -> Statistic | None:
        """Mean and deviation over the seeds, in percent; `class_3` is the accuracy of class 3."""
        return statistic([_metric(run.record["metrics"], split) for run in self.runs])


def _metric(metrics: dict[str, Any], split: str) -> float | None:
    if not split.startswith("class_"):
        value: float | None = metrics.get(split)
        return value
    label, values = int(split.removeprefix("class_")), metrics["per_class"]
    return values[label] if label < len(values) else None


class Outputs:
    """Finished runs by what they were run on.

    Args:
        runs: those of `ltexp.report.records.find_runs`: the latest of each config and seed.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = list(runs)
        self._by_facts: dict[tuple[Any, ...], list[Run]] = {}
        for run in self.runs:
            facts = tuple(str(run.record[key]) for key in ("method", "dataset", "backbone"))
            self._by_facts.setdefault(facts, []).append(run)

    def of(self, job: Job) -> list[Measured]:
        """All that was run on the job's data with its method, full protocols first, other experiments last."""
        groups: dict[tuple[Any, ...], list[Run]] = {}
        for run in self._by_facts.get((job.method, job.dataset, job.backbone), ()):
            if job.ratio is None or _same_data(run, job):
                groups.setdefault((protocol(run, job), *run.identity), []).append(run)
        found = []
        for (shared, *identity), runs in groups.items():
            alike = [key[1:] for key in groups if key[0] == shared]
            mark = _mark(identity, alike) if len(alike) > 1 else ""
            found.append(Measured(shared, mark, tuple(sorted(runs, key=lambda run: int(run.record["seed"])))))
        return sorted(found, key=lambda measured: (not measured.protocol.full, *_order(measured)))

    def done(self, job: Job) -> dict[int, Run]:
        """The runs, by seed, that leave nothing to do for `job`, under any precision and on any devices.

        One that was typed in other words, such as a sweep's whose value is the usual one, counts by its config.
        """
        found: dict[int, Run] = {}
        for measured in self.of(job):
            unlike = measured.protocol  # what is not as the job asks
            if unlike.schedule or unlike.subset or unlike.selection:
                continue
            if not unlike.other or _is_config_of(measured.runs[0], job):
                found |= {int(run.record["seed"]): run for run in measured.runs}
        return found


def _order(measured: Measured) -> tuple[Any, ...]:
    shared = measured.protocol
    return bool(shared.other), -len(measured.runs), shared, measured.mark


def _mark(identity: Sequence[Any], alike: Sequence[Sequence[Any]]) -> str:
    """What of `Run.identity` tells this group from those that read alike."""
    names = {0: "config", 1: "subset", 4: "contents", 5: "code"}
    differing = [place for place in names if len({other[place] for other in alike}) > 1]
    return ", ".join(f"{names[place]} {str(identity[place])[:8]}" for place in reversed(differing))


def protocol(run: Run, job: Job) -> Protocol:
    """How `run` differs from what `job` asks for."""
    files = {text.partition("=")[0]: text for text in job.files}  # any file will do
    typed = {files.get(text.partition("=")[0], text) for text in _own(run.overrides)}
    asked = set(_own(job.settings))
    other = [*sorted(typed - asked), *(f"without {text}" for text in sorted(asked - typed))]
    if len(other) == 1 and other[0].startswith("paper=") and _is_config_of(run, job):
        other = []  # the settings that the method takes by itself
    other += changed_since(run)
    partial = _partial(run, job)
    other += partial
    expected = expected_epochs(job)
    ran = tuple(_epochs(stage, bool(run.record.get("partial")) and not partial) for stage in run.record["stages"])
    selection, shots = run.record["selection"], run.record["shot_rule"]
    return Protocol(
        other=tuple(other),
        schedule="" if ran == expected else f"{' + '.join(map(str, ran))} of {' + '.join(map(str, expected))} epochs",
        subset=_subset(run, job),
        selection=", ".join(
            text for text, usual in ((selection, selection == _SELECTION), (shots, shots == _SHOTS)) if not usual
        ),
        numerics=_numerics(run.record.get("environment") or {}),
    )


def _partial(run: Run, job: Job) -> list[str]:
    """What makes the run less than a full one and is not asked for, and `without ...` what is asked for and is not."""
    kept = run.record.get("partial") or {}
    ran = {f"{key}={as_typed(value)}" for key, value in kept.items()}
    asked = {f"trainer.{key}=" for key in _PARTIAL}
    wanted = {text.lstrip("+") for text in job.settings if text.lstrip("+").startswith(tuple(asked))}
    lacking = {text for text in wanted - ran if not text.startswith("trainer.max_time=")}  # it had the time
    return [*sorted(ran - wanted), *(f"without {text}" for text in sorted(lacking))]


def _epochs(stage: dict[str, Any], as_asked: bool) -> int:
    """The epochs that a stage had; where the job asks for a part of them, those that it has in full."""
    planned = int(stage.get("epochs") or 0)
    return planned if as_asked else int(stage.get("stopped_after", planned))


def _numerics(environment: dict[str, Any]) -> str:
    precision, devices = environment.get("precision", "32-true"), environment.get("world_size", 1)
    parts = [str(precision) if precision != "32-true" else "", f"{devices} devices" if devices != 1 else ""]
    return ", ".join(part for part in parts if part)


def _subset(run: Run, job: Job) -> tuple[str, ...]:
    ran, asked = _among(run.overrides, _SUBSET), _among(job.settings, _SUBSET)
    return () if ran == asked else ran or tuple(f"without {text}" for text in asked)


def _own(overrides: Iterable[str]) -> list[str]:
    """The overrides that make another experiment, not another protocol of the same."""
    keys = [(text.lstrip("+").partition("=")[0], text.lstrip("+")) for text in overrides if is_own_setting(text)]
    return [text for key, text in keys if not _APART.fullmatch(key) and not key.startswith(_SUBSET)]


def _among(overrides: Iterable[str], keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(text.lstrip("+") for text in overrides if text.lstrip("+").startswith(keys)))


@cache
def expected_epochs(job: Job) -> tuple[int, ...]:
    """Epochs of each stage of the job."""
    return tuple(stage.epochs for stage in read_stages(job.overrides).values())


def _is_config_of(run: Run, job: Job) -> bool:
    """Whether the run's config is the job's, whatever was typed; composing the job takes a tenth of a second."""
    return run.record.get("config_hash") == _config_hash(job, trained_in(run))


def trained_in(run: Run) -> str:
    """The run's precision."""
    return str((run.record.get("environment") or {}).get("precision", "32-true"))


@cache
def _config_hash(job: Job, precision: str) -> str | None:
    """What the records of the job's runs under a precision hold; None where it does not compose."""
    from ltexp.config import to_config
    from ltexp.config.identity import config_hash
    from ltexp.reproduce.run import compose_job

    try:
        composed = compose_job(job)
        return config_hash(to_config(composed | {"trainer": composed["trainer"] | {"precision": precision}}))
    except LtexpError:
        return None


def _same_data(run: Run, job: Job) -> bool:
    return bool(run.record["imbalance"] == job.imbalance and run.record["imbalance_ratio"] == job.ratio)
