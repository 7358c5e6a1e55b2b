"""LADE (Hong et al., CVPR 2021): disentangles the training label distribution from the model's prediction."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require
from ltexp.counts import class_shares
from ltexp.losses.base import Loss, normalized_shares
from ltexp.losses.context import BatchContext
from ltexp.outputs import ModelOutput


class _DensityRatio(torch.autograd.Function):
    """The value of `density_ratio_regularizer`, whose gradient is as good as known once the value is.

    Left to autograd, the gradient takes as long again as the rest of the loss with many classes.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, log_ratio: Tensor, prior: Tensor, penalty: float) -> Tensor:
        rows = target[:, None]
        present = torch.zeros_like(prior).index_add_(0, target, torch.ones_like(prior[target]))
        share = (prior / present.clamp_min(1))[target]
        largest = logits.amax(dim=0)
        powers = (logits - largest).exp_()
        total = powers.sum(dim=0)
        everyone = total.log() + largest - log_ratio - math.log(len(logits))
        value = (prior * everyone * (1 + penalty * everyone)).sum() - (share * logits.gather(1, rows).squeeze(1)).sum()
        slope = prior * (1 + 2 * penalty * everyone) / total
        ctx.save_for_backward(powers.mul_(slope).scatter_add_(1, rows, -share[:, None]))
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # in place, since new memory would cost more; autograd refuses a second backward through the changed tensor
        return gradient.mul_(gradients[0]), None, None, None, None


def density_ratio_regularizer(
    logits: Tensor, target: Tensor, log_ratio: Tensor, prior: Tensor, penalty: float
) -> Tensor:
    """Scalar: sum over classes of -π_c (own_c - all_c - penalty * all_c^2), a regularised Donsker-Varadhan bound.

    own_c is the mean logit z_c of the batch's samples of class c (0 if it has none), all_c the log of the mean over the
    batch of exp(z_c - log π_c - log C).

    Args:
        logits: (B, C) float32.
        target: (B,) int64.
        log_ratio: (C,) log π_c + log C.
        prior: (C,) π_c.
        penalty: factor of the squared term.
    """
    value: Tensor = _DensityRatio.apply(logits, target, log_ratio, prior, penalty)
    return value


class LADE(Loss):
    """Balanced softmax plus α times a regulariser that makes the logits log-density ratios to a uniform prior.

    At test the logits as they are predict under a uniform prior. The regulariser looks at a whole batch: on several
    processes each takes the means of its own rows, as the authors' code does, and with `trainer.accumulate` those of
    each part of them, so it is not exactly that of one process with the same global batch. Class weights (deferred
    re-weighting) concern the first part only.

    Args:
        class_counts: (C,) int64.
        alpha: α >= 0. Default 0.1 (the authors' code; 0.05 on iNaturalist 2018). 0: balanced softmax.
        penalty: factor of the squared log-mean in the regulariser. Default 0.1 (the same; 0.5 on iNaturalist 2018).
        scale: see `Loss`.

    Raises:
        ConfigError: a negative α or penalty.
    """

    prior: Tensor
    log_prior: Tensor
    log_ratio: Tensor

    def __init__(self, class_counts: Tensor, alpha: float = 0.1, penalty: float = 0.1, scale: float = 1.0) -> None:
        super().__init__(class_counts, scale)
        for key, value in (("alpha", alpha), ("penalty", penalty)):
            require(value >= 0, key, value, "a number of 0 or more")
        self.alpha, self.penalty = alpha, penalty
        prior = class_shares(class_counts)
        # the small term is the authors' code's
        log_prior = (prior + 1e-9).log()
        self.register_buffer("prior", prior.float(), persistent=False)
        self.register_buffer("log_prior", log_prior.float(), persistent=False)
        self.register_buffer("log_ratio", (log_prior + math.log(len(prior))).float(), persistent=False)

    def learned_prior(self, shares: Tensor) -> Tensor:
        """Without what the adjustment stands for; see `Loss`."""
        return normalized_shares(super().learned_prior(shares) * (-self.log_prior.to(shares)).exp())

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) losses of the balanced softmax."""
        return F.cross_entropy(self.logits(output) + self.log_prior, target, reduction="none")

    def forward(self, output: ModelOutput, target: Tensor, context: BatchContext | None = None) -> Tensor:
        """The mean of the balanced softmax plus α times the batch's regulariser."""
        context = self.known(context)
        fit = super().forward(output, target, context)
        if self.alpha == 0:
            return fit
        logits, factor = self.logits(output), self.alpha * context.mean_sample_weight
        return fit + factor * density_ratio_regularizer(logits, target, self.log_ratio, self.prior, self.penalty)
