"""Key point sensitive loss (KPS): radii, margins and, late in training, scales that follow the class sizes."""

import math

import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require
from ltexp.epochs import A_POINT, has_started, is_point
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.losses.margin_softmax import require_margin, subtract_at_target_
from ltexp.outputs import ModelOutput


def key_point_radii(class_counts: Tensor, base_count: float) -> Tensor:
    """(C,) float64 radii r_c = log(base_count n_c / n_min) / log(base_count): 1 at the smallest class (Eq. 3.27)."""
    n = class_counts.double()
    return (base_count * n / n.min()).log() / math.log(base_count)


class KeyPoint(Loss):
    """KPS (Li Mengke's thesis, Ch. 3), with and without gradient adjustment (GA).

    Cross-entropy of s * (r_j cos_j - m_j [j = y]) (Eq. 3.16). Once GA is on, the scale of a sample's own class takes
    the place of s in its whole row (Eq. 3.26). With m' = r_max + 1 - r_c, the margins are max_margin m'_c / m'_max and
    the scales s m'_c (Eqs. 3.28-3.30). The authors' code takes the margins from the list of radii reversed, which is
    the same only where the classes are sorted by size; this follows the equations.

    Prediction uses the plain cosines, as in the authors' code, and s as their temperature (`logit_scale`): neither the
    radii, which favour frequent classes, nor the scale of a class that is not known apply at test.

    Args:
        class_counts: (C,) int64. With equal counts all r are 1, which is CosFace with margin `max_margin`.
        max_margin: m of the smallest class. Default 0.5 (Sec. 3.5.2, CIFAR; 0.35 on ImageNet-LT, 0.3 on iNaturalist
            2018); the authors' code has 0.2 on CIFAR.
        base_count: n_base, to which the smallest class is rescaled before the logarithm. Default 50 (Sec. 3.5.2).
        gradient_adjustment: whether GA is used. Default true; false is "KPS w/o GA" of Table 3.4.
        start: when GA begins: a fraction of the stage (below 1) or a whole epoch counted from 0. Default 0.6 (the
            authors' code: epoch 120 of 200).
        max_scale: bound on the scales s_c, or null for none. Default 50 (the authors' code).
        scale: s. Default 15 (Sec. 3.5.2).

    Raises:
        ConfigError: max_margin, base_count, start or max_scale out of range.
    """

    classifier = "cosine"
    radii: Tensor
    margins: Tensor
    scales: Tensor

    def __init__(
        self,
        class_counts: Tensor,
        max_margin: float = 0.5,
        base_count: float = 50.0,
        gradient_adjustment: bool = True,
        start: float = 0.6,
        max_scale: float | None = 50.0,
        scale: float = 15.0,
    ) -> None:
        super().__init__(class_counts, scale)
        require_margin("max_margin", max_margin)
        require(base_count > 1, "base_count", base_count, "a number above 1")
        require(is_point(start), "start", start, A_POINT)
        grows = max_scale is None or max_scale >= scale
        require(grows, "max_scale", max_scale, f"null, or a number of at least scale={scale}")
        self.gradient_adjustment, self.start = gradient_adjustment, start
        radii = key_point_radii(class_counts, base_count)
        reversed_radii = radii.max() + 1 - radii
        self.register_buffer("radii", radii.float(), persistent=False)
        margins = reversed_radii * (max_margin / reversed_radii.max())
        self.register_buffer("margins", margins.float(), persistent=False)
        self.register_buffer("scales", (scale * reversed_radii).clamp(scale, max_scale).float(), persistent=False)

    def check_epochs(self, epochs: int) -> None:
        """See `Loss`: gradient adjustment, if it is on, starts within the stage."""
        self.adjusts_gradients(0, epochs)

    def adjusts_gradients(self, epoch: int, max_epochs: int) -> bool:
        """Whether GA is on in `epoch` (from 0) of `max_epochs`."""
        return self.gradient_adjustment and has_started("start", self.start, epoch, max_epochs)

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses."""
        logits = output.logits.float() * (self.scale * self.radii)
        margin = self.scale * self.margins[target]
        if self.adjusts_gradients(context.epoch, context.max_epochs):
            relative = self.scales[target] / self.scale
            logits, margin = logits.mul_(relative[:, None]), margin * relative
        return F.cross_entropy(subtract_at_target_(logits, target, margin), target, reduction="none")
