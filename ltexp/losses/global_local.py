"""GLMC (Du et al., CVPR 2023): from a plain head to a re-weighted one, and views that are to agree."""

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from ltexp.config.require import require
from ltexp.losses.base import Loss, normalized_shares
from ltexp.losses.context import BatchContext
from ltexp.outputs import ModelOutput


class CumulativeHeads(Loss):
    """α Σ_v CE(z_v, y) + (1 - α) w_y Σ_v CE(z'_v, y) over the views, α = 1 - (e / E)² in epoch e.

    z are the classifier's logits, z' those of the module `balanced_head`, w_c = n_c^-k over its mean. As with the
    authors, nothing is divided by a sum of weights.

    Args:
        class_counts: int64 (C,).
        exponent: k. Default 1.2 (CIFAR; 1 for CIFAR-10-LT at ratio 10 and on large sets).

    Raises:
        ConfigError: an exponent below 0.
    """

    classifier = "linear"
    needs: ClassVar[frozenset[str]] = frozenset({"view_logits", "balanced_logits"})
    takes_class_weights: ClassVar[bool] = False  # of its two heads one has weights already

    weights: Tensor

    def __init__(self, class_counts: Tensor, exponent: float = 1.2) -> None:
        super().__init__(class_counts)
        require(exponent >= 0, "exponent", exponent, "a number of 0 or more")
        weights = class_counts.double() ** -exponent
        self.register_buffer("weights", (weights / weights.mean()).float(), persistent=False)

    def learned_prior(self, shares: Tensor) -> Tensor:
        """With the weights of the head that answers; see `Loss`."""
        return normalized_shares(super().learned_prior(shares) * self.weights.to(shares))

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses."""
        share = 1.0 - (context.epoch / context.max_epochs) ** 2
        plain, balanced = (over_views(output.extra[name], target) for name in ("view_logits", "balanced_logits"))
        return share * plain + (1.0 - share) * self.weights[target] * balanced


class ViewAgreement(Loss):
    """-Σ cos(p_u, z_v) over the ordered pairs of two views u ≠ v, z without gradient (SimSiam; Chen and He, CVPR 2021).

    Reads the `projections` z and `predictions` p, (V, B, d) each, of the module `siamese`.

    Args:
        class_counts: without effect.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"projections", "predictions"})
    fewest_views = 2
    reads_labels: ClassVar[bool] = False

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__(class_counts)

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) losses, from -V (V - 1) to V (V - 1)."""
        z, p = (F.normalize(output.extra[name].float(), dim=-1) for name in ("projections", "predictions"))
        cosines = (p[:, None] * z.detach()).sum(
            -1
        )  # (V, V, B): of the prediction of a view and the projection of another
        return cosines.diagonal().sum(1) - cosines.sum((0, 1))


def over_views(logits: Tensor, target: Tensor) -> Tensor:
    """(B,): the sum over views of the cross-entropy of logits (V, B, C)."""
    views = len(logits)
    losses = F.cross_entropy(logits.float().flatten(0, 1), target.repeat(views), reduction="none")
    return losses.view(views, -1).sum(0)
