"""The second stage's loss of weight balancing (Alshammari et al., CVPR 2022)."""

import math
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require
from ltexp.losses.base import Loss, normalized_shares
from ltexp.losses.context import BatchContext
from ltexp.losses.reweighting import effective_number_weights
from ltexp.outputs import ModelOutput

NEAR_1 = 1e-7  # a probability nearer to 1 counts as so near


class ClassBalancedBce(Loss):
    """Binary cross-entropy of the softmax's probabilities, the mean over classes, weighted by 1 over effective numbers.

    The authors' "class-balanced softmax". Of C classes it is about 1 / C of a cross-entropy, which is what makes a
    weight decay of 0.1 beside it strong. The sum over a batch is divided by its size, not by its weights.

    Args:
        class_counts: (C,) int64.
        beta: β of the effective numbers, in [0, 1). Default 0.9999 (the authors). 0: unweighted.
        scale: see `Loss`.

    Raises:
        ConfigError: β out of range.
    """

    takes_class_weights: ClassVar[bool] = False
    weights: Tensor

    def __init__(self, class_counts: Tensor, beta: float = 0.9999, scale: float = 1.0) -> None:
        super().__init__(class_counts, scale)
        require(0 <= beta < 1, "beta", beta, "a number of 0 or more and below 1")
        self.register_buffer("weights", effective_number_weights(class_counts, beta), persistent=False)

    def learned_prior(self, shares: Tensor) -> Tensor:
        """With its own weights; see `Loss`."""
        return normalized_shares(super().learned_prior(shares) * self.weights.to(shares))

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses, weighted."""
        log_p = self.logits(output).log_softmax(1)
        summed = cast(Tensor, _LogLikelihoods.apply(log_p, target))
        return -self.weights[target] * summed / self.num_classes


class _LogLikelihoods(torch.autograd.Function):
    """(B,) log p_y + Σ_{c ≠ y} log(1 - p_c) of log p (B, C), in half the passes that autograd would take."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(log_p, target)
        # log(1 - p), without the cancellation of a p near 1
        summands = log_p.clamp_max(-NEAR_1).expm1_().neg_().log_()
        return summands.scatter_(1, target[:, None], log_p.gather(1, target[:, None])).sum(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        log_p, target = ctx.saved_tensors
        slope = F.threshold(torch.expm1(-log_p), NEAR_1, math.inf).reciprocal()  # p / (1 - p)
        own = gradients[0][:, None]
        return (-own * slope).scatter_(1, target[:, None], own), None
