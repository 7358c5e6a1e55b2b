"""The features of one epoch, class by class, and draws with their classes' covariances."""

import math

import torch
from torch import Tensor

from ltexp.features.statistics import ClassStatistics

COVARIANCES = ("auto", "implicit", "full")
BLOCK = 2**24  # random numbers drawn at a time for one class


class FeatureBank:
    """Features with their class statistics, which can be drawn from without a covariance matrix.

    Σ_k equals A_k^T A_k for the centred features of class k over sqrt(n_k - 1) as the n_k rows of A_k, so that A_k^T u
    with u ~ N(0, I) has covariance Σ_k: exact, also where Σ_k is singular, and without D x D numbers for each class.
    Where a class has more features than D, the D rows sqrt(λ) v of the eigenvectors of Σ_k do the same for less.

    Args:
        features: (N, D) float32.
        labels: (N,) int64.
        statistics: of the same features, over all processes.
        covariance: "auto" (default): A_k has the features' rows or the eigenvectors', whichever are fewer; "implicit":
            always the features'; "full": always the eigenvectors' of Σ_k, for small D.

    Attributes:
        features: (N, D), sorted by class.
        labels: (N,), of the sorted features.
        place: (N,), where the features given are among the sorted ones.
        counts: (C,) n_k on the CPU, as `starts` (C,), the first row of each class.
        means: (C, D) float32, μ_k.
    """

    def __init__(self, features: Tensor, labels: Tensor, statistics: ClassStatistics, covariance: str = "auto") -> None:
        order = labels.argsort(stable=True)
        rows = torch.arange(len(order), device=order.device)
        self.place = torch.empty_like(order).scatter_(0, order, rows)
        # a training set is usually sorted already, and its features are then not held twice
        in_order = bool((order == rows).all())
        self.features, self.labels = (features, labels) if in_order else (features[order], labels[order])
        self.counts = statistics.counts.cpu()
        self.starts = self.counts.cumsum(0) - self.counts
        self.means = statistics.mean().float()
        self.covariance = covariance
        self._factors: dict[int, Tensor] = {}

    def of_class(self, label: int) -> Tensor:
        """(n_k, D) the features of a class, a view."""
        start = int(self.starts[label])
        return self.features[start : start + int(self.counts[label])]

    def add_deviations(
        self, into: Tensor, label: int, rows: Tensor, factor: Tensor, draws: torch.Generator, shared: bool = False
    ) -> None:
        """Adds to each of some rows of `into` a draw from N(0, Σ_k) times a factor of the row's own.

        Args:
            into: (m, D), changed in place.
            label: k.
            rows: (r,) positions in `into`, each at most once.
            factor: (r,) float32.
            draws: on the features' device.
            shared: whether there are negative rows, another process's: they draw and are left out.
        """
        own, count = self.of_class(label), int(self.counts[label])
        if count < 2:
            return  # Σ_k is 0
        direct = self.covariance == "implicit" or (self.covariance == "auto" and count <= own.shape[1])
        width = count if direct else own.shape[1]
        for start in range(0, len(rows), max(1, BLOCK // width)):
            part = slice(start, start + max(1, BLOCK // width))
            noise = torch.randn(len(rows[part]), width, generator=draws, device=own.device)
            target, noise = rows[part], noise * factor[part, None]
            if shared:
                mine = target >= 0
                target, noise = target[mine], noise[mine]
            if direct:
                deviation = torch.addmm(
                    noise.sum(1, keepdim=True) * self.means[label], noise, own, beta=-1, alpha=1
                ).div_(math.sqrt(count - 1))
            else:
                deviation = noise @ self._factor(label)
            into.index_add_(0, target, deviation)

    def _factor(self, label: int) -> Tensor:
        """(D, D) the rows sqrt(λ) v of Σ_k."""
        if label not in self._factors:
            centered = self.of_class(label).double() - self.means[label]
            values, vectors = torch.linalg.eigh(centered.T @ centered / (len(centered) - 1))
            self._factors[label] = (vectors * values.clamp_min(0).sqrt()).T.float().contiguous()
        return self._factors[label]
