"""How a stage's training is shown: a bar in a terminal, a line now and then in a log."""

import sys
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ltexp.training.callbacks.monitor import Monitor

LINES = 5  # in a log, about this many lines a stage


class Progress(Callback):
    """Shows the progress of a stage on the first process; Lightning's bars show an epoch's, and fill a log with them.

    Args:
        stage: its name.
        shown: whether to show anything.
        every: steps between refreshes of the bar.
    """

    def __init__(self, stage: str, shown: bool = True, every: int = 50) -> None:
        self.stage, self.wanted, self.every = stage, shown, every
        self.shown = False
        self.bar: Bar | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.shown = self.wanted and trainer.is_global_zero
        self.epochs, self.steps = trainer.max_epochs or 0, int(trainer.num_training_batches)
        if self.shown and sys.stdout.isatty():
            self.bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(),
                transient=True,
            )
            self.task = self.bar.add_task(self.stage, total=self.epochs * self.steps, note="")
            self.bar.start()
        if self.shown and trainer.current_epoch:
            print(f"{self.stage}  continues after epoch {trainer.current_epoch}/{self.epochs}", flush=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar and (batch_idx + 1) % self.every == 0:
            self.bar.update(self.task, completed=trainer.current_epoch * self.steps + batch_idx + 1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch
        last = epoch + 1 == self.epochs or trainer.should_stop
        due = (epoch + 1) % max(1, self.epochs // LINES) == 0 or last
        if not self.bar and not (self.shown and due):
            return
        (monitor,) = (callback for callback in trainer.callbacks if isinstance(callback, Monitor))  # type: ignore[attr-defined]
        note = _note(monitor.rows[-1])
        if self.bar:
            self.bar.update(self.task, completed=(epoch + 1) * self.steps, note=note)
        else:
            print(f"{self.stage}  epoch {epoch + 1}/{self.epochs}  {note}", flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.bar:
            self.bar.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self.bar:
            self.bar.stop()


def _note(row: Mapping[str, Any]) -> str:
    """How an epoch went."""
    note = f"loss {row['train_loss']:.3f}  lr {row['lr']:.3g}  {row['images_per_second']:.0f} images/s"
    return note + "".join(f"  {key.removesuffix('_all')} {row[key]:.1f}%" for key in row if key.endswith("_all"))
