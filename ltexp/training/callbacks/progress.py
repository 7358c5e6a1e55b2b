"""How a stage's training is shown: a bar in a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO, cast

import pytorch_lightning as pl
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column

from ltexp.run_log import logged_streams
from ltexp.training.callbacks.monitor import Monitor
from ltexp.training.callbacks.quiet import Quiet
from ltexp.training.stage import Stage

REFRESH = 1.0  # seconds until the bar shows what was done since
ROOM = 100  # columns of a terminal from which on the bar has room for accuracies


class Progress(Quiet):
    """Shows the progress of a stage on the first process; Lightning's bars show an epoch's, and fill a log with them.

    Args:
        stage: its name.
        shown: whether to show anything.
        every: steps between refreshes of the bar, which come every second at least.
        seconds: between lines where there is no terminal, which come every epoch at least.
    """

    def __init__(self, stage: str, shown: bool = True, every: int = 50, seconds: float = 30.0) -> None:
        self.stage, self.wanted, self.every, self.seconds = stage, shown, every, seconds
        self.shown = False
        self.bar: Bar | None = None
        self.accuracies = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.shown = self.wanted and trainer.is_global_zero
        self.epochs, self.steps = trainer.max_epochs or 0, int(trainer.num_training_batches)
        self.first = trainer.current_epoch * self.steps
        self.started = self.last = time.perf_counter()
        if self.shown and trainer.current_epoch:
            print(f"{self.stage}  continues after epoch {trainer.current_epoch}/{self.epochs}", flush=True)
        if self.shown and sys.stdout.isatty():
            self._start_bar()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.images, self.began = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += batch.size
        if not self.shown:
            return
        waited = time.perf_counter() - self.last
        due = waited >= (REFRESH if self.bar else self.seconds) or (self.bar and (batch_idx + 1) % self.every == 0)
        if not due or batch_idx + 1 == self.steps:  # the epoch's end says more
            return
        assert isinstance(pl_module, Stage)
        loss = pl_module.loss_sum.item() / (batch_idx + 1)
        self.last = time.perf_counter()
        rate = self.images / (self.last - self.began)
        done = trainer.current_epoch * self.steps + batch_idx + 1
        if self.bar:
            self._refresh(trainer.current_epoch + 1, done, loss, rate)
        else:
            epoch = f"epoch {trainer.current_epoch + 1}/{self.epochs}, step {batch_idx + 1}/{self.steps}"
            print(f"{self.stage}  {epoch}  {_numbers(loss, rate)}  {self._times(done)}", flush=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.shown:
            return
        epoch = trainer.current_epoch
        (monitor,) = (callback for callback in trainer.callbacks if isinstance(callback, Monitor))  # type: ignore[attr-defined]
        row, done = monitor.rows[-1], (epoch + 1) * self.steps
        loss, rate = float(row["train_loss"]), float(row["images_per_second"])
        self.last = time.perf_counter()
        self.accuracies = _accuracies(row) or self.accuracies
        line = f"{self.stage}  epoch {epoch + 1}/{self.epochs}  {_numbers(loss, rate)}  lr {row['lr']:.3g}"
        line += f"  {self._times(done)}{_accuracies(row)}"
        over = epoch + 1 == self.epochs or trainer.should_stop
        if self.bar and not over:
            self._refresh(epoch + 1, done, loss, rate)
            for stream in logged_streams()[:1]:
                stream.note(line + "\n")
            return
        self._stop_bar()
        print(line, flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_bar()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop_bar()

    def _start_bar(self) -> None:
        streams = logged_streams()
        console = Console(file=streams[0].terminal) if streams else Console()
        fixed = [_column(name) for name in ("stage", "epoch")], [_column(name) for name in ("numbers", "times")]
        self.bar = Bar(
            *fixed[0],
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
            *fixed[1],
            console=console,
            expand=True,
            transient=True,
            redirect_stdout=not streams,
            redirect_stderr=not streams,
        )
        for stream in streams:  # what others print comes above the bar, and into the log as ever
            stream.shown = cast(TextIO, FileProxy(console, stream.terminal))
        nothing: dict[str, Any] = {"epoch": f"epoch 1/{self.epochs}", "numbers": "", "times": ""}
        self.task = self.bar.add_task("", total=self.epochs * self.steps, stage=self.stage, **nothing)
        self.bar.start()

    def _stop_bar(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None
            for stream in logged_streams():
                stream.shown.flush()
                stream.shown = stream.terminal

    def _refresh(self, epoch: int, done: int, loss: float, rate: float) -> None:
        assert self.bar is not None
        numbers = _numbers(loss, rate) + (self.accuracies if self.bar.console.width >= ROOM else "")
        said: dict[str, Any] = {"epoch": f"epoch {epoch}/{self.epochs}", "numbers": numbers, "times": self._times(done)}
        self.bar.update(self.task, completed=done, **said)

    def _times(self, done: int) -> str:
        """How long this process has trained the stage, and what is left at its speed."""
        gone = time.perf_counter() - self.started
        left = gone / max(1, done - self.first) * (self.epochs * self.steps - done)
        return f"{_clock(gone)} gone  {_clock(left)} left"


def _column(name: str) -> TextColumn:
    return TextColumn("{task.fields[" + name + "]}", table_column=Column(no_wrap=True))


def _numbers(loss: float, rate: float) -> str:
    return f"loss {loss:.3f}  {rate:,.0f} images/s"


def _accuracies(row: Mapping[str, Any]) -> str:
    """The accuracies of an epoch that was evaluated, in percent."""
    return "".join(f"  {key.removesuffix('_all')} {float(row[key]):.1f}%" for key in row if key.endswith("_all"))


def _clock(seconds: float) -> str:
    """`0:07`, `12:30`, `3:05:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
