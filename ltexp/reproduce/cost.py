"""How long runs take on this machine: images to train on, over images per second on record."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ltexp.data.commands.catalog import dataset_config
from ltexp.data.images.official import OFFICIAL
from ltexp.data.tail.profile import class_sizes
from ltexp.errors import ConfigError, LtexpError
from ltexp.evaluation.record import machine
from ltexp.report.records import Run, is_own_setting
from ltexp.reproduce.jobs import Job
from ltexp.reproduce.measured import trained_in
from ltexp.reproduce.stages import read_stages

PRECISIONS = {"single": "32-true", "ddp": "32-true", "bf16": "bf16-mixed"}  # of conf/trainer/
Rate = tuple[str, bool, str]  # backbone, whether it learns, precision


class Cost:
    """Estimates from the throughput of finished runs.

    Args:
        runs: finished runs; those of this kind of machine count.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self._images: dict[tuple[Any, ...], int] = {}
        found: dict[Rate, list[float]] = {}
        for run in runs:
            record = run.record
            facts = (record["dataset"], record["imbalance"], record["imbalance_ratio"])
            if not any(text.startswith("dataset.") for text in run.overrides):
                self._images[facts] = sum(record["class_counts"])
                self._images[record["dataset"], None, None] = sum(record["class_counts"])
            if _of_this_machine(record):
                for key, rate in _rates(run):
                    found.setdefault(key, []).append(rate)
        self.rates = {key: statistics.median(values) for key, values in found.items()}

    def of_runs(self, leading: Iterable[Job], runs: Iterable[Job], extra: Sequence[str]) -> tuple[float, list[str]]:
        """(seconds, what has no throughput on record).

        Args:
            leading: the job of each distinct training of a first stage, which the others share.
            runs: all jobs, one for each seed; of these the later stages count.
            extra: further overrides of every job.
        """
        precision = precision_of(extra)
        seconds, unknown = 0.0, {}
        first = [(job, stage) for job in leading for stage in list(read_stages(job.overrides).values())[:1]]
        later = [(job, stage) for job in runs for stage in list(read_stages(job.overrides).values())[1:]]
        for job, stage in first + later:
            if stage.epochs == 0:
                continue
            key = (job.backbone, stage.trains_backbone, precision)
            images, rate = self.images(job), self.rates.get(key)
            if images is None:
                unknown[job.dataset] = True
            elif rate is None:
                unknown[f"{key[0]}{'' if key[1] else ' frozen'} in {precision}"] = True
            else:
                seconds += images * stage.epochs / rate
        return seconds, list(unknown)

    def images(self, job: Job) -> int | None:
        """Training images of the job's dataset; None where neither a record nor a rule tells."""
        node = dataset_config(job.dataset)
        typed = {key: value for key, _, value in (text.partition("=") for text in job.settings)}
        known = self._images.get((job.dataset, job.imbalance, None if job.ratio is None else float(job.ratio)))
        if known is not None and not any(key.startswith("dataset.") for key in typed):
            return known
        if job.ratio is None:
            return known or _listed(node)
        official = OFFICIAL.get((node.get("source") or {}).get("folder", ""))
        if official is None or job.imbalance is None:
            return known
        try:
            most = int(typed.get("dataset.max_per_class", node["max_per_class"]))
            classes = int(typed.get("dataset.num_classes", official.classes))
            return sum(class_sizes(most, classes, job.imbalance, job.ratio))
        except (ConfigError, ValueError, KeyError):
            return None


def _listed(dataset: Mapping[str, Any]) -> int | None:
    """The training images that a dataset's config lists; None where it lists none."""
    published = (dataset.get("source") or {}).get("published") or {}
    sizes: list[int] = dataset.get("class_sizes") or []
    return int(published.get("train", {}).get("images") or sum(sizes)) or None


def precision_of(extra: Sequence[str]) -> str:
    typed = {key: value for key, _, value in (text.partition("=") for text in extra)}
    return typed.get("trainer.precision", PRECISIONS.get(typed.get("trainer", "single"), "32-true"))


def _of_this_machine(record: dict[str, Any]) -> bool:
    environment = record.get("environment") or {}
    return all(environment.get(key) == value for key, value in machine().items())


def _rates(run: Run) -> Iterable[tuple[Rate, float]]:
    record = run.record
    own = [text for text in run.overrides if is_own_setting(text) and not text.startswith("seed=")]
    try:
        stages = read_stages([f"method={record['method']}", f"dataset={record['dataset']}", *own])
    except LtexpError:  # a run of long ago, or of a method that is not here: it tells nothing
        return
    precision = trained_in(run)
    for stage in record["stages"]:
        rate, read = stage.get("images_per_second"), stages.get(str(stage["name"]))
        if rate and read is not None:
            yield (str(record["backbone"]), read.trains_backbone, precision), float(rate)
