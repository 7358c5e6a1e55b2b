"""What a stage's loss does to the logits of each class: pulls from the class's own samples, pushes from all others."""

from dataclasses import replace
from pathlib import Path

import torch

from ltexp.analysis.restored import LoadedStage
from ltexp.data.loader import Batch
from ltexp.errors import ConfigError
from ltexp.losses.context import StreamBatch
from ltexp.models.model import Model
from ltexp.models.module import present
from ltexp.outputs import ModelOutput, in_float32
from ltexp.run_folder import CHECKPOINT, GRADIENTS, write_metrics
from ltexp.training.batches import train_loader
from ltexp.training.predict import autocast
from ltexp.training.stage import Stage
from ltexp.training.start import load_model, load_teachers
from ltexp.training.survey import SplitSurvey


def write_gradients(restored: LoadedStage) -> Path:
    """Writes the stage's gradients.csv, and returns its path.

    For each class k: `positive`, the sum of |dL/dz_k| over its own samples, and `negative`, the sum over all others
    (BKD, Sec. 3.1 and Fig. 2b). L is the stage's whole objective, z what its classifier gives, and the samples are the
    batches of the stage's last epoch, augmented but not mixed; the model is the finished one, in eval mode, with the
    modules that training had. A batch's gradient is multiplied by its size, so that the sums are over samples. What a
    loss gathers over epochs, such as soft labels, is in no checkpoint: it is as at a stage's start.

    Raises:
        ConfigError: for an objective that does not read the logits, such as one over experts, or a pretext.
    """
    name, session = restored.stage, restored.session
    stage = session.config.stages[name]
    if session.pretext is not None:
        raise ConfigError(f"{name} learns labels of its own, so it has no gradient by class: choose another stage")
    model = _as_trained(restored)
    loader = train_loader(session, name, stage, model)
    teachers = load_teachers(session, stage)
    module = Stage(model, stage, session.class_counts, session.stage_seed(name), teachers, loader)
    objective = module.objective.to(session.device)
    model.eval()
    last = max(stage.epochs - 1, 0)
    loader.set_epoch(last)
    objective.before_epoch(last, max(stage.epochs, 1), SplitSurvey(session, model, teachers))
    sums = torch.zeros(2, session.data.num_classes, dtype=torch.float64, device=session.device)
    for batch in loader:
        with torch.no_grad(), autocast(session.config.trainer.precision, session.device):
            output = _output(module, batch)
            read = {stream: batch.streams[stream] for stream in objective.streams}  # others are a mixing's or a step's
            streams = {stream: StreamBatch(_output(module, own, stream), own.labels) for stream, own in read.items()}
        output.logits.requires_grad_()
        context = replace(module.context_of(batch), max_epochs=max(stage.epochs, 1), streams=streams)
        loss = objective(output, batch.labels, context)
        (gradient,) = torch.autograd.grad(loss, output.logits, allow_unused=True) if loss.requires_grad else (None,)
        if gradient is None:
            raise ConfigError(f"{name}: its loss does not read the logits, so it has no gradient by class")
        size = gradient.abs().double() * len(batch.labels)
        own = torch.zeros_like(sums[0]).index_add_(0, batch.labels, size.gather(1, batch.labels[:, None]).squeeze(1))
        sums += torch.stack([own, size.sum(0) - own])
    path = session.folder / name / GRADIENTS
    rows = zip(*sums.tolist(), strict=True)
    write_metrics(path, [{"class": k, "positive": own, "negative": other} for k, (own, other) in enumerate(rows)])
    return path


def _as_trained(restored: LoadedStage) -> Model:
    """The stage's model with all of its modules, also those that are for training alone."""
    session, stage = restored.session, restored.session.config.stages[restored.stage]
    if present(stage.modules).keys() == restored.model.attached.keys():
        return restored.model
    model = session.fresh_model(restored.stage, stage, loads=True)
    load_model(model, session.folder / restored.stage / CHECKPOINT)
    return session.place(model)


def _output(module: Stage, batch: Batch, stream: str | None = None) -> ModelOutput:
    """What the objective reads of the stage's own batch (None) or a stream's, as it is."""
    views, inputs = (1, batch.inputs) if batch.views is None else (len(batch.views), batch.views.flatten(0, 1))
    return in_float32(module.output_of(inputs, batch.labels, views, stream))
