"""Batch norm on several processes: running statistics of what all of them saw."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, WeightAveraging
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltexp.distributed import active, sum_over_ranks, world_size
from ltexp.training.callbacks.quiet import Quiet


class AgreeOnStatistics(Quiet):
    """After an epoch's last step, before anything is evaluated or kept, every process gets the statistics of all.

    Where the statistics are averaged or saved within an epoch, by another callback, it is after each step.
    """

    def __init__(self) -> None:
        self.every_step = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.every_step = any(map(_reads_steps, trainer.callbacks))  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # not in on_validation_start: the batch norms are in eval mode by then, and those that learn are not known
        if self.every_step or trainer.is_last_batch:
            average_running_statistics(pl_module)


def _reads_steps(callback: Callback) -> bool:
    saves_steps = isinstance(callback, ModelCheckpoint) and bool(callback._every_n_train_steps)
    return saves_steps or isinstance(callback, WeightAveraging)


def average_running_statistics(module: nn.Module) -> None:
    """Puts the mean over processes in the place of each process's running means and variances.

    An ordinary batch norm sees the share of a batch that its own process holds. Running means are linear in it, so
    their mean over processes is that of the whole batches. The variance of a share is unbiased, as that of a whole
    batch is, so the mean of the running variances estimates the same; it is not the same number. Without this, what is
    saved and evaluated would be the first process's statistics. Batch norms in eval mode are left alone.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]
    if not active() or not norms:
        return
    statistics = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
    mean = sum_over_ranks(torch.cat(statistics)) / world_size()
    for value, averaged in zip(statistics, torch.split(mean, [len(value) for value in statistics]), strict=True):
        value.copy_(averaged)
