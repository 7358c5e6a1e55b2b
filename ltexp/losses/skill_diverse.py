"""SADE's loss for three experts, each trained for another distribution of the test set (Zhang et al., NeurIPS 2022)."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ltexp.config.require import require
from ltexp.counts import class_shares
from ltexp.errors import ConfigError
from ltexp.losses.base import Loss, normalized_shares
from ltexp.losses.context import BatchContext
from ltexp.outputs import ModelOutput

PRIOR_FLOOR = 1e-9  # added to a class's share before its logarithm (the authors' code)


def inverse_prior(class_counts: Tensor) -> Tensor:
    """(C,) float64: the classes' shares in reversed order of rank: the rarest has the largest; ties by index."""
    prior = class_shares(class_counts)
    order = torch.argsort(prior, stable=True)
    inverse = torch.empty_like(prior)
    inverse[order] = prior[order.flip(0)]
    return inverse


class SkillDiverse(Loss):
    """CE(z_1, y) + CE(z_2 + log π, y) + CE(z_3 + log π - τ log π', y): for long-tailed, balanced and inverse tests.

    π are the classes' shares, π' the same in reversed order of rank. The network's prediction is the experts' mean.

    Args:
        class_counts: int64 (C,).
        tau: τ. Default 2 (the authors; 1 on iNaturalist 2018).
        scale: s of the cosines. Default 30 (the same).

    Raises:
        ConfigError: a setting out of range; in training, for another number of experts than three.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"expert_logits"})
    adjustments: Tensor

    def __init__(self, class_counts: Tensor, tau: float = 2.0, scale: float = 30.0) -> None:
        super().__init__(class_counts, scale)
        require(tau >= 0, "tau", tau, "a number of 0 or more")
        log_prior = (class_shares(class_counts) + PRIOR_FLOOR).log()
        log_inverse = (inverse_prior(self.class_counts) + PRIOR_FLOOR).log()
        adjustments = torch.stack([torch.zeros_like(log_prior), log_prior, log_prior - tau * log_inverse])
        self.register_buffer("adjustments", adjustments.float(), persistent=False)

    def learned_prior(self, shares: Tensor) -> Tensor:
        """Without the mean of the experts' adjustments; see `Loss`."""
        return normalized_shares(super().learned_prior(shares) * (-self.adjustments.mean(0).to(shares)).exp())

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) the sum over the experts."""
        experts = self.expert_logits(output)
        if len(experts) != len(self.adjustments):
            raise ConfigError(
                f"loss skill_diverse is for 3 experts, and the network has {len(experts)}: set recipe.experts=3"
            )
        adjusted = (experts + self.adjustments[:, None]).flatten(0, 1)
        losses = F.cross_entropy(adjusted, target.repeat(len(experts)), reduction="none")
        return losses.view(len(experts), -1).sum(0)
