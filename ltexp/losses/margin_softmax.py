"""Softmax losses with a margin on the target's cosine: CosFace, ArcFace and LDAM."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require
from ltexp.counts import checked_class_counts
from ltexp.losses.base import Loss
from ltexp.outputs import ModelOutput


def subtract_at_target_(logits: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    """`logits` (B, C), which it changes, less `margin` (B,) at each row's `target` (B,)."""
    # In place: at thousands of classes a copy of the logits costs as much as the softmax.
    return logits.scatter_add_(1, target[:, None], -margin[:, None])


def require_margin(key: str, margin: float, bound: float = 2.0) -> None:
    """Raises a ConfigError unless 0 <= margin < bound; two cosines differ by 2 at most."""
    require(0 <= margin < bound, key, margin, f"a number of 0 or more and below {bound:.4g}")


class MarginSoftmax(Loss):
    """Cross-entropy of s * (cos_j - m_j [j = y]), with a margin m_j for each class.

    Args:
        class_counts: (C,) int64.
        margins: (C,) float32, m_j.
        scale: s.
    """

    classifier = "cosine"
    margins: Tensor

    def __init__(self, class_counts: Tensor, margins: Tensor, scale: float) -> None:
        super().__init__(class_counts, scale)
        self.register_buffer("margins", margins, persistent=False)

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) losses."""
        logits = subtract_at_target_(self.scale * output.logits.float(), target, self.scale * self.margins[target])
        return F.cross_entropy(logits, target, reduction="none")


class CosFace(MarginSoftmax):
    """CosFace (Wang et al., CVPR 2018): one margin for all classes.

    Args:
        class_counts: (C,) int64.
        margin: m. Default 0.35 (that paper; the settings behind the thesis's tables are not published).
        scale: s. Default 30 (the field's value for cosine classifiers on CIFAR).

    Raises:
        ConfigError: not 0 <= m < 2.
    """

    def __init__(self, class_counts: Tensor, margin: float = 0.35, scale: float = 30.0) -> None:
        require_margin("margin", margin)
        super().__init__(class_counts, torch.full((len(checked_class_counts(class_counts)),), float(margin)), scale)


def ldam_margins(class_counts: Tensor, max_margin: float) -> Tensor:
    """(C,) float32 margins proportional to n_c^(-1/4); the smallest class has `max_margin`."""
    margins = class_counts.double().pow(-0.25)
    return (margins * (max_margin / margins.max())).float()


class LDAM(MarginSoftmax):
    """Label-distribution-aware margins (Cao et al., NeurIPS 2019): m_c proportional to n_c^(-1/4).

    Deferred re-weighting (LDAM-DRW) is not part of it: it is a schedule for any loss.

    Args:
        class_counts: (C,) int64. With equal counts every class has `max_margin`, which is CosFace.
        max_margin: m of the smallest class. Default 0.5 (the authors' code).
        scale: s. Default 30 (the same).

    Raises:
        ConfigError: not 0 <= max_margin < 2.
    """

    def __init__(self, class_counts: Tensor, max_margin: float = 0.5, scale: float = 30.0) -> None:
        require_margin("max_margin", max_margin)
        super().__init__(class_counts, ldam_margins(checked_class_counts(class_counts), max_margin), scale)


def arcface_cosine(cosine: Tensor, margin: float) -> Tensor:
    """cos(θ + m) of each cos θ in `cosine`, and cos θ - m sin m for θ beyond π - m, where cos(θ + m) would rise."""
    # A cosine of 1 up to rounding would have an infinite slope in the sine.
    sine = (1 - cosine.square()).clamp_min(1e-6).sqrt()
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    return torch.where(cosine > -math.cos(margin), turned, cosine - margin * math.sin(margin))


class ArcFace(Loss):
    """ArcFace (Deng et al., CVPR 2019): cross-entropy of s * cos, with cos(θ_y + m) for the target.

    Args:
        class_counts: (C,) int64.
        margin: m, in radians. Default 0.5 (that paper; the settings behind the thesis's tables are not published).
        scale: s. Default 30 (the field's value for cosine classifiers on CIFAR).

    Raises:
        ConfigError: not 0 <= m < π.
    """

    classifier = "cosine"

    def __init__(self, class_counts: Tensor, margin: float = 0.5, scale: float = 30.0) -> None:
        super().__init__(class_counts, scale)
        require_margin("margin", margin, math.pi)
        self.margin = margin

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) losses."""
        cosines = output.logits.float()
        of_target = cosines.gather(1, target[:, None]).squeeze(1)
        margin = self.scale * (of_target - arcface_cosine(of_target, self.margin))
        return F.cross_entropy(subtract_at_target_(self.scale * cosines, target, margin), target, reduction="none")
