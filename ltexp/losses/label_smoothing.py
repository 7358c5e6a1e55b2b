"""Label smoothing: the target class gives up a little of its probability to the others."""

from typing import Literal

import torch
from torch import Tensor

from ltexp.config.require import require, require_choice
from ltexp.losses.base import Loss
from ltexp.outputs import ModelOutput

Spread = Literal["others", "all"]
SPREADS = ("others", "all")


def smoothed_cross_entropy(logits: Tensor, target: Tensor, smoothing: float | Tensor, spread: Spread) -> Tensor:
    """(B,) cross-entropy against smoothed targets.

    Args:
        logits: (B, C) float32.
        target: (B,) int64.
        smoothing: the factor ε in [0, 1) of every sample, or (B,) one for each.
        spread: "others" gives the target 1 - ε and each other class ε / (C - 1);
            "all" gives the target 1 - ε + ε / C and each other class ε / C.
    """
    log_p = torch.log_softmax(logits, dim=1)
    of_target = log_p.gather(1, target[:, None]).squeeze(1)
    elsewhere = (log_p.sum(dim=1) - of_target) / (logits.shape[1] - 1) if spread == "others" else log_p.mean(dim=1)
    return (smoothing - 1) * of_target - smoothing * elsewhere


class LabelSmoothing(Loss):
    """Label smoothing (Szegedy et al., CVPR 2016) with one factor for all classes.

    Args:
        class_counts: (C,) int64.
        epsilon: the smoothing factor, 0 <= ε < 1. Default 0.1, as in that paper.
        spread: "all" (default, that paper's form: ε / C on every class) or "others" (ε / (C - 1) off the target).
        scale: see `Loss`.

    Raises:
        ConfigError: ε out of range, or an unknown spread.
    """

    def __init__(self, class_counts: Tensor, epsilon: float = 0.1, spread: Spread = "all", scale: float = 1.0) -> None:
        super().__init__(class_counts, scale)
        require(0 <= epsilon < 1, "epsilon", epsilon, "a number of 0 or more and below 1")
        require_choice("spread", spread, SPREADS)
        self.epsilon, self.spread = epsilon, spread

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) losses."""
        return smoothed_cross_entropy(self.logits(output), target, self.epsilon, self.spread)
