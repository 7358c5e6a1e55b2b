"""Keeps the norms of the test features by class, epoch by epoch."""

from pathlib import Path

import pytorch_lightning as pl

from ltexp.run_folder import FEATURE_NORMS
from ltexp.training.callbacks.quiet import Quiet
from ltexp.training.norms import append_norms
from ltexp.training.stage import Stage


class FeatureNorms(Quiet):
    """Writes a row of feature_norms.csv for each evaluation.

    Args:
        folder: of the stage, inside the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FEATURE_NORMS

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Stage)
        if trainer.is_global_zero and "test" in pl_module.top1:
            num_classes = len(pl_module.objective.loss.class_counts)
            append_norms(self.path, trainer.current_epoch, pl_module.top1["test"], num_classes)
