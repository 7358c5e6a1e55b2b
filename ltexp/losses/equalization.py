"""Equalization loss (EQL; Tan et al., CVPR 2020), its softmax form: frequent samples do not push rare classes down."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require
from ltexp.counts import class_shares
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.outputs import ModelOutput
from ltexp.randomness import generator

FAR = -1e30  # exp of it is 0, and no multiple of it is infinite


class Equalization(Loss):
    """Softmax cross-entropy whose denominator leaves out, at random, the rare classes that are not the target.

    Class k weighs 1 - B [π_k < λ] (k not the target) in the denominator, with B ~ Bernoulli(γ) drawn for every sample
    and class. The detection loss of the paper's main part is another, with sigmoids.

    The draws are made on the device of the logits and keyed by (the stage's seed, epoch, step, call within the step);
    each process takes its rows of the draws of the global batch.

    Args:
        class_counts: (C,) int64.
        gamma: γ in [0, 1]. Default 0.9 (BagofTricks' code). 0: cross-entropy.
        threshold: λ, the share of the training images below which a class is rare. Default 0.005 (the same). No class
            of CIFAR-10 is below it up to ratio 50, one is at 100; of CIFAR-100, 29 are at ratio 10 and 52 at 100.
        scale: see `Loss`.

    Raises:
        ConfigError: γ out of [0, 1], or a negative λ.
    """

    rare: Tensor

    def __init__(
        self,
        class_counts: Tensor,
        gamma: float = 0.9,
        threshold: float = 0.005,
        scale: float = 1.0,
    ) -> None:
        super().__init__(class_counts, scale)
        require(0 <= gamma <= 1, "gamma", gamma, "a number from 0 to 1")
        require(threshold >= 0, "threshold", threshold, "a number of 0 or more")
        self.gamma = gamma
        rare = class_shares(class_counts) < threshold
        self.register_buffer("rare", rare, persistent=False)
        # of the 2^16 values of an int16, all up to `cut` are a share of γ, to 8e-6
        self.cut = round(gamma * 2**16) - 1 - 2**15
        self.draws_anything = self.cut >= -(2**15) and bool(rare.any())

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses."""
        logits = self.logits(output)
        if self.draws_anything:
            dropped = self.draws(logits, context).logical_and_(self.rare).scatter_(1, target[:, None], False)
            # added, not filled in: what is far below the rest has softmax and gradient 0 already
            logits = dropped.to(logits.dtype).mul_(FAR).add_(logits)
        return F.cross_entropy(logits, target, reduction="none")

    def draws(self, logits: Tensor, context: BatchContext) -> Tensor:
        """(B, C) bool, True with probability γ: this process's rows of the global batch's."""
        size = context.drawn_size(len(logits))
        key = ("equalization", context.seed, context.epoch, context.step, context.call)
        # 16 random bits an entry, four from each draw: half the time of a uniform number each
        count = size * logits.shape[1]
        bits = torch.empty(-(-count // 4), dtype=torch.int64, device=logits.device)
        bits.random_(-(2**63), None, generator=generator(*key, device=logits.device))
        return context.drawn_here((bits.view(torch.int16)[:count] <= self.cut).view(size, -1))
