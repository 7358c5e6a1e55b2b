"""Losses that add a function of the class prior to the logits in training and nothing at test."""

import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require
from ltexp.counts import checked_class_counts, class_shares
from ltexp.losses.base import Loss, normalized_shares
from ltexp.outputs import ModelOutput


def log_prior(class_counts: Tensor, tau: float = 1.0) -> Tensor:
    """(C,) float32 log(π_c^τ + 1e-12), π_c = n_c / Σn; the small term is the authors' code's."""
    return (class_shares(checked_class_counts(class_counts)).pow(tau) + 1e-12).log().float()


class AdjustedCrossEntropy(Loss):
    """Cross-entropy of the logits plus a fixed vector `adjustment` of shape (C,)."""

    adjustment: Tensor

    def __init__(self, class_counts: Tensor, adjustment: Tensor, scale: float = 1.0) -> None:
        super().__init__(class_counts, scale)
        self.register_buffer("adjustment", adjustment, persistent=False)

    def learned_prior(self, shares: Tensor) -> Tensor:
        """Without what the adjustment stands for; see `Loss`."""
        return normalized_shares(super().learned_prior(shares) * (-self.adjustment.to(shares)).exp())

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) losses."""
        return F.cross_entropy(self.logits(output) + self.adjustment, target, reduction="none")


class BalancedSoftmax(AdjustedCrossEntropy):
    """Balanced softmax (Ren et al., NeurIPS 2020): cross-entropy of z + log n. Meant for instance-balanced samples.

    Args:
        class_counts: (C,) int64.
        scale: see `Loss`.
    """

    def __init__(self, class_counts: Tensor, scale: float = 1.0) -> None:
        super().__init__(class_counts, checked_class_counts(class_counts).double().log().float(), scale)


class LogitAdjustment(AdjustedCrossEntropy):
    """Logit-adjusted cross-entropy (Menon et al., ICLR 2021): cross-entropy of z + τ log π.

    The post-hoc form, which subtracts the same from a trained model's logits, is the classifier `logit_adjusted`.

    Args:
        class_counts: (C,) int64.
        tau: τ. 1 (default, the paper's): balanced softmax; 0: cross-entropy.
        scale: see `Loss`.

    Raises:
        ConfigError: a negative τ.
    """

    def __init__(self, class_counts: Tensor, tau: float = 1.0, scale: float = 1.0) -> None:
        require(tau >= 0, "tau", tau, "a number of 0 or more")
        super().__init__(class_counts, log_prior(class_counts, tau), scale)
