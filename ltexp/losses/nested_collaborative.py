"""NCL: networks that teach each other over all classes and over each image's hardest (Li et al., CVPR 2022)."""

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ltexp.config.require import require, require_choice
from ltexp.losses.base import Loss, normalized_shares
from ltexp.losses.context import BatchContext
from ltexp.outputs import ModelOutput

Others = Literal["zero", "exclude"]
OTHERS = ("zero", "exclude")
FLOOR = 1e-9  # added to a probability before its logarithm (the authors' code)
EXCLUDED = -1e9  # a logit without weight in a softmax


class NestedCollaborative(Loss):
    """Balanced softmax of each of E experts, over all classes and over the hardest, and divergences between them.

    With g^e = z^e + log n, and h^e = g^e on the image's label and the `hardest` - 1 largest logits z^1 of the other
    classes,

        Σ_e CE(g^e) + Σ_e CE(h^e) + w D(g) + w D(h),   D(g) = 1 / (E - 1) Σ_{i≠j} KL(softmax g^j || softmax g^i).

    The gradient flows through both sides of the divergences. Predictions are the experts' mean.

    Args:
        class_counts: int64 (C,).
        hardest: the share of the classes, the label among them, that count as hard. Default 0.3 (the paper).
        weight: w. Default 0.6 (the authors' code).
        others: what becomes of the other classes in h: "zero" (default, the authors' code: their logit is 0) or
            "exclude" (the paper's softmax over the hard classes alone).
        scale: see `Loss`.

    Raises:
        ConfigError: a setting out of range.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"expert_logits"})
    log_counts: Tensor

    def __init__(
        self,
        class_counts: Tensor,
        hardest: float = 0.3,
        weight: float = 0.6,
        others: Others = "zero",
        scale: float = 1.0,
    ) -> None:
        super().__init__(class_counts, scale)
        require(0 < hardest <= 1, "hardest", hardest, "a share of the classes, above 0 and up to 1")
        require(weight >= 0, "weight", weight, "a number of 0 or more")
        require_choice("others", others, OTHERS)
        self.number, self.weight, self.others = max(1, round(hardest * self.num_classes)), weight, others
        self.register_buffer("log_counts", self.class_counts.float().log(), persistent=False)

    def learned_prior(self, shares: Tensor) -> Tensor:
        """Without what the adjustment stands for; see `Loss`."""
        return normalized_shares(super().learned_prior(shares) * (-self.log_counts.to(shares)).exp())

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses."""
        experts = self.expert_logits(output)
        hard = self.hard_classes(experts[0], target)
        adjusted = experts + self.log_counts
        nested = adjusted.masked_fill(~hard, 0.0 if self.others == "zero" else EXCLUDED)
        return self._of(adjusted, target) + self._of(nested, target)

    def hard_classes(self, logits: Tensor, target: Tensor) -> Tensor:
        """bool (B, C): an image's label, and the classes with the largest logits (B, C) beside it."""
        without = logits.detach().scatter(1, target[:, None], float("inf"))
        chosen = without.topk(self.number, dim=1, sorted=False).indices
        return torch.zeros_like(logits, dtype=torch.bool).scatter(1, chosen, True)

    def _of(self, logits: Tensor, target: Tensor) -> Tensor:
        """(B,): the classification of logits (E, B, C), and their divergences."""
        experts, rows, _ = logits.shape
        log_p = logits.log_softmax(2)
        classified = (
            F.nll_loss(log_p.flatten(0, 1), target.repeat(experts), reduction="none").view(experts, rows).sum(0)
        )
        if not self.weight or experts == 1:
            return classified
        p = log_p.exp()
        log_p = (p + FLOOR).log()
        # Σ_{i≠j} p_j (log p_j - log p_i), without a pass for each pair
        own = (p * log_p).sum((0, 2))
        divergences = experts * own - (p.sum(0) * log_p.sum(0)).sum(1)
        return classified + self.weight / (experts - 1) * divergences
