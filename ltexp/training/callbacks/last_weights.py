"""Keeps the weights of a stage's last step beside their average, where another callback averages them."""

from pathlib import Path

import pytorch_lightning as pl
import torch

from ltexp.files import atomic_write
from ltexp.run_folder import LAST_WEIGHTS
from ltexp.training.callbacks.quiet import Quiet
from ltexp.training.stage import Stage


class KeepLastWeights(Quiet):
    """Writes the model's state when training ends; stands before the callback that then puts the average in its place.

    Args:
        folder: of the stage, inside the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LAST_WEIGHTS

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Stage)
        if trainer.is_global_zero:
            state = {name: value.detach().cpu() for name, value in pl_module.model.state_dict().items()}
            with atomic_write(self.path) as file:
                torch.save(state, file)
