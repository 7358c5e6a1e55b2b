"""Parametric contrastive learning: PaCo (Cui et al., ICCV 2021) and GPaCo (Cui et al., TPAMI 2023)."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from ltexp.config.require import is_whole, require
from ltexp.counts import class_shares
from ltexp.distributed import gather_batch
from ltexp.losses.base import Loss, normalized_shares
from ltexp.losses.context import BatchContext
from ltexp.losses.contrast import Contrast
from ltexp.outputs import ModelOutput

PRIOR_FLOOR = 1e-9  # added to a class's share before its logarithm (the authors' code)


class ParametricContrastive(Loss):
    """PaCo: class logits and contrastive similarities of an anchor in one softmax, which is its classification too.

    With g_ic = z_ic + log π_c and a_ij = f_i·v_j / τ over all other projections and keys of the batch and a queue of
    earlier keys,

        D_i = Σ_c exp(g_ic) + γ Σ_{j≠i} exp(a_ij),
        l_i = -[β (g_{i,y_i} - log D_i) + α Σ_{j in P_i} (a_ij - log D_i)] / (β + α |P_i|),

    where P_i are those of i's class. The gradient flows through the projections, not through keys and queue. The queue
    begins empty and holds the last `queue` keys of all processes.

    Args:
        class_counts: int64 (C,).
        alpha: weight of a positive. Default 0.05 (the authors' large sets; 0.01 on CIFAR).
        beta: weight of the class. Default 1 (the same).
        gamma: weight of the similarities in the sum. Default 1 (the same).
        temperature: τ. Default 0.2 (the same; 0.05 on CIFAR).
        queue: keys that are kept, 0 or more. Default 8192 (the same; 1024 on CIFAR).
        width: d, of a projection. Default 128 (the same; 32 on CIFAR).
        smoothing: of the class's part: 1 - smoothing on the label and smoothing / (C - 1) on each other class. Default
            0 (the same).

    Raises:
        ConfigError: a setting out of range.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"projections", "keys"})
    takes_class_weights: ClassVar[bool] = False
    compares_rows = True

    log_prior: Tensor
    queue: Tensor
    queue_labels: Tensor
    pointer: Tensor

    def __init__(
        self,
        class_counts: Tensor,
        alpha: float = 0.05,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float = 0.2,
        queue: int = 8192,
        width: int = 128,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(class_counts)
        for key, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            require(value >= 0, key, value, "a number of 0 or more")
        require(alpha + beta > 0, "beta", beta, "a number above 0 where alpha is 0")
        require(temperature > 0, "temperature", temperature, "a number above 0")
        require(is_whole(queue, 0), "queue", queue, "a whole number of 0 or more")
        require(is_whole(width, 1), "width", width, "a whole number of 1 or more: that of the projections")
        require(0 <= smoothing < 1, "smoothing", smoothing, "a number of 0 or more and below 1")
        self.alpha, self.beta, self.gamma, self.temperature = alpha, beta, gamma, temperature
        self.smoothing = smoothing
        self.register_buffer("log_prior", (class_shares(class_counts) + PRIOR_FLOOR).log().float(), persistent=False)
        self.register_buffer("queue", torch.zeros(queue, width))
        self.register_buffer("queue_labels", torch.full((queue,), -1))  # -1: not filled yet
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def learned_prior(self, shares: Tensor) -> Tensor:
        """Without what the adjustment stands for; see `Loss`."""
        return normalized_shares(super().learned_prior(shares) * (-self.log_prior.to(shares)).exp())

    def class_logits(self, output: ModelOutput) -> Tensor:
        """(A, C) logits of the anchors."""
        return self.logits(output)

    def contrast(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Contrast:
        """The anchors: the first view."""
        return Contrast.of(output.extra["projections"][:1], target, context)

    def keys(self, output: ModelOutput, size: int) -> Tensor:
        """(N, d) keys of the batch beside the anchors, without gradient."""
        return gather_batch(output.extra["keys"].detach().float(), size)

    def new_entries(self, found: Contrast, keys: Tensor) -> Tensor:
        """(size, d), what the queue takes up after the step."""
        return keys

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses."""
        size = len(target) if context.size is None else context.size
        found, keys = self.contrast(output, target, context), self.keys(output, size)
        labels = found.other_labels[:size]  # of the batch's images, once
        rows = torch.cat([found.others, keys, self.queue])
        row_labels = torch.cat([found.other_labels, labels[: len(keys)], self.queue_labels])
        similar = found.similarities(rows, self.temperature).masked_fill(row_labels < 0, float("-inf"))
        similar = found.without_itself(similar)
        classes = self.class_logits(output) + self.log_prior
        both = torch.cat([classes, similar + math.log(self.gamma)], dim=1) if self.gamma else classes
        total = both.logsumexp(1)
        positive = found.same_class(row_labels).scatter(1, found.place[:, None], False)
        number = positive.sum(1)
        contrasted = similar.masked_fill(~positive, 0.0).sum(1) - number * total
        classified = self._target(classes, found.labels) - total
        losses = -(self.beta * classified + self.alpha * contrasted) / (self.beta + self.alpha * number)
        if self.training and not context.again:
            self._enqueue(self.new_entries(found, keys), labels)
        return found.by_image(losses)

    def _target(self, classes: Tensor, labels: Tensor) -> Tensor:
        """(A,) the class part's logit of the label, or the smoothed mean."""
        own = classes.gather(1, labels[:, None]).squeeze(1)
        if not self.smoothing:
            return own
        return (1 - self.smoothing) * own + self.smoothing / (self.num_classes - 1) * (classes.sum(1) - own)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor, labels: Tensor) -> None:
        """A ring: the oldest entries make room, for any size of a batch."""
        length = len(self.queue)
        keys, labels = keys[-length:] if length else keys[:0], labels[-length:] if length else labels[:0]
        place = (self.pointer + torch.arange(len(keys), device=keys.device)) % max(length, 1)
        # new tensors, since the graph of this step holds the old ones
        self.queue = self.queue.index_copy(0, place, keys)
        self.queue_labels = self.queue_labels.index_copy(0, place, labels)
        self.pointer = (self.pointer + len(keys)) % max(length, 1)


class GeneralParametricContrastive(ParametricContrastive):
    """GPaCo: both views are anchors of one network, without a momentum copy; the queue holds the second view's.

    Args:
        class_counts: int64 (C,), and the further ones of `ParametricContrastive`.

    Raises:
        ConfigError: as `ParametricContrastive`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"projections", "view_logits"})

    def class_logits(self, output: ModelOutput) -> Tensor:
        """(A, C) logits of both views."""
        logits: Tensor = output.extra["view_logits"]
        return logits.float().flatten(0, 1)

    def contrast(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Contrast:
        """The anchors: all views."""
        return Contrast.of(output.extra["projections"], target, context)

    def keys(self, output: ModelOutput, size: int) -> Tensor:
        """None."""
        projections: Tensor = output.extra["projections"]
        return projections.new_zeros(0, projections.shape[-1], dtype=torch.float32)

    def new_entries(self, found: Contrast, keys: Tensor) -> Tensor:
        """The last view's projections."""
        return found.others[-(len(found.others) // found.views) :].detach()
