"""Feature-balanced loss (FBL): a growing stimulus towards larger feature norms for rare classes."""

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require, require_choice
from ltexp.errors import ConfigError
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.outputs import ModelOutput

Growth = Literal["parabolic", "linear", "sine", "cosine", "linear_decrease"]
REACH = {"parabolic": 0.95}  # of the other curves: 1
GROWTHS = ("parabolic", "linear", "sine", "cosine", "linear_decrease")


def log_rarity(class_counts: Tensor) -> Tensor:
    """(C,) float64 (log n_max - log n_c) over its maximum: 0 at the largest class, 1 at the smallest, 0 if equal."""
    rarity = class_counts.double().log()
    rarity = rarity.max() - rarity
    return rarity / rarity.max() if rarity.max() > 0 else rarity


def growth_curve(growth: Growth, progress: float) -> float:
    """α(t) up to its factor, at t / T = `progress` (Table 4.4); a decreasing curve stays at 0 once it is there."""
    if growth == "parabolic":
        return progress**2
    if growth == "linear":
        return progress
    if growth == "sine":
        return math.sin(progress * math.pi / 2)
    if growth == "cosine":
        return 1 - math.cos(progress * math.pi / 2)
    return max(1 - progress, 0.0)


def feature_balanced_logits(logits: Tensor, features: Tensor, rarity: Tensor, alpha: float) -> Tensor:
    """(B, C) logits z_j - α λ_j / ||f|| (Eq. 4.6).

    The gradient through the norm is the point of the loss: it is what makes the features of rare classes grow.

    Args:
        logits: (B, C) float32.
        features: (B, D) float32.
        rarity: (C,) λ.
        alpha: α.
    """
    return torch.addr(logits, alpha / (features.norm(dim=1) + 1e-12), rarity, alpha=-1)


class FeatureBalanced(Loss):
    """FBL (Li Mengke's thesis, Ch. 4): cross-entropy of z_j - α(t) λ_j / ||f|| over all classes j (Eqs. 4.6-4.8).

    λ_c is log n_max - log n_c (Eq. 4.4) divided by its maximum, as in the authors' code; the thesis omits the division.
    α(t) = strength * g(t / T), with t the epoch from 0. Prediction uses the plain logits.

    Args:
        class_counts: (C,) int64. With equal counts the loss is cross-entropy.
        strength: α's factor. Default 60 (the authors' code on CIFAR; 150 on ImageNet-LT, iNaturalist 2018, Places-LT).
        growth: g, one of Table 4.4: "parabolic" (default, (t/T)^2), "linear" (t/T), "sine" (sin(π/2 t/T)),
            "cosine" (1 - cos(π/2 t/T)) or "linear_decrease" (1 - t/T).
        reach: T as a fraction of the stage's epochs. Default None: 0.95 for the parabola, whose T is 190 of 200 epochs
            (the authors' code, which has 10 epochs less than the stage there), so that it passes 1 in the last
            epochs, and 1 for the other curves (that code and the thesis).
        scale: see `Loss`.

    Raises:
        ConfigError: a negative strength, an unknown growth, a reach outside (0, 1]; a stage without epochs, an output
            without features.
    """

    rarity: Tensor

    needs: ClassVar[frozenset[str]] = frozenset({"features"})

    def __init__(
        self,
        class_counts: Tensor,
        strength: float = 60.0,
        growth: Growth = "parabolic",
        reach: float | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__(class_counts, scale)
        require(strength >= 0, "strength", strength, "a number of 0 or more")
        require_choice("growth", growth, GROWTHS)
        reach = REACH.get(growth, 1.0) if reach is None else reach
        require(0 < reach <= 1, "reach", reach, "a fraction of the stage above 0, at most 1")
        self.strength, self.growth, self.reach = strength, growth, reach
        self.register_buffer("rarity", log_rarity(class_counts).float(), persistent=False)

    def set_progress(self, epoch: int, max_epochs: int, step: int = 0) -> None:
        """As `Loss`."""
        if max_epochs < 1:
            raise ConfigError(f"loss feature_balanced grows over the epochs of its stage, and there are {max_epochs}")
        super().set_progress(epoch, max_epochs, step)

    def alpha(self, epoch: int, max_epochs: int) -> float:
        """α(t) in `epoch` (from 0) of `max_epochs`."""
        return self.strength * growth_curve(self.growth, epoch / (self.reach * max_epochs))

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses."""
        assert output.features is not None
        alpha = self.alpha(context.epoch, context.max_epochs)
        logits = feature_balanced_logits(self.logits(output), output.features.float(), self.rarity, alpha)
        return F.cross_entropy(logits, target, reduction="none")
