"""Distillation terms: what a student's prediction loses against its teacher's. Each is the distillation term alone."""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require, require_choice
from ltexp.epochs import A_POINT, has_started, is_point
from ltexp.errors import ConfigError
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.losses.cross_entropy import inverse_frequency_weights
from ltexp.losses.reweighting import effective_number_weights
from ltexp.outputs import ModelOutput

Weighting = Literal["effective_number", "inverse_frequency"]
WEIGHTINGS = ("effective_number", "inverse_frequency")


def divergence(log_target: Tensor, log_prediction: Tensor) -> Tensor:
    """(..., B) KL(target || prediction) of log-distributions (B, C) and (..., B, C); never below zero by rounding."""
    return (log_target.exp() * (log_target - log_prediction)).sum(-1).clamp_min(0.0)


def balanced_log_target(teacher_logits: Tensor, temperature: float, weights: Tensor) -> Tensor:
    """(B, C) log of w_i p_i / sum_j w_j p_j with p = softmax(z / T), the target of BKD's Eq. 8.

    The weights multiply after the softmax, so T does not temper them, and their common scale cancels.

    Args:
        teacher_logits: (B, C), z.
        temperature: T.
        weights: (C,) positive, w.
    """
    # log w moves inside: the sum that normalises p cancels with the one that normalises w p
    return F.log_softmax(teacher_logits / temperature + weights.log(), dim=1)


