"""Which run of ltexp measures a published cell: by rules, from the cell's own words."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from ltexp.config import names_stage
from ltexp.config.path import group_files
from ltexp.config.words import key_of
from ltexp.papers import Cell, find_paper, find_table, published_only

FILE = "=FILE"  # ending of a setting that stands for a file of the user's


@dataclass(frozen=True)
class Job:
    """A composition that `ltexp train` runs, but for the seed. Cells that need the same run have equal jobs.

    Attributes:
        method: a file of conf/method/.
        dataset: a file of conf/dataset/.
        imbalance: longtail | step | balanced; None for a dataset with one fixed training set.
        ratio: imbalance ratio, 1 of a balanced set; None as above.
        backbone: a file of conf/backbone/.
        settings: further overrides: what a variant changes, and the epochs that a table prints.
    """

    method: str
    dataset: str
    imbalance: str | None
    ratio: int | None
    backbone: str
    settings: tuple[str, ...] = ()

    @property
    def overrides(self) -> list[str]:
        """The overrides of `ltexp train` that compose it."""
        words = [f"method={self.method}", f"dataset={self.dataset}"]
        if self.imbalance not in (None, "longtail"):
            words.append(f"dataset.imbalance={self.imbalance}")
        if self.ratio is not None:
            words.append(f"dataset.imbalance_ratio={self.ratio}")
        return [*words, f"backbone={self.backbone}", *self.settings]

    @property
    def files(self) -> list[str]:
        """The settings whose value is a file that is to be given, such as `backbone.vectors=FILE`."""
        return [text for text in self.settings if text.endswith(FILE)]

    def with_extra(self, extra: Sequence[str]) -> "Job":
        """This job with further overrides; those of a stage that it does not have mean nothing to it."""
        from ltexp.reproduce.stages import read_stages

        stages = {text: stage for text in extra if names_stage(stage := _stage(text)) and stage != "stage1"}
        if stages:
            own = read_stages(self.overrides)
            extra = [text for text in extra if stages.get(text) in (None, *own)]
        given = {key_of(text) for text in extra}
        kept = [text for text in self.settings if not (text in self.files and key_of(text) in given)]
        return replace(self, settings=(*kept, *extra))

    def command(self, seeds: Sequence[int]) -> str:
        """The command line that runs it under `seeds`."""
        many = ["-m"] if len(seeds) > 1 else []
        words = [*many, *self.overrides, "seed=" + ",".join(map(str, seeds))]
        return " ".join(["ltexp train", *map(shlex.quote, words)])


def job_of(cell: Cell) -> Job | str:
    """The job that measures `cell`, or in a line why there is none."""
    for rows in published_only():
        if rows.have(cell):
            return rows.why
    settings = _variant(cell)
    method, *own = _trained_as(cell)
    if not isinstance(settings, str):
        method = next((text.removeprefix("method=") for text in settings if text.startswith("method=")), method)
        settings = (*own, *(text for text in settings if not text.startswith("method=")))
    choices = [("method", method), ("dataset", cell.dataset), ("backbone", cell.backbone)]
    lacking = [f"{group} {name}" for group, name in choices if name not in _choices(group)]
    if isinstance(settings, str):
        return "; ".join([*([_lacking(lacking)] if lacking else []), settings])
    for group, name in _stage_choices(settings):
        if name not in _choices(group):
            lacking.append(f"{group} {name}")
    if lacking:
        return _lacking(lacking)
    job = Job(method, cell.dataset, cell.imbalance, cell.ratio, cell.backbone, settings)
    baseline = find_paper(cell.paper).overrides_of(cell)
    further = {key_of(text): text for text in (*baseline, *_epochs(cell, baseline))}
    return job.with_extra(list(further.values()))


def _stage(override: str) -> str:
    """What stands before the first dot of what it sets, or puts a choice in: of overrides of a stage its name."""
    return key_of(override).rpartition("@")[2].partition(".")[0]


def _lacking(what: Iterable[str]) -> str:
    return f"ltexp has no {', no '.join(what)}"


def _variant(cell: Cell) -> tuple[str, ...] | str:
    """The overrides of the cell's variant: of its whole name, else of its parts; or why it has none."""
    if cell.variant is None:
        return ()
    rules = find_table(f"{cell.paper}/{cell.table}").variants
    names = [cell.variant] if cell.variant in rules else cell.variant.split("+")
    settings: list[str] = []
    for name in names:
        rule = rules.get(name, f"no rule in ltexp/papers/{cell.paper}.yaml")
        if isinstance(rule, dict):
            rule = rule.get(cell.method, f"no rule for {cell.method}")
        if isinstance(rule, str):
            return f"variant {name}: {rule}"
        settings += rule
    return tuple(settings)


def _trained_as(cell: Cell) -> list[str]:
    """The method that trains the cell, and the overrides that its row has beside it."""
    return cell.trained_as.split() if cell.trained_as else [cell.method]


def _epochs(cell: Cell, baseline: Sequence[str]) -> list[str]:
    """The printed epochs: of stage 1, which for a teacher and its student (their papers' tables) are those of both.

    Where they are those of all stages together, as DaSL prints them, the stages' own settings make them up.
    """
    if cell.epochs is None:
        return []
    from ltexp.reproduce.stages import read_stages

    method, *own = _trained_as(cell)
    stages = read_stages((f"method={method}", f"dataset={cell.dataset}", *own, *baseline))
    if cell.epochs == sum(stage.epochs for stage in stages.values()):
        return []
    changed = [name for name, stage in stages.items() if stage.trains_backbone and stage.epochs != cell.epochs]
    return [f"{name}.epochs={cell.epochs}" for name in changed]


def _stage_choices(settings: Iterable[str]) -> Iterable[tuple[str, str]]:
    for text in settings:
        key, _, value = text.lstrip("+").partition("=")
        group, at, _ = key.partition("@")
        if at:
            yield group, value


@cache
def _choices(group: str) -> frozenset[str]:
    return frozenset(group_files(group))
