"""Watches a stage's training: metrics by epoch, and a stop when the loss is no longer finite."""

import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ltexp.errors import TrainingError
from ltexp.run_folder import METRICS, STEPS_LEFT, read_metrics, write_metrics
from ltexp.training.callbacks.quiet import Quiet
from ltexp.training.loggers import log_epoch
from ltexp.training.stage import Stage


class Monitor(Quiet):
    """Writes a row of metrics.csv for each epoch, and hands it to the loggers.

    Args:
        folder: of the stage, inside the run's folder.
        stage: its name.
        check_every: steps between looks at the loss.

    Attributes:
        rows: of metrics.csv so far.
    """

    def __init__(self, folder: Path, stage: str, check_every: int = 50) -> None:
        self.path, self.stage, self.check_every = folder / METRICS, stage, check_every
        self.rows: list[dict[str, Any]] = []
        self.images, self.steps, self.started = 0, 0, 0.0
        self.seconds: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # a killed run may have written a row for an epoch that its last checkpoint does not know
        self.rows = [row for row in read_metrics(self.path) if int(row["epoch"]) < trainer.current_epoch]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.images, self.steps, self.seconds, self.started = 0, 0, None, time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += batch.size
        self.steps = batch_idx + 1
        if (batch_idx + 1) % self.check_every == 0:
            self._check_loss(pl_module, trainer.current_epoch, batch_idx)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_training(trainer, pl_module)  # the time of an epoch is that of its steps

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        seconds = self._end_training(trainer, pl_module)
        assert isinstance(pl_module, Stage)
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "lr": max(float(group["lr"]) for group in trainer.optimizers[0].param_groups),
            "train_loss": pl_module.epoch_loss(),
            "seconds": seconds,
            "images_per_second": self.images / seconds,
            **pl_module.measured,
        }
        if left := int(trainer.num_training_batches) - self.steps:
            row[STEPS_LEFT] = left
        self.rows.append(row)
        if trainer.is_global_zero:
            write_metrics(self.path, self.rows)
        log_epoch(trainer.loggers, self.stage, row)

    def _end_training(self, trainer: pl.Trainer, module: pl.LightningModule) -> float:
        """Seconds of the epoch's steps."""
        if self.seconds is None:
            self._check_loss(module, trainer.current_epoch, int(trainer.num_training_batches) - 1)
            self.seconds = time.perf_counter() - self.started  # the loss was just read, so the device has finished
        return self.seconds

    def _check_loss(self, module: pl.LightningModule, epoch: int, step: int) -> None:
        assert isinstance(module, Stage)
        if not math.isfinite(total := module.loss_sum.item()):
            raise TrainingError(
                f"{self.stage}: the loss is {total} in epoch {epoch + 1} by step {step + 1}: "
                f"lower {self.stage}.optimizer.lr, or set trainer.gradient_clip_val"
            )
