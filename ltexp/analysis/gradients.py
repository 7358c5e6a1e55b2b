"""What a stage's loss does to the logits of each class: pulls from the class's own samples, pushes from all others."""

from dataclasses import replace
from pathlib import Path

import torch

from ltexp.analysis.restored import LoadedStage
from ltexp.errors import ConfigError
from ltexp.losses.context import StreamBatch
from ltexp.outputs import in_float32
from ltexp.run_folder import GRADIENTS, write_metrics
from ltexp.training.batches import train_loader
from ltexp.training.predict import autocast
from ltexp.training.stage import Stage
from ltexp.training.start import load_teachers
from ltexp.training.survey import SplitSurvey


def write_gradients(restored: LoadedStage) -> Path:
    """Writes the stage's gradients.csv, and returns its path.

    For each class k: `positive`, the sum of |dL/dz_k| over its own samples, and `negative`, the sum over all others
    (BKD, Sec. 3.1 and Fig. 2b). L is the stage's whole objective, z what its classifier gives, and the samples are the
    batches of the stage's last epoch, augmented but not mixed; the model is the finished one, in eval mode. A batch's
    gradient is multiplied by its size, so that the sums are over samples.

    Raises:
        ConfigError: for an objective that does not read the logits, such as one over experts, or a pretext.
    """
    name = restored.stage
    stage = restored.session.config.stages[name]
    session = restored.session.for_stage(stage)
    if session.pretext is not None:
        raise ConfigError(f"{name} learns labels of its own, so it has no gradient by class: choose another stage")
    loader = train_loader(session, name, stage, restored.model)
    teachers = load_teachers(session, stage)
    module = Stage(restored.model, stage, session.class_counts, session.stage_seed(name), teachers, loader)
    objective = module.objective.to(session.device)
    restored.model.eval()
    last = max(stage.epochs - 1, 0)
    loader.set_epoch(last)
    objective.before_epoch(last, max(stage.epochs, 1), SplitSurvey(session, restored.model, teachers))
    sums = torch.zeros(2, session.data.num_classes, dtype=torch.float64, device=session.device)
    for batch in loader:
        with torch.no_grad(), autocast(session.config.trainer.precision, session.device):
            output = in_float32(module.output_of(batch.inputs, batch.labels))
            streams = {
                stream: StreamBatch(in_float32(module.output_of(own.inputs, own.labels, stream=stream)), own.labels)
                for stream, own in batch.streams.items()
            }
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
