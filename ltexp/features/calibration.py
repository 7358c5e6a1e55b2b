"""What a rare class's features take over from frequent classes near them (GLAG, arXiv 2203.00452, Eqs. 7-10)."""

from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 4096  # features compared with all class means at a time


class Support(NamedTuple):
    """The classes that each of n features learns from.

    Attributes:
        classes: (n, K) int64, the nearest richer classes, S (Eq. 7).
        weights: (n, K) float32 ω_j over their sum (Eq. 10); each row sums to 1.
    """

    classes: Tensor
    weights: Tensor


def nearest_richer(features: Tensor, labels: Tensor, means: Tensor, images: Tensor, counts: Tensor, k: int) -> Support:
    """The K classes with more images than a feature's own whose means are nearest to it, and ω_j = N_j / d_ij.

    Features are compared with richer classes alone, those of rich classes first, so that the many features of rich
    classes cost little; at no time are there more than `ROWS` x C distances.

    Args:
        features: (n, D) float32.
        labels: (n,), their classes, each with at least `k` richer ones.
        means: (C, D) float32, μ_j.
        images: (C,) what says which class is richer: its training images.
        counts: (C,) N_j, how many features μ_j is the mean of.
        k: K.
    """
    center = means.mean(0)  # without what all have in common, the expanded square loses fewer digits
    by_size = images.argsort(descending=True, stable=True)
    sizes, shifted = images[by_size], means[by_size] - center
    squares = shifted.square().sum(1)
    classes = torch.empty(len(features), k, dtype=torch.int64, device=features.device)
    for rows in torch.split(images[labels].argsort(descending=True, stable=True), ROWS):
        own = images[labels[rows]]
        richer = int((sizes > own[-1]).sum())  # than the poorest of these
        distance = squares[:richer] - 2 * (features[rows] - center) @ shifted[:richer].T  # less the feature's square
        distance.masked_fill_(sizes[:richer] <= own[:, None], torch.inf)
        classes[rows] = by_size[distance.topk(k, largest=False).indices]
    distances = torch.stack([(features - means[column]).norm(dim=1) for column in classes.unbind(1)], dim=1)
    # in float64 a feature on a class mean has a weight that is finite, and it learns from that class alone
    weights = counts[classes] / distances.double().clamp_min(1e-30)
    return Support(classes, (weights / weights.sum(1, keepdim=True)).float())


def calibrated_mean(features: Tensor, beta: Tensor, support: Support, means: Tensor) -> Tensor:
    """(n, D) (1 - β) x_i + β Σ_j w_j μ_j (Eq. 8), with w the normalised weights.

    Args:
        features: (n, D).
        beta: (n,) β of each feature's class.
        support: of the same features.
        means: (C, D).
    """
    lent = torch.zeros_like(features)
    for column, weight in zip(support.classes.unbind(1), support.weights.unbind(1), strict=True):
        lent.addcmul_(weight[:, None].to(features.dtype), means[column])
    return torch.lerp(features, lent, beta[:, None].to(features.dtype))


def calibrated_covariance(labels: Tensor, beta: Tensor, support: Support, covariance: Tensor, gamma: float) -> Tensor:
    """(n, D, D) (1 - β)² Σ_own + β² Σ_j w_j Σ_j + γ I (Eq. 9), for small D: n D² numbers.

    Args:
        labels: (n,) each feature's own class.
        beta: (n,).
        support: of the same features.
        covariance: (C, D, D) float64.
        gamma: γ.
    """
    lent = torch.einsum("nk,nkde->nde", support.weights.to(covariance.dtype), covariance[support.classes])
    beta = beta.to(covariance.dtype)[:, None, None]
    identity = torch.eye(covariance.shape[1], dtype=covariance.dtype, device=covariance.device)
    return (1 - beta) ** 2 * covariance[labels] + beta**2 * lent + gamma * identity
