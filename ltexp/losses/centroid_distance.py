"""Features near the centroid of their class and far from the others' (OLTR, Liu et al., CVPR 2019)."""

from typing import ClassVar

from torch import Tensor

from ltexp.config.require import require
from ltexp.counts import count_labels
from ltexp.distributed import gather_batch, sum_over_ranks, world_size
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.outputs import ModelOutput


class CentroidDistance(Loss):
    """sum_i ||f_i - c_{y_i}||² / (2 B) + repulsion * max(0, margin - sum_{i, k != y_i} ||f_i - c_k||² / (B C)).

    As in the authors' code, the first part moves a centroid by its samples' mean rather than their sum: its gradient is
    that sum of c_k - f_i over 1 + their number, and over B.

    Args:
        class_counts: (C,) int64.
        repulsion: weight of the second part. Default 0.01 (the authors' code).
        margin: default 10 (the same).

    Raises:
        ConfigError: a setting below 0.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"direct_features", "centroids"})
    takes_class_weights = False

    def __init__(self, class_counts: Tensor, repulsion: float = 0.01, margin: float = 10.0) -> None:
        super().__init__(class_counts)
        for key, value in {"repulsion": repulsion, "margin": margin}.items():
            require(value >= 0, key, value, "a number of 0 or more")
        self.repulsion, self.margin = repulsion, margin

    def forward(self, output: ModelOutput, target: Tensor, context: BatchContext | None = None) -> Tensor:
        """The scalar loss of a batch; the second counts for the mean of the samples' weights."""
        context = self.known(context)
        features, centroids = output.extra["direct_features"].float(), output.extra["centroids"].float()
        own = centroids[target]
        size = len(target) if context.size is None else context.size
        labels = target if context.labels is None else context.labels
        counts = count_labels(gather_batch(labels, size), self.num_classes)
        pulled = (features - own.detach()).square().sum(1) / 2
        moved = (features.detach() - own).square().sum(1) / 2 / (1 + counts[target])
        attract = context.weighted(pulled + moved - moved.detach()).mean()
        away = (features[:, None] - centroids).square().sum(2)
        away = (away.sum(1) - away.gather(1, target[:, None]).squeeze(1)).mean() / self.num_classes
        share = 1.0 if context.share is None else context.share
        near = (sum_over_ranks(away.detach() * share) / world_size() < self.margin).float()
        loss: Tensor = attract + self.repulsion * near * (self.margin - away) * context.mean_sample_weight
        return loss
