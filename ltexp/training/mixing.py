"""Mixing: a batch becomes a mixed batch, and any loss the matching convex combination of two losses."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from hydra.utils import get_class
from torch import Tensor

from ltexp.config import StageConfig
from ltexp.config.build import build
from ltexp.config.require import require
from ltexp.counts import checked_class_counts
from ltexp.data.loader import Batch
from ltexp.distributed import gather_batch, gather_with_gradient, own_rows, world_size
from ltexp.losses.context import WHOLE_BATCH, BatchContext
from ltexp.outputs import ModelOutput
from ltexp.randomness import key_to_seed, numbers
from ltexp.training.inside import Inside

LossInContext = Callable[[ModelOutput, Tensor, BatchContext], Tensor]


class Mixture(NamedTuple):
    """The targets of a mixed batch of n rows.

    Attributes:
        labels: (n,) int64 labels of the batch's own images.
        partner_labels: (n,) int64 labels of the images mixed in.
        weight: what the own label counts for, usually the λ that the images were mixed with; 1 when nothing is mixed
            in. A number, also as a tensor (), or one a row (n,).
        partner_weight: what the other label counts for; None: 1 - weight.
        sample_weights: (n,) what each row counts for in the mean; None: all the same.
    """

    labels: Tensor
    partner_labels: Tensor
    weight: float | Tensor
    partner_weight: float | Tensor | None = None
    sample_weights: Tensor | None = None

    def objective(self, loss: LossInContext, output: ModelOutput, context: BatchContext = WHOLE_BATCH) -> Tensor:
        """weight * loss with the own labels + partner_weight * loss with the others', a scalar, on one forward pass.

        Args:
            loss: called with an output, the labels of its rows, and their context, in which calls are counted.
            output: of the rows `context.part`.
            context: of the batch.
        """
        if self.sample_weights is not None:
            context = replace(context, sample_weights=_times(context, self.sample_weights))
        own = _side(loss, output, self.labels, self.weight, context)
        if isinstance(self.weight, float) and self.weight == 1.0 and self.partner_weight is None:
            return own
        other = 1.0 - self.weight if self.partner_weight is None else self.partner_weight
        return own + _side(loss, output, self.partner_labels, other, context, further_calls=1)


def _side(
    loss: LossInContext,
    output: ModelOutput,
    labels: Tensor,
    weight: float | Tensor,
    context: BatchContext,
    further_calls: int = 0,
) -> Tensor:
    """The loss with one of the two labels of each row, times the weight of that side."""
    if isinstance(weight, Tensor) and weight.ndim > 0:
        context, weight = replace(context, sample_weights=_times(context, weight)), 1.0
    call = context.call + further_calls
    value = loss(output, labels[context.part], replace(context, labels=labels, call=call))
    return value if isinstance(weight, float) and weight == 1.0 else weight * value


def _times(context: BatchContext, weights: Tensor) -> Tensor:
    """The sample weights of the call's rows, times `weights` (n,) of all of this process's rows."""
    return context.weighted(weights[context.part])


class Mixed(NamedTuple):
    """A batch as it is trained on: inputs (n, ...), of images (n, 3, H, W), and their targets.

    `inside` says what is done to it further on, inside the network; None: nothing.
    """

    inputs: Tensor
    targets: Mixture
    inside: Inside | None = None


class Mixing(ABC):
    """Base of the mixings.

    Args:
        class_counts: int64 (C,), the training images of each class.

    Attributes:
        blends: whether it makes new inputs out of several, which images allow and word numbers do not. The loader
            then puts each batch into a random order, for `partners_of`.
        changes_inputs: whether one that blends does so before the network, and not inside it alone. Default true.
        layers: the parts of the backbone, by their dotted names, that its `Mixed.inside` may name. Default none.
        needs_images: whether it cuts or turns images, which features are not.
        streams: the stage's further batches that it reads (`Batch.streams`).
        views: of a mixing that makes something else of each version of an image, how many it takes, of the batch and of
            its streams: its `Mixed.inputs` are (views, n, ...). None: it mixes the one version that there is.
        num_classes: of labels that it makes of the inputs themselves, which take the place of the dataset's: the stage
            and its classifier has as many outputs. None: the labels are the dataset's.
        replayable: whether a call does the same operations in every step, its draws coming from `ltexp.randomness`: it
            can be part of a replayed step (`trainer.step_graph`). Another one is called before it.
    """

    blends: ClassVar[bool] = True
    changes_inputs: bool = True
    layers: Collection[str] = ()
    needs_images: ClassVar[bool] = False
    replayable: ClassVar[bool] = False
    num_classes: ClassVar[int | None] = None
    views: ClassVar[int | None] = None
    streams: Collection[str] = ()

    def __init__(self, class_counts: Tensor) -> None:
        self.class_counts = checked_class_counts(class_counts)

    @abstractmethod
    def __call__(self, batch: Batch, seed: int) -> Mixed:
        """Mix this process's rows of a global batch.

        Args:
            batch: rows rank, rank + world size, ... of the global batch.
            seed: with the batch's epoch and step the key of the draws; equal on every process.
        """

    def examined(self, batch: Batch) -> Batch:
        """An evaluation's batch with the inputs and labels that the stage's model is to answer; by default as it is."""
        return batch

    def check(self, inputs: Tensor) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuses, before training, samples (1, ...) that it cannot work with.

        Raises:
            ConfigError: saying what to choose instead.
        """


