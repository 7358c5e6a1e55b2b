"""Cumulative learning over two branches (BBN, Zhou et al., CVPR 2020)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.outputs import ModelOutput

REVERSED = "reversed"  # the stream of the second branch


class CumulativeLearning(Loss):
    """λ CE(z, y) + (1 - λ) CE(z, y') of z = λ z_u + (1 - λ) z_r, with λ = 1 - (e / E)² in epoch e (Eqs. 1, 3, 5).

    z_u are the logits of the stage's batch, labels y, through the first branch alone; z_r those of the stream
    `reversed`, labels y', through the second, paired row by row. Either counts for both branches
    (`ltexp.models.branches`), so that z is the head's answer to 2 [λ f_u; (1 - λ) f_r], and in evaluation that to
    [f_u; f_r], the mean of the two.

    Args:
        class_counts: (C,) int64.
        length: after how many times the stage's epochs λ would be 0. Default 1: in the last epoch it is a little above.
            The authors' code has 200 for 180 epochs and 100 for 90, 10/9.

    Raises:
        ConfigError: a length below 1.
    """

    classifier = "linear"
    streams = frozenset({REVERSED})
    branches: ClassVar[Mapping[str | None, int]] = {None: 0, REVERSED: 1}
    takes_class_weights = False  # a row has two labels

    def __init__(self, class_counts: Tensor, length: float = 1.0) -> None:
        super().__init__(class_counts)
        require(length >= 1, "length", length, "a number of 1 or more")
        self.length = length

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses of the pairs of rows."""
        stream, weight = context.streams[REVERSED], self.weight_in(context.epoch, context.max_epochs)
        logits = torch.lerp(self.logits(stream.output), self.logits(output), weight)
        both = F.log_softmax(logits, dim=1).gather(1, torch.stack([target, stream.labels], dim=1))
        return -(weight * both[:, 0] + (1.0 - weight) * both[:, 1])

    def weight_in(self, epoch: int, max_epochs: int) -> float:
        """λ in an epoch, from 0."""
        return 1.0 - (epoch / (self.length * max_epochs)) ** 2
