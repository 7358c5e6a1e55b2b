"""Stops a run whose trial of a search does worse than most."""

from typing import Any

import pytorch_lightning as pl

from ltexp.distributed import broadcast_object
from ltexp.errors import TrainingError
from ltexp.launching.trials import report_value
from ltexp.training.callbacks.quiet import Quiet
from ltexp.training.stage import Stage


class Prune(Quiet):
    """Reports each evaluation on the validation part to the search, which may stop the trial.

    Args:
        facts: of the trial (`ltexp.launching.trials`).
        stage: its name.
        before: epochs of the stages before it.
        is_last: whether the run ends with it.
    """

    def __init__(self, facts: dict[str, Any], stage: str, before: int, is_last: bool) -> None:
        self.facts, self.stage, self.before, self.is_last = facts, stage, before, is_last

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Stage)
        value, epoch = pl_module.measured.get(f"validation_{self.facts['metric']}"), trainer.current_epoch + 1
        if value is None:
            return
        may_stop = not (self.is_last and epoch == trainer.max_epochs)  # then there is nothing left to save
        at = self.before + epoch
        stops = report_value(self.facts, at, value, may_stop) if trainer.is_global_zero else False
        if broadcast_object(stops):
            raise TrainingError(
                f"{self.stage}: stopped by the search after epoch {epoch}: validation {self.facts['metric']} "
                f"{value:.2f} is worse than the median of its trials"
            )
