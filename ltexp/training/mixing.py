"""Mixing: a batch becomes a mixed batch, and any loss the matching convex combination of two losses."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ltexp.config.require import require
from ltexp.distributed import gather_batch, rank, world_size
from ltexp.outputs import ModelOutput
from ltexp.randomness import generator, key_to_seed


class Mixture(NamedTuple):
    """The targets of a mixed batch of n rows.

    Attributes:
        labels: (n,) int64 labels of the batch's own images.
        partner_labels: (n,) int64 labels of the images mixed in.
        weight: λ, what the own images and labels count for; 1 when nothing is mixed in.
    """

    labels: Tensor
    partner_labels: Tensor
    weight: float

    def objective(self, loss: Callable[[ModelOutput, Tensor], Tensor], output: ModelOutput) -> Tensor:
        """λ loss(output, labels) + (1 - λ) loss(output, partner_labels), a scalar, on one forward pass."""
        own = loss(output, self.labels)
        if self.weight == 1.0:
            return own
        return self.weight * own + (1.0 - self.weight) * loss(output, self.partner_labels)


class Mixed(NamedTuple):
    """A batch as it is trained on: inputs (n, ...), of images (n, 3, H, W), and their targets."""

    inputs: Tensor
    targets: Mixture


class Mixing(ABC):
    """Base of the mixings.

    Attributes:
        blends: whether it makes new inputs out of several, which images allow and word numbers do not.
    """

    blends: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, inputs: Tensor, labels: Tensor, *, size: int, seed: int, epoch: int, step: int) -> Mixed:
        """Mix this process's rows of a global batch.

        Args:
            inputs: (n, ...) float32, of images (n, 3, H, W), rows rank, rank + world size, ... of the global batch.
            labels: (n,) int64 of the same rows.
            size: rows of the global batch.
            seed: with `epoch` and `step` the key of the draws; equal on every process.
            epoch: from 0.
            step: from 0 within the epoch.
        """


class NoMixing(Mixing):
    """The batch as it is."""

    blends = False

    def __call__(self, inputs: Tensor, labels: Tensor, *, size: int, seed: int, epoch: int, step: int) -> Mixed:
        """The batch with λ = 1."""
        return Mixed(inputs, Mixture(labels, labels, 1.0))


class Mixup(Mixing):
    """mixup (Zhang et al., ICLR 2018): one λ ~ Beta(α, α) a batch; each image is mixed with one of the same batch.

    The partners are a random permutation of the global batch, so that a batch is mixed in the same way on one process
    and on several, at the price of gathering the batch on each.

    Args:
        alpha: α. Default 1.0 (the field's CIFAR setting; 0.2 is usual on the large datasets).

    Raises:
        ConfigError: α not positive. To switch mixup off choose mixing `none`.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        require(alpha > 0, "alpha", alpha, "a number above 0; mixing none switches mixup off")
        self.alpha = alpha

    def __call__(self, inputs: Tensor, labels: Tensor, *, size: int, seed: int, epoch: int, step: int) -> Mixed:
        """The mixed batch: λ image + (1 - λ) partner."""
        weight = self.draw_weight(seed, epoch, step)
        permutation = torch.randperm(size, generator=generator("mixing", seed, epoch, step))
        # A process without rows holds the batch's last row as a stand-in; its partner does not matter.
        mine = permutation[rank() :: world_size()] if rank() < size else permutation[-1:]
        mine = mine.to(inputs.device, non_blocking=True)
        partners = gather_batch(inputs, size)[mine]
        partner_labels = gather_batch(labels, size)[mine]
        return Mixed(inputs.lerp(partners, 1.0 - weight), Mixture(labels, partner_labels, weight))

    def draw_weight(self, seed: int, epoch: int, step: int) -> float:
        """λ of one batch. NumPy draws it, because torch draws beta variates only from its global generator."""
        draws = np.random.Generator(np.random.PCG64(key_to_seed("mixing", seed, epoch, step)))
        return float(draws.beta(self.alpha, self.alpha))
