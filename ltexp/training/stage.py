"""The one training loop: a Lightning module that any stage of any method runs in."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
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
from ltexp.losses.context import BatchContext, StreamBatch
from ltexp.models.dropout import KeyedDropout
from ltexp.models.model import Model
from ltexp.outputs import FIELDS, ModelOutput
from ltexp.randomness import key_to_seed
from ltexp.training.mixing import Mixed, Mixing
from ltexp.training.objective import Objective, flat_factors, parameter_groups
from ltexp.training.steps import Step
from ltexp.training.teacher import Teacher


class Stage(pl.LightningModule):
    """Trains a model on a stage's objective; it never asks which method it serves.

    Args:
        model: already started as the stage says, with its trainable parts set.
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
        self.needs = {stream: self.objective.needs_of(stream) for stream in (None, *self.objective.streams)}
        self.stream_seeds = {name: stream_seed(seed, name) for name in self.objective.streams}
        self.mixing: Mixing = build(config.mixing, class_counts=class_counts)
        self.step: Step = build(config.step)
        self.schedule = build(config.schedule)
        self.teacher = teacher
        self.dropouts = [module for module in model.modules() if isinstance(module, KeyedDropout)]
        self.after_step = [hook for m in model.attached.values() if (hook := getattr(m, "after_step", None))]
        self.loader = loader
        self.feeds_classifier = loader is not None and loader.feeds_classifier
        # Summed on the device: reading every step's loss would make the host wait for it. No buffer, or several
        # processes would all be given that of the first.
        self.loss_sum = torch.zeros(())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = dict(self.config.optimizer)
        factors = flat_factors(self.config.lr_factors)
        groups = parameter_groups(self.model, float(settings.pop("lr")), factors)
        if not groups:
            raise ConfigError("nothing to train: set epochs=0, or make a part trainable (stageN.trainable)")
        optimizer: torch.optim.Optimizer = build(settings, groups)
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
        mixed = self.mixing(batch, self.seed)
        self.loss_sum += self.step(self, optimizer, batch, partial(self.backward_pass, batch, mixed))
        for hook in self.after_step:
            hook(self.model)

    def backward_pass(
        self, batch: Batch, mixed: Mixed, sample_weights: Tensor | None = None, again: bool = False
    ) -> Tensor:
        """See `Closure`: forward and backward passes over all parts of a batch."""
        context = self.context_of(batch, again)
        fewest = min(each.size // world_size() for each in (batch, *batch.streams.values()))
        parts = max(1, min(self.accumulate, fewest))
        total: Tensor | None = None
        for number in range(parts):
            with nullcontext() if number == parts - 1 else self._unsynchronised():
                loss = self.loss_of(batch, mixed, (number, parts), context, sample_weights)
                self.manual_backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def context_of(self, batch: Batch, again: bool = False) -> BatchContext:
        """What losses may know of a batch."""
        return BatchContext(
            seed=self.seed,
            epoch=batch.epoch,
            max_epochs=self.config.epochs,
            step=batch.step,
            share=batch.share,
            size=batch.size,
            again=again,
        )

    def loss_of(
        self,
        batch: Batch,
        mixed: Mixed,
        part: tuple[int, int] = (0, 1),
        context: BatchContext | None = None,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """What a part of this process's batch adds to the objective of the global batch.

        Args:
            part: its number, from 0, and of how many.
            context: of the batch; None: `context_of` it.
            sample_weights: (n,), see `Closure`.
        """
        rows = rows_of(len(batch.labels), *part)
        context = replace(context or self.context_of(batch), part=rows)
        if sample_weights is not None:
            context = replace(context, sample_weights=sample_weights[rows])
        output = self._forward(batch, rows, None, mixed.inputs)
        if self.stream_seeds:
            context = replace(context, streams={name: self._of_stream(batch, name, part) for name in self.stream_seeds})
        with torch.autocast(self.device.type, enabled=False):
            loss = self.objective.of_mixture(output, mixed.targets, context)
            loss = loss * (batch.share * len(output.logits) / len(mixed.inputs))
            for name, seed in self.stream_seeds.items():
                own, own_rows = batch.streams[name], rows_of(len(batch.streams[name].labels), *part)
                there = replace(
                    context,
                    seed=seed,
                    share=own.share,
                    size=own.size,
                    part=own_rows,
                    labels=own.labels,
                    sample_weights=None,
                )
                value = self.objective.of_stream(name, there)
                if value is not None:
                    loss = loss + value * (own.share * len(own.labels[own_rows]) / len(own.labels))
        return loss

    def _of_stream(self, batch: Batch, name: str, part: tuple[int, int]) -> StreamBatch:
        """A part of this process's batch of a stream, through the model."""
        own = batch.streams[name]
        rows = rows_of(len(own.labels), *part)
        return StreamBatch(self._forward(own, rows, name, own.inputs), own.labels[rows])

    def _forward(self, batch: Batch, rows: slice, stream: str | None, inputs: Tensor) -> ModelOutput:
        """The model's output, in float32, of some rows of a batch whose inputs may be mixed."""
        self._key_dropouts(self.seed if stream is None else self.stream_seeds[stream], batch, rows)
        views = 1 if batch.views is None else len(batch.views)
        given = inputs[rows] if batch.views is None else batch.views[:, rows].flatten(0, 1)
        return in_float32(self.output_of(given, batch.labels[rows], views, stream))

    def _key_dropouts(self, seed: int, batch: Batch, rows: slice) -> None:
        for dropout in self.dropouts:
            dropout.set_step(seed, batch.epoch, batch.step, batch.size, rows)

    def _unsynchronised(self) -> AbstractContextManager[object]:
        """Within the block gradients stay on their process; the last part's backward pass sums up all."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.gradient_clip is not None:  # by now fp16's scaling is undone
            self.clip_gradients(optimizer, self.gradient_clip, "norm")

    def output_of(self, inputs: Tensor, labels: Tensor, views: int = 1, stream: str | None = None) -> ModelOutput:
        """What the objective reads of a batch; of several views the inputs are given view by view."""
        needs, teacher = self.needs[stream], self.teacher
        if self.feeds_classifier:
            output = self.model.classify(inputs, needs, labels)
        else:
            output = self.model(inputs, needs, views, labels)
        if teacher is not None:
            (teacher.classify if self.feeds_classifier else teacher)(inputs[: len(labels)], output)
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


def stream_seed(seed: int, name: str) -> int:
    """The seed of a stream's draws, of a stage with the seed `seed`."""
    return key_to_seed("stream", seed, name)


def rows_of(rows: int, number: int, parts: int) -> slice:
    """The part `number`, from 0, of `rows` rows cut into as many of about the same size."""
    return slice(rows * number // parts, rows * (number + 1) // parts)


def in_float32(output: ModelOutput) -> ModelOutput:
    """The output with its tensors in float32: under autocast the network runs in half precision, losses do not.

    Lists of maps stay as they are: a loss sums them up in float32 without a copy of them.
    """

    def lift(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    extra = {name: lift(value) for name, value in output.extra.items()}
    return replace(output, extra=extra, **{name: lift(getattr(output, name)) for name in FIELDS})
