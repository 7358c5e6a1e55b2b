"""How a stage's training is shown: a bar in a terminal, a line now and then in a log."""

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINES = 5  # in a log, about this many lines a stage


class StageProgress:
    """Shows the progress of one stage on rank 0; a silent one does nothing.

    Args:
        stage: its name.
        epochs, steps: epochs of the stage and steps of an epoch.
        shown: whether to show anything.
    """

    def __init__(self, stage: str, epochs: int, steps: int, shown: bool) -> None:
        self.stage, self.epochs, self.steps, self.shown = stage, epochs, steps, shown
        self.bar: Progress | None = None
        if shown and sys.stdout.isatty():
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(),
                transient=True,
            )
            self.task = self.bar.add_task(stage, total=epochs * steps, note="")
            self.bar.start()

    def stop(self) -> None:
        """Takes the bar away."""
        if self.bar:
            self.bar.stop()

    def continued(self, epochs: int) -> None:
        """Training goes on after so many `epochs`."""
        if self.shown:
            print(f"{self.stage}  continues after epoch {epochs}/{self.epochs}", flush=True)

    def step(self, done: int) -> None:
        """`done` steps of the whole stage are behind us."""
        if self.bar:
            self.bar.update(self.task, completed=done)

    def epoch(self, epoch: int, note: str) -> None:
        """Epoch number `epoch` (from 0) ended; `note` says how it went."""
        if self.bar:
            self.bar.update(self.task, completed=(epoch + 1) * self.steps, note=note)
        elif self.shown and ((epoch + 1) % max(1, self.epochs // LINES) == 0 or epoch + 1 == self.epochs):
            print(f"{self.stage}  epoch {epoch + 1}/{self.epochs}  {note}", flush=True)
