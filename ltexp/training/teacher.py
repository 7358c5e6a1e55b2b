"""A stage's teachers: trained stages that answer on the student's batches and never learn."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltexp.config import StageConfig
from ltexp.config.build import build
from ltexp.config.require import within
from ltexp.errors import CheckpointError, ConfigError
from ltexp.models.backbone import Backbone, without_files
from ltexp.models.checkpoint import load_backbone, load_part
from ltexp.models.model import Model
from ltexp.models.module import Wiring, build_module
from ltexp.outputs import ModelOutput
from ltexp.training import checkpoint
from ltexp.training.objective import Objective

# of a model's output
OF_A_TEACHER = frozenset({"teacher_logits", "teacher_features"})
OF_TEACHERS = frozenset({"teachers_logits"})  # of several by name


class Teacher:
    """A model in eval mode, without gradient; no part of the student, so no optimizer or checkpoint of it holds it.

    Args:
        model: trained, on the student's device.
    """

    def __init__(self, model: Model) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, of_features: bool = False) -> ModelOutput:
        """Its answer, with scaled logits (B, C).

        Args:
            inputs: what its backbone reads, or features (B, D) that are inputs themselves.
            of_features: whether they are features, which its classifier alone answers.
        """
        own = self.model.classify(inputs) if of_features else self.model(inputs)
        return replace(own, logits=own.logit_scale * own.logits, logit_scale=1.0)


class Teachers:
    """All teachers of a stage.

    Args:
        one: the stage's `teacher`.
        named: its `teachers`.
    """

    def __init__(self, one: Teacher | None = None, named: Mapping[str, Teacher] | None = None) -> None:
        self.one, self.named = one, dict(named or {})

    def answer(self, inputs: Tensor, output: ModelOutput, needs: Collection[str], of_features: bool = False) -> None:
        """Puts into the student's `output` for the same inputs what `needs` names of the teachers'; see `Teacher`."""
        if self.one is not None and not OF_A_TEACHER.isdisjoint(needs):
            own = self.one(inputs, of_features)
            output.teacher_logits, output.teacher_features = own.logits, own.features
        if self.named and not OF_TEACHERS.isdisjoint(needs):
            output.teachers_logits = {name: each(inputs, of_features).logits for name, each in self.named.items()}


def check_teachers(name: str, stage: StageConfig, objective: Objective) -> None:
    """Refuses a stage without a teacher that a loss reads by name, or with one that none reads.

    Args:
        name: of the stage.
        stage: its config.
        objective: of the stage, on made-up class counts.

    Raises:
        ConfigError: saying what to change.
    """
    read = {teacher for part in objective.by_key.values() for teacher in part.teachers}
    for key, part in objective.by_key.items():
        if "teachers_logits" in part.needs and not part.teachers:
            raise ConfigError(f"{name}: its {key} reads teachers_logits and names no teacher in its `teachers`")
        if missing := sorted(set(part.teachers) - set(stage.teachers)):
            raise ConfigError(
                f"{name}: its {key} needs a teacher {missing[0]}: add +{name}.teachers.{missing[0]}=STAGE, an earlier "
                "stage or a run's folder"
            )
    if stage.epochs > 0 and (unread := sorted(set(stage.teachers) - read)):
        raise ConfigError(
            f"{name}: no loss or term reads its teacher {unread[0]}, but {', '.join(sorted(read)) or 'none by name'}: "
            f"leave it out with ~{name}.teachers.{unread[0]}"
        )


def read_teacher(path: Path, class_counts: Tensor, backbone_settings: dict[str, Any]) -> Teacher:
    """The teacher in the stage checkpoint `path`, of whatever backbone and classifier it has.

    Args:
        class_counts: int64 (C,), those of the student's training set.
        backbone_settings: see `LongTailedData`.

    Raises:
        CheckpointError: if it is missing, damaged, or was trained on other classes or counts.
    """
    source = checkpoint.read(path)
    if source.num_classes != len(class_counts):
        raise CheckpointError(
            f"the teacher in {path} knows {source.num_classes} classes and this dataset has {len(class_counts)}: "
            "use the same dataset for both"
        )
    if source.class_counts is not None and source.class_counts != class_counts.tolist():
        raise CheckpointError(
            f"the teacher in {path} was trained on other class counts ({described_counts(source.class_counts)}) than "
            f"this run's ({described_counts(class_counts.tolist())}): use the same dataset, imbalance ratio and subset "
            "for both"
        )
    return Teacher(model_of(source, path, backbone_settings))


def model_of(source: checkpoint.Checkpoint, path: Path, backbone_settings: dict[str, Any]) -> Model:
    """The model of a stage checkpoint, read from `path`, with the modules that evaluation runs; see `read_teacher`."""
    backbone: Backbone = build(without_files(source.backbone_config), path="backbone", **backbone_settings)
    load_backbone(backbone, source.backbone, f"the backbone in {path}")
    wiring = wiring_of_evaluation({name: module["config"] for name, module in source.modules.items()})
    modules = _modules_of(source, path, wiring, backbone)
    model = Model(backbone, source.build_classifier(), modules, wiring, source.feature_power)
    model.logit_scale = 1.0 if source.logit_scale is None else source.logit_scale
    return model


def wiring_of_evaluation(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, Wiring]:
    """The wiring of the kept modules among config nodes, and of those that give what these read, in their order."""
    wiring: dict[str, Wiring] = {}
    for name, node in nodes.items():
        with within(f"modules.{name}"):
            wiring[name] = Wiring.of(node)
    read: set[str] = set()
    for name, wired in reversed(list(wiring.items())):
        if wired.keep or not read.isdisjoint(wired.gives):
            read |= set(wired.reads)
        else:
            del wiring[name]
    return wiring


def _modules_of(
    source: checkpoint.Checkpoint, path: Path, names: Iterable[str], backbone: Backbone
) -> dict[str, nn.Module]:
    """The modules `names` of a checkpoint, built and loaded."""
    facts = {
        "backbone": backbone,
        "feature_dim": source.feature_dim,
        "map_channels": getattr(backbone, "map_channels", []),
        "num_classes": source.num_classes,
        "class_counts": None if source.class_counts is None else torch.tensor(source.class_counts),
    }
    modules = {}
    for name in names:
        modules[name] = build_module(source.modules[name]["config"], path=f"modules.{name}", **facts)
        load_part(modules[name], source.modules[name]["state"], f"the module {name} in {path}")
    return modules


def described_counts(counts: list[int]) -> str:
    """Class counts (C,) in a few words."""
    return f"{sum(counts):,} samples, largest class {max(counts):,}, smallest {min(counts):,}"
