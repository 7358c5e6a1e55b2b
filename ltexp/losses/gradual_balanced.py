"""GraLoss: logit adjustment whose strength grows over the stage (GLAG, Zhang and Xiang, arXiv 2203.00452, Sec. 4.1)."""

import torch.nn.functional as F
from torch import Tensor

from ltexp.counts import class_shares
from ltexp.epochs import gradual_weight, require_gradual_weight
from ltexp.losses.base import Loss, normalized_shares
from ltexp.losses.context import BatchContext
from ltexp.outputs import ModelOutput


class GradualBalanced(Loss):
    """Cross-entropy of z + α(t) log π (Eq. 4) with α(t) = s (c^(t/T) - 1) (Eq. 3); prediction uses the plain logits.

    t is the epoch from 0 and T the stage's epochs, so the first epoch is plain cross-entropy. Above c = 1 the curve is
    convex, below it concave, and c = 1 stands for the limit, a straight line s t/T.

    Args:
        class_counts: (C,) int64; π_c = n_c / N.
        c: what bends the curve. Default 2 (Sec. 5.1); Table 5 has 2, 4, 6, 8 and a linear and a concave curve.
        s: its factor; 0 is cross-entropy, and it is negative for a c below 1. Default null: the s that ends the curve
            at 1, 1/(c - 1), which is the paper's 1 for c = 2. The paper has 0.5 on iNaturalist 2018.
        scale: see `Loss`.

    Raises:
        ConfigError: a c that is not positive, or an s with which α would fall below 0.
    """

    log_prior: Tensor

    def __init__(self, class_counts: Tensor, c: float = 2.0, s: float | None = None, scale: float = 1.0) -> None:
        super().__init__(class_counts, scale)
        require_gradual_weight(c, s)
        self.c, self.s = c, s
        self.register_buffer("log_prior", class_shares(class_counts).log().float(), persistent=False)

    def alpha(self, epoch: int, max_epochs: int) -> float:
        """α(t) in `epoch` (from 0) of `max_epochs`."""
        return gradual_weight(epoch / max_epochs, self.c, self.s)

    def learned_prior(self, shares: Tensor) -> Tensor:
        """Without the adjustment at its final strength; see `Loss`."""
        return normalized_shares(
            super().learned_prior(shares) * (-gradual_weight(1.0, self.c, self.s) * self.log_prior.to(shares)).exp()
        )

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses."""
        alpha = self.alpha(context.epoch, context.max_epochs)
        return F.cross_entropy(self.logits(output) + alpha * self.log_prior, target, reduction="none")
