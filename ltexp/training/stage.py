"""The one training loop: a Lightning module that any stage of any method runs in."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.strategies import ParallelStrategy
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ltexp.config import StageConfig
from ltexp.config.build import build
from ltexp.data.loader import Batch, Loader
from ltexp.distributed import sum_over_ranks, world_size
from ltexp.errors import CheckpointError, ConfigError
from ltexp.evaluation.metrics import Metrics
from ltexp.features.loader import FeatureLoader
from ltexp.models.dropout import KeyedDropout
from ltexp.models.model import Model
from ltexp.outputs import ModelOutput
from ltexp.training.mixing import Mixed
from ltexp.training.objective import Objective, flat_factors, parameter_groups
from ltexp.training.predict import Collector, Predictions, logits_and_norm
from ltexp.training.schedules import build_schedule
from ltexp.training.teacher import Teacher


class Stage(pl.LightningModule):
    """Trains a model on a stage's objective; it never asks which method it serves.

    Args:
        model: already started as the stage says (`init`), with its trainable parts set.
        config: the stage.
        class_counts: int64 (C,), the training images of each class.
        seed: of this stage's random draws.
        teacher: whose logits the objective may read.
        loader: of the batches; one of features feeds the classifier alone.
        accumulate: parts that each process takes its rows of a batch in, one after the other, before the step. The step
            is the whole batch's: so are mixing, draws and weights by class. Batch norm in training normalises by part,
            and its running statistics move with each; LADE's regulariser is of a part.
        gradient_clip: the largest norm, or value, of the gradient; None: any.
        gradient_clip_by: `norm` or `value`.
        metrics: the rules of evaluations while training; None where there are none.

    Attributes:
        measured: of the last evaluation if it was in this epoch, in percent: `test_all`, `validation_few`, ...; a group
            without classes is None.
        predictions: of that evaluation, by split.
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
        gradient_clip_by: str = "norm",
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # the gradients of a batch may come in parts
        self.accumulate, self.gradient_clip, self.gradient_clip_by = accumulate, gradient_clip, gradient_clip_by
        self.metrics = metrics
        self.measured: dict[str, float | None] = {}
        self.predictions: dict[str, Predictions] = {}
        self._collectors: dict[str, Collector] = {}
        self._stepping: list[str | None] = ["epoch", None]  # how often the schedule steps, and what it watches
        self._epoch_loss: float | None = None
        self.model = model
        self.config = config
        self.seed = seed
        self.objective = Objective(config, class_counts)
        self.needs = self.objective.needs
        self.objective.set_seed(seed)
        self.mixing = build(config.mixing)
        self.teacher = teacher
        self.dropouts = [module for module in model.modules() if isinstance(module, KeyedDropout)]
        self.reads_features = isinstance(loader, FeatureLoader)
        # Summed on the device: reading every step's loss would make the host wait for it. No buffer, or several
        # processes would all be given that of the first.
        self.loss_sum = torch.zeros(())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The stage's optimizer and learning-rate schedule."""
        settings = dict(self.config.optimizer)
        factors = flat_factors(self.config.lr_factors)
        groups = parameter_groups(self.model, float(settings.pop("lr")), factors)
        if not groups:
            raise ConfigError("nothing to train: set epochs=0, or make a part trainable (stageN.trainable)")
        optimizer: torch.optim.Optimizer = build(settings, groups)
        self.trainer.fit_loop.setup_data()  # steps of an epoch are known from then on
        steps = int(self.trainer.num_training_batches)
        scheduler, *self._stepping = build_schedule(self.config.schedule, optimizer, self.config.epochs, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}

    def on_train_epoch_start(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device)
        self.measured, self.predictions, self._epoch_loss = {}, {}, None

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
            self.clip_gradients(optimizer, self.gradient_clip, self.gradient_clip_by)

    def answer(self, inputs: Tensor) -> ModelOutput:
        """What the objective reads of a batch."""
        output: ModelOutput = self.model.classify(inputs) if self.reads_features else self.model(inputs, self.needs)
        if self.teacher is not None:
            answer = self.teacher.classify if self.reads_features else self.teacher
            answer(inputs, output)
        return output

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._step_schedule("step")

    def on_train_epoch_end(self) -> None:
        self.objective.end_epoch()
        self.trainer.datamodule.end_epoch(self.current_epoch)  # type: ignore[attr-defined]
        self.log("train_loss", self.epoch_loss(), logger=False)  # for callbacks; loggers get it from Monitor
        self._step_schedule("epoch")

    def _step_schedule(self, now: str) -> None:
        """With manual optimisation Lightning leaves it to us."""
        interval, monitored = self._stepping
        scheduler = self.lr_schedulers()
        if interval != now or not isinstance(scheduler, LRScheduler):
            return
        if isinstance(scheduler, ReduceLROnPlateau):
            metrics = self.trainer.callback_metrics
            if monitored in metrics:  # from the first evaluation on
                scheduler.step(metrics[monitored])
        else:
            scheduler.step()

    def epoch_loss(self) -> float:
        """The mean loss of this epoch's steps, over all processes."""
        if self._epoch_loss is None:
            total = sum_over_ranks(self.loss_sum).item()
            self._epoch_loss = total / (world_size() * int(self.trainer.num_training_batches))
        return self._epoch_loss

    def on_validation_epoch_start(self) -> None:
        loaders = self.trainer.datamodule.evaluated  # type: ignore[attr-defined]
        limits = self.trainer.num_val_batches
        self._collectors = {
            name: Collector(loader.rows, whole=limit >= len(loader))
            for (name, loader), limit in zip(loaders.items(), limits, strict=True)
        }

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keeps what the model says of a batch of the split number `dataloader_idx`."""
        collector = list(self._collectors.values())[dataloader_idx]
        collector.add(batch, logits_and_norm(self.model(batch.inputs)))

    def on_validation_epoch_end(self) -> None:
        """Measures the predictions on each split; callbacks see them as `test_all`, `validation_few`, ..."""
        assert self.metrics is not None
        for split, collector in self._collectors.items():
            found = self.predictions[split] = collector.predictions()
            metrics, _ = self.metrics(found.logits, found.labels, self.objective.logit_scale)
            self.measured |= {f"{split}_{key}": metrics[key] for key in ("all", "many", "medium", "few", "ece")}
        self._collectors = {}
        known = {key: value for key, value in self.measured.items() if value is not None}
        self.log_dict(known, logger=False, sync_dist=True)  # equal on all processes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not checkpoint.get("lr_schedulers"):
            raise CheckpointError("resume.ckpt was written by an earlier version: delete it to train from the start")


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
