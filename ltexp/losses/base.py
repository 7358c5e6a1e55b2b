"""What every loss has in common: class counts, progress of training, scale, and the reduction over a batch.

A new loss is usually one method, `per_sample`. A loss with a term that is not a sum over samples overrides `forward`.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from ltexp.config.require import require
from ltexp.counts import checked_class_counts
from ltexp.distributed import active, rank, sum_over_ranks, world_size
from ltexp.outputs import ModelOutput


class Loss(nn.Module, ABC):
    """Base of the losses: `loss(output, target)` is a scalar, computed in float32 whatever comes in.

    Args:
        class_counts: (C,) int64, training images of each class, in any order of size.
        scale: multiplies the logits before anything else. 1 for linear classifiers; for cosine classifiers, whose
            logits lie in [-1, 1], the temperature that the field calls s (often 30 on CIFAR).

    Attributes:
        classifier: the kind of classifier the loss is defined for, "any" or "cosine" (plain cosines as logits).
        needs: the fields of `ModelOutput` that the loss reads beside logits and features, such as "teacher_logits"; and
            "features" if the loss takes one a sample, which experts do not have. A stage that cannot fill them
            is refused before any data is read.
        reads_labels: whether the loss depends on the labels; False for a term that a mixed batch, whose loss is of two
            labels, need not compute twice.
        takes_class_weights: whether a stage may set `class_weights` (deferred re-weighting); False for a loss whose
            `forward` has no use for them.
        class_weights: (C,) float32 summing to C when the loss weights its samples by class, else None.
        seed: of the loss's own random draws, if it makes any; a stage sets it to its own, which follows the run's.
        share: what the current batch of this process counts for, its rows over the mean number of rows a process; set
            by the stage when several processes train. None: every row that the loss is given counts.
        part: which of this process's rows of the batch the current call holds; all of them unless gradients accumulate.
        batch_labels: (n,) the labels of all of these rows, of which `target` is that part. None: `target` is all.

    Raises:
        ConfigError: unusable class counts, or a scale that is not positive.
    """

    classifier: ClassVar[str] = "any"
    needs: ClassVar[frozenset[str]] = frozenset()
    reads_labels: ClassVar[bool] = True
    takes_class_weights: ClassVar[bool] = True

    class_counts: Tensor
    class_weights: Tensor | None

    def __init__(self, class_counts: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        require(scale > 0, "scale", scale, "a number above 0")
        # Not persistent: they follow from the data, so a checkpoint does not carry a second truth.
        self.register_buffer("class_counts", checked_class_counts(class_counts), persistent=False)
        self.register_buffer("class_weights", None, persistent=False)
        self.scale = scale
        self.share: float | None = None
        self.part = slice(None)
        self.batch_labels: Tensor | None = None
        self.seed = 0
        self.epoch, self.max_epochs, self.step = 0, 1, 0

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_counts)

    @property
    def logit_scale(self) -> float:
        """Factor that turns the classifier's logits into those whose softmax is the prediction."""
        return self.scale

    def set_progress(self, epoch: int, max_epochs: int, step: int = 0) -> None:
        """Tell where training is, for curricula, deferred schedules and keyed draws.

        Args:
            epoch: the current epoch, from 0.
            max_epochs: epochs of the stage.
            step: the current step within the epoch, from 0.
        """
        self.epoch, self.max_epochs, self.step = epoch, max_epochs, step

    def end_epoch(self) -> None:
        """Called after the last step of every epoch, on every process, for a loss that learns from one to the next."""

    def logits(self, output: ModelOutput) -> Tensor:
        """(B, C) float32 logits of `output`, scaled."""
        logits = output.logits.float()
        return logits if self.scale == 1.0 else self.scale * logits

    @abstractmethod
    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) float32 loss of each sample, without class weights; `target` is (B,) int64."""

    def forward(self, output: ModelOutput, target: Tensor) -> Tensor:
        """The scalar loss of a batch: the mean over samples, weighted if the loss has class weights."""
        losses = self.per_sample(output, target)
        if self.class_weights is None:
            return losses.mean()
        return self.class_weighted_mean(losses, target)

    def class_weighted_mean(self, losses: Tensor, target: Tensor) -> Tensor:
        """The mean of (B,) losses weighted by class, over the mean weight of the whole global batch."""
        assert self.class_weights is not None
        whole = None if self.batch_labels is None else self.class_weights[self.batch_labels]
        return weighted_mean(losses, self.class_weights[target], self.share, whole)

    def drawn_size(self, rows: int) -> int:
        """How many rows a draw for the global batch has, of which the current call holds `rows`."""
        own = rows if self.batch_labels is None else len(self.batch_labels)
        # share = own * processes / size (see `Batch`); it is 0 for a stand-in row, whose draws do not matter
        return round(own * world_size() / self.share) if self.share else own * world_size()

    def drawn_here(self, drawn: Tensor) -> Tensor:
        """Of what was drawn for the global batch (`drawn_size`, ...) the rows that the current call holds."""
        return drawn[rank() :: world_size()][self.part]


def weighted_mean(
    per_sample: Tensor, weight: Tensor, share: float | None = None, whole: Tensor | None = None
) -> Tensor:
    """mean(weight * loss) over the mean weight of the global batch: a weighted mean that two processes share.

    On one process this is sum(w * l) / sum(w), the weighted mean of the field's code. On several, the numerator is
    this process's and the denominator everybody's, so the mean over processes, each counted by its share of the rows,
    is again sum(w * l) / sum(w) of the whole batch. An unweighted mean needs no exchange.

    Args:
        per_sample: (n,) losses of this process's rows.
        weight: (n,) non-negative weights of the same rows.
        share: as `Loss.share`; it must be given where a process without rows holds a stand-in row (share 0).
        whole: the weights of all of this process's rows, of which the rows here are a part. None: they are all.
    """
    whole = weight if whole is None else whole
    total = whole.detach().mean()
    if active():
        rows = float(len(whole)) if share is None else share
        both = sum_over_ranks(torch.stack([total * rows, torch.full_like(total, rows)]))
        total = both[0] / both[1]
    # A batch whose weights are all zero has loss 0, not 0 / 0.
    return (weight * per_sample).mean() / total.clamp_min(torch.finfo(total.dtype).tiny)


def normalized_weights(weights: Tensor) -> Tensor:
    """(C,) positive `weights` rescaled to sum to C, as float32."""
    return (weights * (len(weights) / weights.sum())).float()
