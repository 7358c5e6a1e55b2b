"""Distillation of frequent classes from the stage before (GLAG, Zhang and Xiang, arXiv 2203.00452, Eq. 11)."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require
from ltexp.epochs import gradual_weight, require_gradual_weight
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.outputs import ModelOutput


class HeadDistillation(Loss):
    """α(t) T² KL(teacher ‖ model) at temperature T on the samples of head classes, 0 on the others: a loss term.

    The mean is over all samples of the batch. α(t) is that of GraLoss (Eq. 3): the classifier first moves its
    boundaries for the tail, and is pulled back for the head as the learning rate falls (Sec. 4.2). The paper gives
    neither temperature nor form; both are choices of ours.

    Args:
        class_counts: (C,) int64.
        head_above: classes with more training images than this are head classes. Default 100, the bound of many-shot.
        temperature: T. Default 2.
        c, s: of α(t), see `GradualBalanced`. Default 2 and null (the paper: the same as in stage 1).
        scale: of the model's logits. Default null: that of its output; the teacher's come scaled.

    Raises:
        ConfigError: a setting out of range, or an output without teacher.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_logits"})

    is_head: Tensor

    def __init__(
        self,
        class_counts: Tensor,
        head_above: int = 100,
        temperature: float = 2.0,
        c: float = 2.0,
        s: float | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__(class_counts, scale)
        require(temperature > 0, "temperature", temperature, "a number above 0")
        require(head_above >= 0, "head_above", head_above, "a whole number of 0 or more")
        require_gradual_weight(c, s)
        self.temperature, self.c, self.s = temperature, c, s
        self.register_buffer("is_head", class_counts > head_above, persistent=False)

    def alpha(self, epoch: int, max_epochs: int) -> float:
        """α(t) in `epoch` (from 0) of `max_epochs`."""
        return gradual_weight(epoch / max_epochs, self.c, self.s)

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses; 0 for a sample of no head class."""
        assert output.teacher_logits is not None
        ours = F.log_softmax(self.logits(output) / self.temperature, dim=1)
        theirs = F.log_softmax(output.teacher_logits.float() / self.temperature, dim=1)
        divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
        alpha = self.alpha(context.epoch, context.max_epochs)
        return alpha * self.temperature**2 * self.is_head[target] * divergence
