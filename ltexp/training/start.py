"""What a stage starts from: its model's parts, and its teachers."""

from pathlib import Path
from typing import cast

import torch

from ltexp.config import StageConfig, names_stage
from ltexp.errors import CheckpointError
from ltexp.models.checkpoint import load_backbone, load_part
from ltexp.models.foreign import read_tensors
from ltexp.models.model import Model
from ltexp.models.module import StageModule
from ltexp.models.self_supervised import is_foreign, read_backbone
from ltexp.run_folder import CHECKPOINT
from ltexp.training import checkpoint
from ltexp.training.session import Session
from ltexp.training.teacher import Teacher, Teachers, model_of, read_teacher


def start_model(session: Session, name: str, stage: StageConfig) -> Model:
    """A model whose parts start as `stage.init` says.

    In a stage without epochs the scale of its logits is that of what its classifier starts from: no loss trains it.

    Raises:
        CheckpointError: if what it starts from is missing, damaged or from a different model.
    """
    loads = stage.init.backbone != "fresh" or stage.checkpoint is not None
    model = session.fresh_model(name, stage, loads)
    for part, where in stage.starts.items():
        if where == "fresh" or part not in model.parts():
            continue
        path = _located(session, where)
        content = read_tensors(path)
        if part == "backbone" and not names_stage(where) and is_foreign(content):
            state = read_backbone(path, model.backbone.state_dict().keys(), f"{name}.init.backbone")
            load_part(model.backbone, state, f"the backbone that {name} starts from")
            continue
        source = checkpoint.of_content(content, path)
        if part == "backbone":
            load_backbone(model.backbone, source.backbone, f"the backbone that {name} starts from")
        elif part == "classifier":
            model.classifier.start_from(source.build_classifier())
            if stage.epochs == 0:
                model.logit_scale = source.scale_for(model.classifier)
        else:
            load_module(model, part.removeprefix("modules."), source, f"the stage that {name} starts from")
    return model


def _located(session: Session, where: str) -> Path:
    """The checkpoint of a stage of this run, or of the run or file that `where` is the path of."""
    return session.folder / where / CHECKPOINT if names_stage(where) else checkpoint.locate(where)


def load_module(model: Model, name: str, source: checkpoint.Checkpoint, where: str) -> None:
    """Loads the module `name` from a checkpoint.

    Raises:
        CheckpointError: if that has no such module, or another one; `where` says which checkpoint.
    """
    if name not in source.modules:
        raise CheckpointError(f"{where} has no module {name}: train it with one, or start a fresh one")
    load_part(model.attached[name], source.modules[name]["state"], f"the module {name} in {where}")


def load_teachers(session: Session, stage: StageConfig) -> Teachers:
    """The stage's teachers on this process's device, where it has any.

    Raises:
        CheckpointError: see `read_teacher`.
    """
    named = {name: load_teacher(session, where) for name, where in stage.teachers.items()}
    return Teachers(None if stage.teacher is None else load_teacher(session, stage.teacher), named)


def load_teacher(session: Session, where: str) -> Teacher:
    """The teacher in the stage, run or file `where`, on this process's device.

    Raises:
        CheckpointError: see `read_teacher`.
    """
    teacher = read_teacher(_located(session, where), session.class_counts, session.data.backbone_settings)
    session.place(teacher.model)
    return teacher


def load_stage1(session: Session, stage: StageConfig) -> Model:
    """The model that the stage's backbone was trained in, with its own classifier, on this process's device.

    Raises:
        CheckpointError: if its checkpoint is missing, damaged, or of other classes.
    """
    path = _located(session, stage.init.backbone)
    source = checkpoint.read(path)
    if source.num_classes != session.num_classes:
        raise CheckpointError(
            f"features.beta_reference=stage1: the classifier in {path} knows {source.num_classes} classes and this "
            f"dataset has {session.num_classes}: set features.beta_reference=last_epoch"
        )
    return session.place(model_of(source, path, session.data.backbone_settings))


def load_model(model: Model, path: Path) -> None:
    """Loads every part of `model`, and the scale of its logits, from the stage checkpoint `path`.

    Raises:
        CheckpointError: if it is missing, damaged or from a different model.
    """
    source = checkpoint.read(path)
    load_backbone(model.backbone, source.backbone, f"the backbone in {path}")
    load_part(model.classifier, source.classifier, f"the classifier in {path}")
    for name in model.attached:
        load_module(model, name, source, str(path))
    if source.feature_power != model.feature_power:
        raise CheckpointError(
            f"{path} is of features raised to {source.feature_power:g}: set the stage's feature_power to it "
            f"(it is {model.feature_power:g})"
        )
    if source.logit_scale is not None:
        model.logit_scale = source.logit_scale


def make_trainable(model: Model, stage: StageConfig) -> None:
    """Lets those parts of `model` learn that the stage trains."""
    model.set_trainable(stage.trainable.backbone, stage.trainable.classifier, stage.batch_norm)


@torch.no_grad()
def show_training_set(session: Session, model: Model) -> None:
    """Shows modules that start fresh, and from the training set, each sample of it once; see `StageModule.see`.

    Args:
        session: of the run, on the stage's training set.
        model: as it starts.
    """
    fresh = {name: part for name, part in model.attached.items() if model.wiring[name].start == "fresh"}
    watching = {name: part for name, part in fresh.items() if getattr(part, "sees", False)}
    if not watching:
        return
    training = model.training
    model.eval()
    for batch in session.evaluation_loader(session.data.train):
        output = model(batch.inputs, {field for name in watching for field in model.wiring[name].reads})
        rows = len(batch.labels) if batch.share > 0 else 0
        of_batch = {"inputs": batch.inputs, "labels": batch.labels}
        for name, part in watching.items():
            cast(StageModule, part).see(batch.labels[:rows], *model.read_by(name, output, of_batch))
    for part in watching.values():
        cast(StageModule, part).seen()
    model.train(training)
