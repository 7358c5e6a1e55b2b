"""The one training loop: a Lightning module that any stage of any method runs in."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ParallelStrategy
from torch import Tensor

from ltexp.config import StageConfig
from ltexp.config.build import build
from ltexp.data.loader import Batch, Loader
from ltexp.distributed import world_size
from ltexp.errors import ConfigError
from ltexp.features.loader import FeatureLoader
from ltexp.models.dropout import KeyedDropout
from ltexp.models.model import Model
from ltexp.outputs import ModelOutput
from ltexp.training.mixing import Mixed
from ltexp.training.objective import Objective, flat_factors, parameter_groups
from ltexp.training.teacher import Teacher


class Stage(pl.LightningModule):
    """Trains a model on a stage's objective; it never asks which method it serves.

    Args:
        model: already started as the stage says (`init`), with its trainable parts set.
        config: the stage.
        class_counts: int64 (C,), the training images of each class.
        seed: of this stage's random draws.
        teacher: whose logits the objective may read.
        loader: of the batches, which may learn from one epoch to the next; one of features feeds the classifier alone.
        accumulate: parts that each process takes its rows of a batch in, one after the other, before the step. The step
            is the whole batch's: so are mixing, draws and weights by class. Batch norm in training normalises by part,
            and its running statistics move with each; LADE's regulariser is of a part.
        gradient_clip: the largest norm of the gradient; None: any.
    """

    def __init__(
        self,
        model: Model,
        config: StageConfig,
        class_counts: Tensor,
        seed: int,
        teacher: Teacher | None = None,
        loader: Loader[Any] | None = None,
        accumulate: int = 1,
        gradient_clip: float | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # the gradients of a batch may come in parts
        self.accumulate, self.gradient_clip = accumulate, gradient_clip
        self.model = model
        self.config = config
        self.seed = seed
        self.objective = Objective(config, class_counts)
        self.needs = self.objective.needs
        self.objective.set_seed(seed)
        self.mixing = build(config.mixing, path="mixing")
        self.schedule = build(config.schedule, path="schedule")
        self.teacher = teacher
        self.dropouts = [module for module in model.modules() if isinstance(module, KeyedDropout)]
        self.loader = loader
        self.reads_features = isinstance(loader, FeatureLoader)
        # Summed on the device: reading every step's loss would make the host wait for it. No buffer, or several
        # processes would all be given that of the first.
        self.loss_sum = torch.zeros(())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = dict(self.config.optimizer)
        factors = flat_factors(self.config.lr_factors)
        groups = parameter_groups(self.model, float(settings.pop("lr")), factors)
        if not groups:
            raise ConfigError("nothing to train: set epochs=0, or make a part trainable (stageN.trainable)")
        optimizer: torch.optim.Optimizer = build(settings, groups, path="optimizer")
        return optimizer

    def on_train_epoch_start(self) -> None:
        # The learning rate is a function of the epoch alone, so a resumed run needs no scheduler state.
        factor = self.schedule.factor(self.current_epoch, self.config.epochs)
        for group in self.optimizers(use_pl_optimizer=False).param_groups:  # type: ignore[union-attr]
            group["lr"] = group["base_lr"] * factor
        self.loss_sum = torch.zeros((), device=self.device)

    def training_step(self, batch: Batch, _: int) -> None:
        """One step of the optimizer."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.zero_grad()
        mixed = self.mixing(
            batch.inputs, batch.labels, size=batch.size, seed=self.seed, epoch=batch.epoch, step=batch.step
        )
        *before, last = parts_of(len(batch.labels), batch.size // world_size(), self.accumulate)
        with self._unsynchronised():
            for part in before:
                self.manual_backward(self.loss_of(batch, mixed, part))
        self.manual_backward(self.loss_of(batch, mixed, last))
        optimizer.step()

    def loss_of(self, batch: Batch, mixed: Mixed, part: slice = slice(None)) -> Tensor:
        """What the rows `part` of this process's batch add to the objective of the global batch."""
        self.objective.set_progress(batch.epoch, self.config.epochs, batch.step)
        self.objective.set_share(batch.share)
        self.objective.set_part(part)
        for dropout in self.dropouts:
            dropout.set_step(self.seed, batch.epoch, batch.step, batch.size, part)
        inputs = mixed.inputs[part]
        output = self.answer(inputs)
        with torch.autocast(self.device.type, enabled=False):
            loss: Tensor = self.objective.of_mixture(in_float32(output), mixed.targets)
        loss = loss * (batch.share * len(inputs) / len(mixed.inputs))
        self.loss_sum += loss.detach()
        return loss

    def _unsynchronised(self) -> AbstractContextManager[object]:
        """Within the block gradients stay on their process; the last part's backward pass sums up all."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.gradient_clip is not None:  # by now fp16's scaling is undone
            self.clip_gradients(optimizer, self.gradient_clip, "norm")

    def answer(self, inputs: Tensor) -> ModelOutput:
        """What the objective reads of a batch."""
        output: ModelOutput = self.model.classify(inputs) if self.reads_features else self.model(inputs, self.needs)
        if self.teacher is not None:
            answer = self.teacher.classify if self.reads_features else self.teacher
            answer(inputs, output)
        return output

    def on_train_epoch_end(self) -> None:
        self.objective.end_epoch()
        if self.loader is not None:
            self.loader.end_epoch(self.current_epoch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.loader is not None:
            checkpoint["loader"] = self.loader.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.loader is not None and checkpoint.get("loader"):
            self.loader.load_state(checkpoint["loader"])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # the loader makes batches where they are needed


def parts_of(rows: int, fewest: int, most: int) -> list[slice]:
    """`rows` cut into parts of about the same size, as many on each process as the one with the fewest rows allows."""
    count = max(1, min(most, fewest))
    return [slice(rows * i // count, rows * (i + 1) // count) for i in range(count)]


def in_float32(output: ModelOutput) -> ModelOutput:
    """The output with its tensors in float32: under autocast the network runs in half precision, losses do not.

    Lists of maps stay as they are: a loss sums them up in float32 without a copy of them.
    """

    def lift(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) else value

    return replace(output, **{field.name: lift(getattr(output, field.name)) for field in fields(output)})
