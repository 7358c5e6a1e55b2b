"""Implicit semantic augmentation: cross-entropy over features spread by the covariance of their class."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require
from ltexp.counts import checked_class_counts
from ltexp.epochs import A_POINT, has_started, is_point
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.losses.margin_softmax import ldam_margins, require_margin, subtract_at_target_
from ltexp.outputs import ModelOutput


class ImplicitAugmentation(Loss):
    """Cross-entropy of z_j + (r / 2) (w_j - w_y)ᵀ S_y (w_j - w_y) - m_y [j = y] (MetaSAug, Li et al., CVPR 2021).

    S_y is the covariance of the features of class y, and r = strength * e / E grows with the epoch e, from 0, of E:
    the bound of the expected cross-entropy over features drawn with the covariance r S_y (ISDA). m are LDAM's margins.
    Until `start` it is plain cross-entropy.

    Args:
        class_counts: (C,) int64.
        strength: the factor of e / E. Default 0.75 (the authors' commands for CIFAR-100); 0.25 on ImageNet-LT.
        start: a fraction of the stage (below 1) or a whole epoch from 0. Default 0.8, epoch 160 of 200 (the same).
        max_margin: m of the smallest class, in logits. Default 0.5 (the LDAM form); 0: no margins (the CE form).
        scale: see `Loss`. Default 1: the authors' code stores s = 30 and does not apply it.

    Raises:
        ConfigError: a setting out of range.
    """

    classifier = "linear"
    needs: ClassVar[frozenset[str]] = frozenset({"logit_spread"})

    margins: Tensor

    def __init__(
        self,
        class_counts: Tensor,
        strength: float = 0.75,
        start: float = 0.8,
        max_margin: float = 0.5,
        scale: float = 1.0,
    ) -> None:
        super().__init__(class_counts, scale)
        require(strength >= 0, "strength", strength, "a number of 0 or more")
        require(is_point(start), "start", start, A_POINT)
        require_margin("max_margin", max_margin, float("inf"))
        self.strength, self.start = strength, start
        self.register_buffer("margins", ldam_margins(checked_class_counts(class_counts), max_margin), persistent=False)

    def check_epochs(self, epochs: int) -> None:
        """A start within the stage."""
        has_started("start", self.start, 0, epochs)

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses."""
        logits = self.logits(output)
        if has_started("start", self.start, context.epoch, context.max_epochs):
            ratio = self.strength * context.epoch / context.max_epochs
            logits = logits + ratio / 2 * output.extra["logit_spread"].float()
            logits = subtract_at_target_(logits, target, self.margins[target])
        return F.cross_entropy(logits, target, reduction="none")