class NoMixing(Mixing):
    """The batch as it is."""

    blends = False
    replayable = True

    def __call__(self, batch: Batch, seed: int) -> Mixed:
        """The batch with λ = 1."""
        return Mixed(batch.inputs, Mixture(batch.labels, batch.labels, 1.0))


class Mixup(Mixing):
    """mixup (Zhang et al., ICLR 2018): one λ ~ Beta(α, α) a batch; each image is mixed with one of the same batch.

    A batch is mixed in the same way on any number of processes, see `partners_of`.

    Args:
        class_counts: without effect.
        alpha: α. Default 1.0 (the field's CIFAR setting; 0.2 is usual on the large datasets).

    Raises:
        ConfigError: α not positive. To switch mixup off choose mixing `none`.
    """

    replayable = True

    def __init__(self, class_counts: Tensor, alpha: float = 1.0) -> None:
        super().__init__(class_counts)
        require(alpha > 0, "alpha", alpha, "a number above 0; mixing none switches it off")
        self.alpha = alpha

    def __call__(self, batch: Batch, seed: int) -> Mixed:
        """The mixed batch: λ image + (1 - λ) partner."""

        def drawn(step: int) -> tuple[float, float]:
            weight = self.draw_weight(seed, batch.epoch, step)
            return weight, 1.0 - weight

        weight, other = numbers(drawn, batch.step, batch.inputs.device)
        partners, partner_labels = partners_of(batch)
        return Mixed(batch.inputs.lerp(partners, other), Mixture(batch.labels, partner_labels, weight, other))

    def draw_weight(self, seed: int, epoch: int, step: int) -> float:
        """λ of one batch. NumPy draws it, because torch draws beta variates only from its global generator."""
        draws = np.random.Generator(np.random.PCG64(key_to_seed("mixing", seed, epoch, step)))
        return float(draws.beta(self.alpha, self.alpha))


def partners_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """(inputs, labels) of the row that each of this process's rows is mixed with; see `partner_rows`."""
    return partner_rows(batch.inputs, batch.size), partner_rows(batch.labels, batch.size)


def partner_rows(rows: Tensor, size: int) -> Tensor:
    """The rows that this process's are mixed with, row p of n with p + n // 2 mod n; gradients flow through them.

    The loader has put the global batch into a random order (`Loader`, `shuffle_within`), so partners are random. Of W
    processes, each holds its rows' partners where n / 2 is a multiple of W; elsewhere the batch is gathered on each.

    Args:
        rows: (b, ...) of this process.
        size: n, the rows of the global batch.
    """
    world = world_size()
    if size % (2 * world) == 0 or world == 1:
        return half_turned(rows, size // 2 // world)
    mine = (own_rows(size, rows.device) + size // 2) % size
    return (gather_with_gradient if rows.requires_grad else gather_batch)(rows, size)[mine]


def half_turned(rows: Tensor, shift: int) -> Tensor:
    """The rows from number `shift` on, then those before it; unlike `Tensor.roll` it keeps the strides of images."""
    return torch.cat([rows[shift:], rows[:shift]])


def pretext_of(stage: StageConfig, class_counts: Tensor) -> Mixing | None:
    """The stage's mixing, if that makes the labels that the stage learns; see `Mixing.num_classes`."""
    mixing: Mixing = build(stage.mixing, class_counts=class_counts, path="mixing")
    return None if mixing.num_classes is None else mixing


def blends(stage: StageConfig) -> bool:
    """Whether the stage's mixing makes new inputs out of several; see `Mixing`."""
    chosen: type[Mixing] = get_class(stage.mixing["_target_"])
    return chosen.blends
