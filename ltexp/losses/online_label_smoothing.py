"""Online label smoothing (Zhang et al., "Delving Deep into Label Smoothing", IEEE TIP 2021): a soft label a class."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require, require_choice
from ltexp.distributed import sum_over_ranks
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.outputs import ModelOutput

Start = Literal["uniform", "zero"]
STARTS = ("uniform", "zero")


class OnlineLabelSmoothing(Loss):
    """(1 - λ) cross-entropy + λ cross-entropy against the mean prediction of the label's class (DaSL, Eqs. 2-3).

    Row y of `soft_labels` is the mean softmax of the last epoch's correctly predicted samples of class y, each
    predicted in the step that trained on it (the authors' code; DaSL's text runs the last epoch's model once more). A
    class without a correct prediction gets the uniform distribution. Under mixup, whose loss is of two labels, a mixed
    image counts for the one that it is predicted as.

    Every process counts its own samples; at an epoch's end the counts are summed over all, so that the rows are those
    of a single process. Only the rows are kept in a checkpoint, since one is written between epochs.

    Args:
        class_counts: (C,) int64.
        soft_weight: λ in [0, 1]. Default 0.5 (the authors' CIFAR setting).
        start: the rows of the first epoch: "zero" (default, the authors' code: no soft part yet) or "uniform".
        scale: see `Loss`.

    Raises:
        ConfigError: λ out of range, or an unknown start.
    """

    soft_labels: Tensor

    def __init__(
        self, class_counts: Tensor, soft_weight: float = 0.5, start: Start = "zero", scale: float = 1.0
    ) -> None:
        super().__init__(class_counts, scale)
        require(0 <= soft_weight <= 1, "soft_weight", soft_weight, "a number from 0 to 1")
        require_choice("start", start, STARTS)
        self.soft_weight = soft_weight
        rows = torch.full((self.num_classes, self.num_classes), 1 / self.num_classes if start == "uniform" else 0.0)
        self.register_buffer("soft_labels", rows)
        # No buffers: DDP gives every process those of the first, before each step.
        self._sums: Tensor | None = None
        self._hits: Tensor | None = None

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses."""
        log_p = F.log_softmax(self.logits(output), dim=1)
        if self.training and context.share != 0 and not context.again:  # share 0: a row that only stands in
            self._count(log_p.detach(), target)
        hard = F.nll_loss(log_p, target, reduction="none")
        soft = -(self.soft_labels[target] * log_p).sum(dim=1)
        return torch.lerp(hard, soft, self.soft_weight)

    def _count(self, log_p: Tensor, target: Tensor) -> None:
        if self._sums is None or self._hits is None:
            self._sums, self._hits = torch.zeros_like(self.soft_labels), torch.zeros_like(self.soft_labels[0])
        correct = (log_p.argmax(dim=1) == target).to(log_p.dtype)
        self._sums.index_add_(0, target, log_p.exp() * correct[:, None])
        self._hits.index_add_(0, target, correct)

    def end_epoch(self) -> None:
        """Makes the next epoch's soft labels of what all processes predicted in this one."""
        if self._sums is None or self._hits is None:
            self._sums, self._hits = torch.zeros_like(self.soft_labels), torch.zeros_like(self.soft_labels[0])
        sums, hits = sum_over_ranks(self._sums), sum_over_ranks(self._hits)[:, None]
        mean = sums / hits.clamp_min(1)
        # each row sums to one but for rounding, which would add up in no one's favour
        rows = mean / mean.sum(dim=1, keepdim=True).clamp_min(torch.finfo(mean.dtype).tiny)
        self.soft_labels.copy_(torch.where(hits > 0, rows, 1 / self.num_classes))
        self._sums = self._hits = None
