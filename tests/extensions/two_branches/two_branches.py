"""Two branches on two streams after BBN (Zhou et al., CVPR 2020), with a trunk that both share to its end."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.models.module import StageModule
from ltexp.outputs import ModelOutput


class RebalancingBranch(StageModule):
    """A second classifier with a layer of its own; the trained model's logits are the mean of both (λ = 1/2).

    It reads features (B, D) and the first classifier's logits (B, C), and gives the logits and its own. In training the
    former are as they were, because the loss mixes the branches.

    Args:
        feature_dim: D.
        num_classes: C.
    """

    reads = ("features", "logits")
    gives = ("logits", "rebalancing_logits")

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(feature_dim, feature_dim), nn.ReLU(), nn.Linear(feature_dim, num_classes))

    def forward(self, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        own = self.layers(features)
        return (logits if self.training else (logits + own) / 2), own


class CumulativeLearning(Loss):
    """λ CE(z, y) + (1 - λ) CE(z, y') of z = λ z_c + (1 - λ) z_r, with λ = 1 - (T / T_max)² in epoch T (Eqs. 1, 3, 5).

    z_c are the first branch's logits of the stage's batch with the labels y, z_r the second's of the stream `reversed`
    with the labels y', paired row by row.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"rebalancing_logits"})
    streams: ClassVar[frozenset[str]] = frozenset({"reversed"})
    takes_class_weights = False  # a row has two labels

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__(class_counts)

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        stream, weight = context.streams["reversed"], self.weight_in(context.epoch, context.max_epochs)
        second = stream.output.extra["rebalancing_logits"].float()
        logits = weight * self.logits(output) + (1 - weight) * second
        own, other = (F.cross_entropy(logits, labels, reduction="none") for labels in (target, stream.labels))
        return weight * own + (1 - weight) * other

    @staticmethod
    def weight_in(epoch: int, max_epochs: int) -> float:
        """λ in an epoch, from 0."""
        return 1.0 - (epoch / max_epochs) ** 2
