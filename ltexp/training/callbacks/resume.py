"""Keeps what a killed run goes on from."""

import os
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from ltexp.errors import CheckpointError
from ltexp.run_folder import RESUME
from ltexp.training.callbacks.quiet import Quiet


class ResumeCheckpoint(Quiet, Checkpoint):
    """Keeps, when an epoch ends, all that training needs to go on from there, other callbacks' state included.

    Lightning's ModelCheckpoint would serve, but for two things: a file that is written in one step, and no file that
    says "stop", which early stopping has already said when an epoch ends.

    Args:
        folder: of the stage, inside the run's folder.
        every: epochs between checkpoints.
    """

    def __init__(self, folder: Path, every: int = 1) -> None:
        self.path, self.every = folder / RESUME, every

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        over = epoch == trainer.max_epochs or trainer.should_stop
        if epoch % self.every == 0 and not over:
            temporary = self.path.with_suffix(".tmp")
            try:
                trainer.save_checkpoint(temporary)
                if trainer.is_global_zero:
                    os.replace(temporary, self.path)
            except (OSError, RuntimeError) as error:
                temporary.unlink(missing_ok=True)
                raise CheckpointError(
                    f"cannot write {self.path} ({error}): is the disk full? Free some space and use resume=true"
                ) from error
