"""The one training loop: a Lightning module that any stage of any method runs in."""

import inspect
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.strategies import ParallelStrategy
from pytorch_lightning.utilities import GradClipAlgorithmType
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ltexp.config import StageConfig
from ltexp.config.build import build
from ltexp.data.loader import Batch, Loader, Recipe, stream_seed
from ltexp.distributed import sum_over_ranks, world_size
from ltexp.errors import CheckpointError, ConfigError
from ltexp.evaluation.metrics import Metrics
from ltexp.losses.context import BatchContext, StreamBatch, Survey
from ltexp.models.dropout import KeyedDropout
from ltexp.models.model import Model, without_autocast
from ltexp.outputs import ModelOutput, in_float32
from ltexp.randomness import default_generator
from ltexp.training.evaluated import EvaluatedModule
from ltexp.training.groups import parameter_groups
from ltexp.training.inside import acting
from ltexp.training.mixing import Mixed, Mixing
from ltexp.training.objective import Objective
from ltexp.training.replayable import replayable_optimizer
from ltexp.training.schedules import build_schedule
from ltexp.training.step_graph import StepGraph
from ltexp.training.steps import build_step
from ltexp.training.teacher import Teachers


class Stage(EvaluatedModule):
    """Trains a model on a stage's objective; it never asks which method it serves.

    Args:
        model: already started as the stage says, with its trainable parts set.
        config: the stage.
        class_counts: int64 (C,), the training images of each class.
        seed: of this stage's random draws.
        teachers: whose answers the objective may read.
        loader: of the batches; one of features feeds the classifier alone.
        accumulate: parts that each process takes its rows of a batch in, one after the other, before the step. The step
            is the whole batch's: so are mixing, draws and weights by class. Batch norm in training normalises by part,
            and its running statistics move with each; LADE's regulariser is of a part.
        gradient_clip: the largest norm, or value, of the gradient; None: any.
        gradient_clip_by: `norm` or `value`.
        metrics: see `EvaluatedModule`.
        survey: of the stage's splits, for losses that take one before an epoch.
        replayed: whether steps are replayed from a graph (`ltexp.training.step_graph`).
    """

    def __init__(
        self,
        model: Model,
        config: StageConfig,
        class_counts: Tensor,
        seed: int,
        teachers: Teachers | None = None,
        loader: Loader[Any] | None = None,
        accumulate: int = 1,
        gradient_clip: float | None = None,
        gradient_clip_by: str = "norm",
        metrics: Metrics | None = None,
        survey: Survey | None = None,
        replayed: bool = False,
    ) -> None:
        mixing: Mixing = build(config.mixing, class_counts=class_counts, path="mixing")
        super().__init__(model, mixing, metrics)
        self.automatic_optimization = False  # the gradients of a batch may come in parts
        self.accumulate, self.gradient_clip, self.gradient_clip_by = accumulate, gradient_clip, gradient_clip_by
        self._stepping: list[str | None] = ["epoch", None]  # how often the schedule steps, and what it watches
        self._epoch_loss: float | None = None
        self.config = config
        self.seed = seed
        self.objective = Objective(config, class_counts)
        self.needs = {stream: self.objective.needs_of(stream) for stream in (None, *self.objective.streams)}
        self.stream_seeds = {name: stream_seed(seed, name) for name in self.objective.streams}
        with default_generator("init", seed, "step"):
            self.step = build_step(config.step, class_counts)
        self.own_optimizers: dict[str, torch.optim.Optimizer] = {}
        self._resumed: dict[str, dict[str, Any]] = {}  # states of these
        self.teachers, self.survey = teachers or Teachers(), survey
        self.teacher = self.teachers.one
        self.dropouts = [module for module in model.modules() if isinstance(module, KeyedDropout)]
        parts = (model.classifier, *model.attached.values())
        self.after_step = [hook for part in parts if (hook := getattr(part, "after_step", None))]
        self.feeds_classifier = loader is not None and loader.feeds_classifier
        self.graph = StepGraph(loader, self.mixing) if replayed and loader is not None else None
        # Summed on the device: reading every step's loss would make the host wait for it. No buffer, or several
        # processes would all be given that of the first.
        self.loss_sum = torch.zeros(())

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            self.__dict__[name] = value  # Lightning notes each hook that it calls; a module would look for parameters
        else:
            super().__setattr__(name, value)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The stage's optimizer and learning-rate schedule."""
        settings = dict(self.config.optimizer) | (replayable_optimizer(self.config) if self.graph else {})
        settings.pop("lr")
        groups = parameter_groups(self.model, self.config)
        if not groups:
            raise ConfigError("nothing to train: set epochs=0, or make a part trainable (trainable)")
        optimizer: torch.optim.Optimizer = build(settings, groups, path="optimizer")
        self.own_optimizers = dict(self.step.optimizers(self.model))
        for name, state in self._resumed.items():
            self.own_optimizers[name].load_state_dict(state)
        self.trainer.fit_loop.setup_data()  # steps of an epoch are known from then on
        steps = int(self.trainer.num_training_batches)
        scheduler, *self._stepping = build_schedule(self.config.schedule, optimizer, self.config.epochs, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}

    def on_train_epoch_start(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device)
        self.forget_evaluation()
        self._epoch_loss = None
        if self.survey is not None:
            self.objective.before_epoch(self.current_epoch, self.config.epochs, self.survey)

    def training_step(self, batch: Batch | Recipe, _: int) -> None:
        """One step of the optimizer; on what a batch is made of where making it is a part of a replayed step."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        if self.graph is not None:
            self.graph(self, optimizer, batch)
        else:
            assert isinstance(batch, Batch)
            self.take_step(optimizer, batch, self.mixing(batch, self.seed))

    def take_step(self, optimizer: LightningOptimizer, batch: Batch, mixed: Mixed) -> None:
        """The step on a batch and what the mixing made of it."""
        if self.mixing.views is not None:
            batch, mixed = batch._replace(views=mixed.inputs), mixed._replace(inputs=mixed.inputs[0])
        self.loss_sum.add_(self.step(self, optimizer, batch, partial(self.backward_pass, batch, mixed)))
        for hook in self.after_step:
            hook(self.model)

    def backward_pass(
        self,
        batch: Batch,
        mixed: Mixed,
        sample_weights: Tensor | None = None,
        again: bool = False,
        instead: Mixed | None = None,
    ) -> Tensor:
        """See `Closure`: forward and backward passes over all parts of a batch."""
        mixed = mixed if instead is None else instead
        context = self.context_of(batch, again)
        parts = self._parts_of(batch) if self.accumulate > 1 else 1
        total: Tensor | None = None
        for number in range(parts):
            with nullcontext() if number == parts - 1 else self._unsynchronised():
                loss = self.loss_of(batch, mixed, (number, parts), context, sample_weights)
                if not loss.requires_grad:
                    raise ConfigError("its loss reads nothing that is trained: choose another, or see trainable")
                self.manual_backward(loss)
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        return total

    def _parts_of(self, batch: Batch) -> int:
        """How many parts the rows of a batch are taken in."""
        fewest = min(each.size // world_size() for each in (batch, *batch.streams.values()))
        return max(1, min(self.accumulate, fewest))

    def context_of(self, batch: Batch, again: bool = False) -> BatchContext:
        """What losses may know of a batch."""
        return BatchContext(
            seed=self.seed,
            epoch=batch.epoch,
            max_epochs=self.config.epochs,
            step=batch.step,
            share=batch.share,
            size=batch.size,
            index=batch.index,
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
        with acting(self.model.backbone, mixed.inside):
            output = self._forward(batch, rows, None, mixed.inputs, mixed.targets.labels)
        if self.stream_seeds:
            context = replace(context, streams={name: self._of_stream(batch, name, part) for name in self.stream_seeds})
        with without_autocast(self.device.type):
            loss = self.objective.of_mixture(output, mixed.targets, context)
            factor = batch.share * len(output.logits) / len(mixed.inputs)
            loss = loss if factor == 1.0 else loss * factor
            for name, seed in self.stream_seeds.items():
                own, own_rows = batch.streams[name], rows_of(len(batch.streams[name].labels), *part)
                there = replace(
                    context,
                    seed=seed,
                    share=own.share,
                    size=own.size,
                    part=own_rows,
                    labels=own.labels,
                    index=own.index,
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
        return StreamBatch(self._forward(own, rows, name, own.inputs, own.labels), own.labels[rows])

    def _forward(self, batch: Batch, rows: slice, stream: str | None, inputs: Tensor, labels: Tensor) -> ModelOutput:
        """The model's output, in float32, of some rows of a batch whose inputs and labels may not be its own."""
        views = 1 if batch.views is None else len(batch.views)
        shown = 1 if views > 1 and not self.model.sees_all_views(self.needs[stream]) else views
        self._key_dropouts(self.seed if stream is None else self.stream_seeds[stream], batch, rows, shown)
        given = inputs[rows] if batch.views is None else batch.views[:, rows].flatten(0, 1)
        return in_float32(self.output_of(given, labels[rows], views, stream))

    def _key_dropouts(self, seed: int, batch: Batch, rows: slice, views: int) -> None:
        for dropout in self.dropouts:
            dropout.set_step(seed, batch.epoch, batch.step, batch.size, rows, views)

    def _unsynchronised(self) -> AbstractContextManager[object]:
        """Within the block gradients stay on their process; the last part's backward pass sums up all."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.gradient_clip is not None:  # by now fp16's scaling is undone
            plugin, by = self.trainer.precision_plugin, GradClipAlgorithmType(self.gradient_clip_by)
            # without a scaler the base's: that of mixed precision refuses fused optimizers even then
            kind = type(plugin) if getattr(plugin, "scaler", None) else Precision
            kind.clip_gradients(plugin, optimizer, self.gradient_clip, by)

    def output_of(self, inputs: Tensor, labels: Tensor, views: int = 1, stream: str | None = None) -> ModelOutput:
        """What the objective reads of a batch; of several views the inputs are given view by view."""
        needs = self.needs[stream]
        if self.feeds_classifier:
            output = self.model.classify(inputs, needs, labels)
        else:
            output = self.model(inputs, needs, views, labels, self.objective.branch_of(stream))
        first = inputs if views == 1 else inputs[: len(labels)]
        self.teachers.answer(first, output, needs, self.feeds_classifier)
        return output

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._step_schedule("step")

    def on_train_epoch_end(self) -> None:
        self.objective.end_epoch()
        self.trainer.datamodule.end_epoch(self.current_epoch)  # type: ignore[attr-defined]
        self.log("train_loss", self.epoch_loss(), logger=False, sync_dist=True)  # for callbacks; Monitor tells loggers
        self._step_schedule("epoch")

    def _step_schedule(self, now: str) -> None:
        """With manual optimisation Lightning leaves it to us."""
        interval, monitored = self._stepping
        if interval != now or not isinstance(scheduler := self.lr_schedulers(), LRScheduler):
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
            taken = self.trainer.fit_loop.epoch_loop.batch_idx + 1  # fewer than all where the stage is stopped
            self._epoch_loss = total / (world_size() * taken)
        return self._epoch_loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what the backbone's file holds; has the state of the step's own optimizers."""
        checkpoint["own_optimizers"] = {name: own.state_dict() for name, own in self.own_optimizers.items()}
        for name in self._in_file():
            del checkpoint["state_dict"][name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts in what was left out, of the model as it started."""
        if not checkpoint.get("lr_schedulers"):
            raise CheckpointError("resume.ckpt was written by an earlier version: delete it to train from the start")
        self._resumed = checkpoint.get("own_optimizers", {})
        own = self.state_dict()
        checkpoint["state_dict"] |= {name: own[name] for name in self._in_file()}

    def _in_file(self) -> list[str]:
        return [f"model.backbone.{name}" for name in self.model.backbone.in_file()]


# Lightning asks for it at each step, and working it out takes longer than to call the method
Stage.training_step.__signature__ = inspect.signature(Stage.training_step)  # type: ignore[attr-defined]


def rows_of(rows: int, number: int, parts: int) -> slice:
    """The part `number`, from 0, of `rows` rows cut into as many of about the same size."""
    return slice(rows * number // parts, rows * (number + 1) // parts)
