"""Watches a stage's training: metrics by epoch, evaluation now and then, a stop when the loss is no longer finite."""

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint

from ltexp.distributed import sum_over_ranks, world_size
from ltexp.errors import CheckpointError, TrainingError
from ltexp.run_folder import METRICS, RESUME, read_metrics, write_metrics
from ltexp.training.progress import StageProgress
from ltexp.training.stage import Stage

Evaluate = Callable[[int], Mapping[str, float | None]]


class Monitor(Callback):
    """Writes a row of metrics.csv for each epoch, and shows progress.

    Args:
        folder: of the stage, inside the run's folder.
        name: of the stage.
        images_per_epoch: samples of one epoch over all processes.
        steps_per_epoch: optimizer steps of one epoch.
        evaluate: gives the columns of an evaluation at the end of an epoch, such as `test_all` (percent).
        evaluate_every: epochs between evaluations; 0: never while training.
        check_every: steps between looks at the loss.
        shown: whether to show progress.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        images_per_epoch: int,
        steps_per_epoch: int,
        evaluate: Evaluate,
        evaluate_every: int,
        check_every: int,
        shown: bool,
    ) -> None:
        self.path = folder / METRICS
        self.name, self.images, self.steps = name, images_per_epoch, steps_per_epoch
        self.evaluate, self.evaluate_every, self.check_every, self.shown = evaluate, evaluate_every, check_every, shown
        self.rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # a killed run may have written a row for an epoch that its last checkpoint does not know
        self.rows = [row for row in read_metrics(self.path) if int(row["epoch"]) < trainer.current_epoch]
        self.progress = StageProgress(self.name, trainer.max_epochs or 0, self.steps, self.shown)
        if trainer.current_epoch:
            self.progress.continued(trainer.current_epoch)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.check_every == 0:
            self._check_loss(pl_module, trainer.current_epoch, batch_idx)
            self.progress.step(trainer.current_epoch * self.steps + batch_idx + 1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch
        self._check_loss(pl_module, epoch, self.steps - 1)
        assert isinstance(pl_module, Stage)
        loss = sum_over_ranks(pl_module.loss_sum).item() / (world_size() * self.steps)
        seconds = time.perf_counter() - self.started  # the loss was just read, so the device has finished
        row: dict[str, Any] = {
            "epoch": epoch,
            "lr": max(float(group["lr"]) for group in trainer.optimizers[0].param_groups),
            "train_loss": loss,
            "seconds": seconds,
            "images_per_second": self.images / seconds,
        }
        note = f"loss {loss:.3f}  lr {row['lr']:.3g}  {row['images_per_second']:.0f} images/s"
        if self.evaluate_every and (epoch + 1) % self.evaluate_every == 0:
            measured = self.evaluate(epoch)
            row |= measured
            note += "".join(
                f"  {key.replace('_all', '')} {value:.1f}%" for key, value in measured.items() if "_all" in key
            )
        self.rows.append(row)
        if trainer.is_global_zero:
            write_metrics(self.path, self.rows)
        for logger in trainer.loggers:
            numbers = {f"{self.name}/{key}": value for key, value in row.items() if value is not None}
            logger.log_metrics(numbers, step=trainer.global_step)
        self.progress.epoch(epoch, note)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.progress.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "progress"):
            self.progress.stop()

    def _check_loss(self, module: pl.LightningModule, epoch: int, step: int) -> None:
        assert isinstance(module, Stage)
        if not math.isfinite(total := module.loss_sum.item()):
            raise TrainingError(
                f"{self.name}: the loss is {total} in epoch {epoch + 1} by step {step + 1}: "
                f"lower {self.name}.optimizer.lr, or set trainer.gradient_clip_val"
            )


class ResumeCheckpoint(Checkpoint):
    """Keeps, at the end of an epoch, all that training needs to go on from there.

    Args:
        folder: of the stage, inside the run's folder.
        every: epochs between checkpoints.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.path, self.every = folder / RESUME, every

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if epoch % self.every == 0 and epoch != trainer.max_epochs:
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