class TeacherDivergence(Loss):
    """T² KL(q || softmax(z / T)), averaged over the batch, with a target q that the teacher gives.

    T² keeps the size of the gradient while T changes (Hinton et al., 2015). Nothing flows into the teacher.

    Args:
        class_counts: (C,) int64.
        temperature: T > 0.
        scale: of the student's logits z. Default null: that of its output, so that a student equal to its teacher has
            nothing to learn. The teacher's come scaled.

    Raises:
        ConfigError: T or the scale not positive.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_logits"})
    reads_labels = False

    def __init__(self, class_counts: Tensor, temperature: float, scale: float | None = None) -> None:
        super().__init__(class_counts, scale)
        require(temperature > 0, "temperature", temperature, "a number above 0")
        self.temperature = temperature

    @abstractmethod
    def log_target(self, teacher_logits: Tensor, context: BatchContext) -> Tensor:
        """(B, C) log q of the teacher's logits (B, C), float32 and without gradient."""

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) divergences; the labels do not matter."""
        assert output.teacher_logits is not None
        log_target = self.log_target(output.teacher_logits.detach().float(), context)
        log_prediction = F.log_softmax(self.logits(output) / self.temperature, dim=1)
        return self.temperature**2 * divergence(log_target, log_prediction)


class Distillation(TeacherDivergence):
    """Knowledge distillation (Hinton et al., 2015; BKD's Eq. 5): q is the teacher's prediction at temperature T.

    Args:
        class_counts: (C,) int64; without effect.
        temperature: T. Default 2 (BKD, Sec. 5.2).
        scale: see `TeacherDivergence`.
    """

    def __init__(self, class_counts: Tensor, temperature: float = 2.0, scale: float | None = None) -> None:
        super().__init__(class_counts, temperature, scale)

    def log_target(self, teacher_logits: Tensor, context: BatchContext) -> Tensor:
        """log softmax(z / T)."""
        return F.log_softmax(teacher_logits / self.temperature, dim=1)


class BalancedDistillation(TeacherDivergence):
    """Balanced knowledge distillation (BKD, Eqs. 6-8): q_i is proportional to w_i softmax(z / T)_i.

    Args:
        class_counts: (C,) int64. Equal counts give plain distillation.
        temperature: T. Default 2 (BKD, Sec. 5.2).
        weighting: w_c is "effective_number", (1 - β) / (1 - β^n_c) (Eq. 2; default), or "inverse_frequency", 1 / n_c
            (IF in BKD's Fig. 6). Its scale has no effect.
        beta: β in [0, 1) of the effective number. Default 0.9999 (BKD, Sec. 5.2). 0: plain distillation.
        start: plain distillation before this fraction of the stage (below 1) or whole epoch from 0. Default 0: weighted
            throughout; BKD has epoch 160 of 200 on CIFAR-10.
        scale: see `TeacherDivergence`.

    Raises:
        ConfigError: an unknown weighting, β or start out of range, and as `TeacherDivergence`.
    """

    weights: Tensor

    def __init__(
        self,
        class_counts: Tensor,
        temperature: float = 2.0,
        weighting: Weighting = "effective_number",
        beta: float = 0.9999,
        start: float = 0.0,
        scale: float | None = None,
    ) -> None:
        super().__init__(class_counts, temperature, scale)
        require_choice("weighting", weighting, WEIGHTINGS)
        require(is_point(start), "start", start, A_POINT)
        require(0 <= beta < 1, "beta", beta, "a number of 0 or more and below 1")
        by_number = weighting == "effective_number"
        weights = effective_number_weights(class_counts, beta) if by_number else inverse_frequency_weights(class_counts)
        self.register_buffer("weights", weights, persistent=False)
        self.start = start

    def check_epochs(self, epochs: int) -> None:
        """See `Loss`: balancing starts within the stage."""
        has_started("start", self.start, 0, epochs)

    def log_target(self, teacher_logits: Tensor, context: BatchContext) -> Tensor:
        """log of the normalised w softmax(z / T); w = 1 before the start."""
        started = has_started("start", self.start, context.epoch, context.max_epochs)
        weights = self.weights if started else torch.ones_like(self.weights)
        return balanced_log_target(teacher_logits, self.temperature, weights)


class VirtualExamples(TeacherDivergence):
    """DiVE (He et al., ICCV 2021): q is the teacher's prediction at temperature T, flattened by a power.

    q_i is proportional to softmax(z / T)_i^power: a teacher that knows the tail by its balanced softmax passes it on as
    virtual examples, and the power moves mass from the head to it.

    Args:
        class_counts: (C,) int64; without effect.
        temperature: T. Default 2 (BagofTricks's CIFAR setting; its code's own default is 3).
        power: in (0, 1]. Default 0.5 (the authors'). 1: plain distillation.
        scale: see `TeacherDivergence`.

    Raises:
        ConfigError: a power out of range, and as `TeacherDivergence`.
    """

    def __init__(
        self, class_counts: Tensor, temperature: float = 2.0, power: float = 0.5, scale: float | None = None
    ) -> None:
        super().__init__(class_counts, temperature, scale)
        require(0 < power <= 1, "power", power, "a number above 0, at most 1")
        self.power = power

    def log_target(self, teacher_logits: Tensor, context: BatchContext) -> Tensor:
        """log of the normalised softmax(z / T)^power, which is softmax(power z / T)."""
        return F.log_softmax(teacher_logits * (self.power / self.temperature), dim=1)


class FeatureDistillation(Loss):
    """CBD's term (Iscen et al., BMVC 2021): 1 - cos(f, f_teacher), averaged over the batch.

    Args:
        class_counts: (C,) int64; without effect.

    Raises:
        ConfigError: on use, if the teacher's features are of another width.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_features"})
    reads_labels = False

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__(class_counts)

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) cosine distances; the labels do not matter."""
        own, teachers = output.features, output.teacher_features
        assert own is not None
        assert teachers is not None
        if own.shape != teachers.shape:
            raise ConfigError(
                f"feature distillation: the teacher's features are {teachers.shape[-1]} wide and the student's "
                f"{own.shape[-1]}: give both a backbone of the same width"
            )
        distances = 1 - F.cosine_similarity(own.float(), teachers.detach().float(), dim=-1)
        return distances.view(len(own), -1).mean(1)  # over the experts, where there are some
