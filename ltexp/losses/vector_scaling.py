"""Vector scaling (VS; Kini et al., NeurIPS 2021): every logit has a factor and an offset of its class's own."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require
from ltexp.counts import class_shares
from ltexp.losses.base import Loss, normalized_shares
from ltexp.outputs import ModelOutput


class VectorScaling(Loss):
    """Cross-entropy of z_j / Δ_j + τ log π_j in training, with Δ_j = (n_max / n_j)^γ; plain logits at test.

    Args:
        class_counts: (C,) int64.
        gamma: γ >= 0. Default 0.3 (the authors' code; their example for CIFAR-10 at ratio 100 has 0.2). 0: logit
            adjustment.
        tau: τ >= 0. Default 1 (the authors' code; 1.2 in that example). 0: class-dependent temperatures (CDT).
        scale: see `Loss`.

    Raises:
        ConfigError: a negative γ or τ.
    """

    multiplier: Tensor
    offset: Tensor

    def __init__(self, class_counts: Tensor, gamma: float = 0.3, tau: float = 1.0, scale: float = 1.0) -> None:
        super().__init__(class_counts, scale)
        for key, value in (("gamma", gamma), ("tau", tau)):
            require(value >= 0, key, value, "a number of 0 or more")
        n = class_counts.double()
        self.register_buffer("multiplier", (scale * (n / n.max()).pow(gamma)).float(), persistent=False)
        self.register_buffer("offset", (tau * class_shares(class_counts).log()).float(), persistent=False)

    def learned_prior(self, shares: Tensor) -> Tensor:
        """Without what the offset stands for; the factors are no matter of frequency. See `Loss`."""
        return normalized_shares(super().learned_prior(shares) * (-self.offset.to(shares)).exp())

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) losses."""
        # the scale is part of the multiplier
        adjusted = torch.addcmul(self.offset, output.logits.float(), self.multiplier)
        return F.cross_entropy(adjusted, target, reduction="none")
