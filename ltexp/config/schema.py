"""The schema of a run's config: what keys there are, and of what type.

What it leaves free (`dict[str, Any]`) are nodes built by `hydra.utils.instantiate`; their keys are checked against the
signature of their `_target_`. conf/ holds the defaults and explains each key.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

from omegaconf import MISSING

STAGE = re.compile(r"pretext|stage\d+")  # the names of stages
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
BATCH_NORMS = ("train", "statistics", "frozen")
HELD_OUT_OF = ("train", "unused", "validation")
COMPILE_BACKENDS = ("inductor", "aot_eager", "eager")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
ACCELERATORS = ("auto", "cpu", "gpu")
USUAL_RATIO = 100  # the imbalance ratio of a tail that is cut where dataset.imbalance_ratio is null
FILES_OF_A_BACKBONE = ("weights", "vectors")  # keys of a backbone that may name a file it starts from
FILES_OF_A_DATASET = ("leave_out", "cache")  # keys of a dataset that may name a file or folder
# of a module's node, beside its `_target_` and own keywords (ltexp.models.module.Wiring)
MODULE_KEYS = ("reads", "gives", "start", "trainable", "detached", "keep")


def names_stage(where: str | None) -> bool:
    """Whether what a part starts from, or a teacher, is a stage of the same run, and neither `fresh` nor a path."""
    return where is not None and STAGE.fullmatch(where) is not None


def in_order(names: Iterable[str]) -> list[str]:
    """The names of stages in the order in which a run trains them: `pretext`, `stage1`, `stage2`, `stage3` ..."""
    return sorted(names, key=lambda name: -1 if name == "pretext" else int(name.removeprefix("stage")))


@dataclass
class Init:
    """Where backbone and classifier start from.

    That is `fresh`, an earlier stage's name, or the path of a run's folder or of a checkpoint file; a backbone's may be
    of another program's self-supervised training.
    """

    backbone: str = "fresh"
    classifier: str = "fresh"


@dataclass
class Trainable:
    """Whether backbone and classifier learn; `batch_norm` governs the batch norms apart from this."""

    backbone: bool = True
    classifier: bool = True


@dataclass
class Term:
    """A further loss term of a stage's objective."""

    weight: float = 1.0
    loss: dict[str, Any] = field(default_factory=dict)
    stream: str | None = None  # the stream it is computed on; null: the stage's own batch


@dataclass
class HeldOut:
    """Images that only a stream shows, `per_class` of each class."""

    per_class: int = MISSING
    # train: the last of the stage's own training set, whose order was drawn at random. unused: of the source's images
    # that the long-tailed subset leaves out, and of a class's own where those are too few. validation: of that split
    of: str = "train"


@dataclass
class Stream:
    """Further batches of a stage, beside its own."""

    sampler: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)  # empty: the stage's
    batch_size: int | None = None  # null: the stage's, and as many rows in every step
    held_out: HeldOut | None = None  # null: it shows the stage's own training set


@dataclass
class StageConfig:
    """One stage of training. conf/config.yaml explains each key and holds the defaults."""

    epochs: int = MISSING
    batch_size: int = MISSING
    init: Init = field(default_factory=Init)
    trainable: Trainable = field(default_factory=Trainable)
    batch_norm: str = "train"
    training_set: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    features: dict[str, Any] = field(default_factory=dict)
    feature_power: float = 1.0
    classifier: dict[str, Any] = field(default_factory=dict)
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)
    teacher: str | None = None
    teachers: dict[str, str] = field(default_factory=dict)  # several, by the names that its losses have for them
    loss: dict[str, Any] = field(default_factory=dict)
    loss_weight: float = 1.0
    terms: dict[str, Term] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    reweighting: dict[str, Any] = field(default_factory=lambda: {"_target_": "ltexp.losses.reweighting.NoReweighting"})
    sampler: dict[str, Any] = field(default_factory=dict)
    mixing: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=lambda: {"_target_": "ltexp.training.steps.Standard"})
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    lr_factors: dict[str, Any] = field(default_factory=dict)
    weight_decay_factors: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None

    @property
    def starts(self) -> dict[str, str]:
        """Where each part of the stage's model starts from, by the part's key."""
        modules = {f"modules.{name}": str(node.get("start") or "fresh") for name, node in self.modules.items()}
        return {"backbone": self.init.backbone, "classifier": self.init.classifier, **modules}

    @property
    def taught_by(self) -> dict[str, str]:
        """Where each of its teachers is from, by key: `teacher`, `teachers.NAME`."""
        one = {} if self.teacher is None else {"teacher": self.teacher}
        return one | {f"teachers.{name}": where for name, where in self.teachers.items()}

    @property
    def sources(self) -> list[str]:
        """The stages of the same run that it starts from or learns from, in their order."""
        places = {*self.starts.values(), *self.taught_by.values()}
        return in_order(where for where in places if names_stage(where))


@dataclass
class TrainerConfig:
    """Devices, precision and housekeeping of training (conf/trainer/)."""

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    rendezvous: str | None = None
    precision: str = "32-true"
    channels_last: bool = True
    accumulate: int = 1
    compile: bool = False
    compile_backend: str = "inductor"
    compile_mode: str | None = None
    step_graph: bool = False
    sync_batch_norm: bool = False
    gradient_clip_val: float | None = None
    checkpoint_every: int = 1
    log_every: int = 50
    progress: bool = True
    lightning: dict[str, Any] = field(default_factory=dict)  # further keywords of Lightning's Trainer, unless as usual

    @property
    def world_size(self) -> int:
        """The processes of a run: one a device on every node."""
        return self.devices * self.num_nodes


@dataclass
class EvaluationConfig:
    """How accuracy and calibration are measured; shot bounds after Liu et al., CVPR 2019."""

    many_shot_above: int = 100
    few_shot_below: int = 20
    calibration_bins: int = 15
    every: int = 10
    figures: bool = True


@dataclass
class Paths:
    """Folders; a frozen config holds them absolute."""

    data: str = "data"
    outputs: str = "outputs"


@dataclass
class StageCacheConfig:
    """Where trained stages are shared between runs."""

    enabled: bool = True
    dir: str = "outputs/stage_cache"


@dataclass
class Config:
    """A whole run. `choices` names what each config group was set to; `overrides` is what the user typed.

    Further stages, such as `pretext` or `stage3`, are fields of `with_stages`.
    """

    seed: int = 0
    resume: bool = False
    paths: Paths = field(default_factory=Paths)
    stage_cache: StageCacheConfig = field(default_factory=StageCacheConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: dict[str, Any] = field(default_factory=dict)  # by name, or one alone
    callbacks: dict[str, Any] = field(default_factory=dict)  # by name; null: switched off
    dataset: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    stage1: StageConfig = field(default_factory=StageConfig)
    stage2: StageConfig | None = None
    choices: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)

    @property
    def stages(self) -> dict[str, StageConfig]:
        """The stages of this run in order, by name."""
        found = {own.name: getattr(self, own.name) for own in fields(self) if names_stage(own.name)}
        return {name: found[name] for name in in_order(found) if found[name] is not None}


def with_stages(names: Iterable[str]) -> type[Config]:
    """The schema of a run that may have stages of these names; those of most runs are `Config`'s own."""
    known = {own.name for own in fields(Config)}
    further = [name for name in in_order(names) if name not in known]
    if not further:
        return Config
    return make_dataclass(
        "Config", [(name, StageConfig | None, field(default=None)) for name in further], bases=(Config,)
    )
