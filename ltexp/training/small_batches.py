"""Batches too small for batch norm: refused before anything is trained."""

import torch

from ltexp.config import StageConfig
from ltexp.config.build import build
from ltexp.data.loader import steps_of
from ltexp.distributed import world_size
from ltexp.errors import ConfigError
from ltexp.models.module import present
from ltexp.training.objective import Objective
from ltexp.training.session import Session
from ltexp.training.start import make_trainable

TOO_FEW = "more than 1 value per channel"  # in torch's words


def check_batch_norm(session: Session, name: str, stage: StageConfig) -> None:
    """Refuses a stage in which a process passes one sample alone through a batch norm over a single place.

    Of such a batch there is no variance. Batches of one sample are fine where the norms see larger maps.

    Args:
        session: on the stage's own training set.
        name: of the stage.
        stage: its config.

    Raises:
        ConfigError: saying which batch it is, and what to set.
    """
    trains = stage.epochs > 0 and stage.checkpoint is None
    if not trains or smallest_part(session, stage) > 1:
        return
    if not _passes(session, name, stage, backbone_alone=True):
        raise ConfigError(
            f"{name}: with batch_size={stage.batch_size} a batch, or a process's part of one, is of one sample, and "
            f"the backbone's batch norm sees a single place of it: set {name}.batch_size higher, "
            f"{name}.batch_norm=frozen, or larger images"
        )
    if not _passes(session, name, stage):
        raise ConfigError(
            f"{name}: with batch_size={stage.batch_size} a batch, or a process's part of one, is of one sample, and "
            f"the batch norm of a module ({', '.join(present(stage.modules))}) or of the classifier sees it alone: set "
            f"{name}.batch_size higher"
        )


def _passes(session: Session, name: str, stage: StageConfig, backbone_alone: bool = False) -> bool:
    """Whether one sample, in the stage's views, passes through the network in training."""
    model = session.place(session.fresh_model(name, stage, loads=True))
    make_trainable(model, stage)
    model.train()
    objective = Objective(stage, session.class_counts)
    needs, views = objective.needs_of(None), len(build(stage.augmentation, path=f"{name}.augmentation").views)
    sample = session.sample_inputs()
    inputs = sample.repeat(views, *[1] * (sample.ndim - 1))
    try:
        with torch.no_grad():
            if backbone_alone:
                model.backbone(inputs if model.sees_all_views(needs) else sample)
            else:
                labels = torch.zeros(1, dtype=torch.int64, device=sample.device)
                model(inputs, needs, views, labels, objective.branch_of(None))
    except ValueError as error:
        if TOO_FEW not in str(error):
            raise
        return False
    return True


def smallest_part(session: Session, stage: StageConfig) -> int:
    """The fewest samples that one process passes through the network at a time, 1 or more."""
    rows = stage.sampler.get("epoch_length") or len(session.data.train)
    steps = steps_of(rows, stage.batch_size)
    last = rows - (steps - 1) * stage.batch_size
    share = max(1, min(stage.batch_size, last) // world_size())
    return max(1, share // min(session.config.trainer.accumulate, share))
