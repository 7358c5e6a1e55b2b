"""RIDE's loss for a network of experts: each learns by itself, and all are kept apart."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require
from ltexp.epochs import A_POINT, has_started, is_point
from ltexp.losses.context import BatchContext
from ltexp.losses.distillation import divergence
from ltexp.losses.margin_softmax import LDAM, subtract_at_target_
from ltexp.outputs import ModelOutput


def diversity_temperatures(class_counts: Tensor, temperature: float, rarity: float) -> Tensor:
    """(C,) float32 temperatures T * a_c / max(a), a_c = rarity * C * pi_c + 1 - rarity: the rarer, the lower.

    Args:
        class_counts: (C,) int64; pi_c is their share.
        temperature: T, of the most frequent class.
        rarity: in [0, 1): how much lower the rarest class's is. 0: T for all.
    """
    counts = class_counts.double()
    share = rarity * len(counts) * counts / counts.sum() + 1 - rarity
    return (temperature * share / share.max()).float()


class Ride(LDAM):
    """RIDE (Wang et al., ICLR 2021): the sum over experts of LDAM less a diversity term.

    For an expert with logits z_e and the mean m of all experts' logits,

        l_e = LDAM(z_e, y) - diversity * mean(τ)² KL(softmax(m / τ) || softmax(z_e / τ)),

    where no gradient flows through softmax(m / τ). Deferred re-weighting is a schedule of the stage; it weights LDAM by
    class and leaves the diversity term alone. One expert without diversity is LDAM.

    Args:
        class_counts: (C,) int64.
        max_margin: see `LDAM`; 0: cross-entropy for each expert, which no class is favoured by.
        diversity: what the term counts for, 0 or more. Default 0.2 (the authors' code; 0.45 on CIFAR).
        temperature: τ of the most frequent class. Default 1 (the same).
        rarity: how much τ falls with rarity, see `diversity_temperatures`. Default 0.05 (the same).
        rarity_start: τ is the same for all classes before this fraction of the stage (below 1) or whole epoch from 0.
            Default 0.8 (the same: epoch 160 of 200, with the re-weighting).
        scale: s of the cosines. Default 30 (the same).

    Raises:
        ConfigError: a setting out of range, and as `LDAM`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"expert_logits"})
    temperatures: Tensor

    def __init__(
        self,
        class_counts: Tensor,
        max_margin: float = 0.5,
        diversity: float = 0.2,
        temperature: float = 1.0,
        rarity: float = 0.05,
        rarity_start: float = 0.8,
        scale: float = 30.0,
    ) -> None:
        super().__init__(class_counts, max_margin, scale)
        require(is_point(rarity_start), "rarity_start", rarity_start, A_POINT)
        require(diversity >= 0, "diversity", diversity, "a number of 0 or more")
        require(temperature > 0, "temperature", temperature, "a number above 0")
        require(0 <= rarity < 1, "rarity", rarity, "a number of 0 or more and below 1")
        temperatures = diversity_temperatures(class_counts, temperature, rarity)
        self.register_buffer("temperatures", temperatures, persistent=False)
        self.diversity, self.temperature, self.rarity_start = diversity, temperature, rarity_start

    def check_epochs(self, epochs: int) -> None:
        """See `Loss`: the rarity's part starts within the stage."""
        has_started("rarity_start", self.rarity_start, 0, epochs)

    def forward(self, output: ModelOutput, target: Tensor, context: BatchContext | None = None) -> Tensor:
        """The scalar loss of a batch; weights of classes are LDAM's alone."""
        context, experts = self.known(context), self.expert_logits(output)
        total = self.reduce(self._classification(experts, target), target, context)
        if not self.diversity:
            return total
        return total - self.diversity * context.weighted(self._divergences(experts, context)).mean()

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses."""
        experts = self.expert_logits(output)
        losses = self._classification(experts, target)
        return losses - self.diversity * self._divergences(experts, context) if self.diversity else losses

    def _classification(self, experts: Tensor, target: Tensor) -> Tensor:
        """(B,) the sum over experts of cross-entropy with the margin at the target."""
        number, rows, classes = experts.shape
        targets = target.repeat(number)
        logits = experts.reshape(number * rows, classes).clone()
        subtract_at_target_(logits, targets, self.scale * self.margins[targets])
        return F.cross_entropy(logits, targets, reduction="none").view(number, rows).sum(0)

    def _divergences(self, experts: Tensor, context: BatchContext) -> Tensor:
        """(B,) the sum over experts of mean(τ)² KL(mean || expert)."""
        started = has_started("rarity_start", self.rarity_start, context.epoch, context.max_epochs)
        temperatures = self.temperatures if started else torch.full_like(self.temperatures, self.temperature)
        mean = F.log_softmax(experts.detach().mean(0) / temperatures, dim=1)
        each = divergence(mean, F.log_softmax(experts / temperatures, dim=2))
        return temperatures.mean() ** 2 * each.sum(0)
