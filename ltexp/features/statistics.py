"""Mean and covariance of each class's features, summed batch by batch and over processes."""

import torch
from torch import Tensor

from ltexp.distributed import sum_over_ranks


class ClassStatistics:
    """Sums of features by class, in float64, so that neither order nor batches nor processes can be seen in the result.

    Args:
        num_classes: C.
        feature_dim: D.
        device: where the sums are kept.
        covariance: whether to keep what `covariance` needs, C * D * D numbers.
    """

    def __init__(
        self, num_classes: int, feature_dim: int, device: torch.device | str = "cpu", covariance: bool = False
    ) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self._sums = torch.zeros(num_classes, feature_dim, dtype=torch.float64, device=device)
        shape = (num_classes, feature_dim, feature_dim) if covariance else (0, 0, 0)
        self._products = torch.zeros(shape, dtype=torch.float64, device=device)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Adds features (n, D) of classes (n,), of this process alone."""
        features = features.double()
        self.counts.index_add_(0, labels, torch.ones_like(labels))
        self._sums.index_add_(0, labels, features)
        if len(self._products):
            for label in torch.bincount(labels).nonzero().flatten().tolist():
                own = features[labels == label]
                self._products[label].addmm_(own.T, own)

    def merge(self) -> None:
        """Adds up what all processes have seen; once, after the last `update`."""
        self.counts = sum_over_ranks(self.counts)
        self._sums = sum_over_ranks(self._sums)
        if len(self._products):
            self._products = sum_over_ranks(self._products)

    def mean(self) -> Tensor:
        """(C, D) float64, μ_k (GLAG, Eq. 5); NaN for a class without features."""
        return self._sums.div(self.counts[:, None])

    def covariance(self) -> Tensor:
        """(C, D, D) float64, Σ_k with n_k - 1 in the denominator (GLAG, Eq. 6); 0 for a class of one feature."""
        assert len(self._products), "built without covariance"
        mean = self.mean()
        spread = self._products - self.counts[:, None, None] * mean[:, :, None] * mean[:, None, :]
        counts = self.counts[:, None, None]
        return torch.where(counts > 1, spread / (counts - 1).clamp_min(1), 0.0)
