"""The head of OLTR (Liu et al., CVPR 2019): attention over the last map, and a memory of class centroids."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config.require import require
from ltexp.distributed import sum_over_ranks
from ltexp.errors import ConfigError
from ltexp.models.module import StageModule

REACH, SCALE = 10.0, 16.0  # the authors' code


class ModulatedAttention(nn.Module):
    """x + a M of a map x (B, D, h, w): M a non-local block's answer, a the softmax of a linear map of all of x.

    The non-local block is Wang et al.'s (CVPR 2018), of half the channels, without scaling; its last convolution starts
    at zero, so that at first the map is left as it is.

    Args:
        channels: D.
        places: h w.
    """

    def __init__(self, channels: int, places: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv2d(channels, channels // 2, 1) for _ in range(3))
        self.back = nn.Conv2d(channels // 2, channels, 1)
        nn.init.zeros_(self.back.weight)
        if self.back.bias is not None:
            nn.init.zeros_(self.back.bias)
        self.spatial = nn.Linear(channels * places, places)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w)."""
        theta, phi, g = (part(x).flatten(2) for part in (self.theta, self.phi, self.g))
        answer = (theta.mT @ phi).softmax(-1) @ g.mT
        answer = self.back(answer.mT.unflatten(2, x.shape[2:]))
        weights = self.spatial(x.flatten(1)).softmax(-1).unflatten(1, (1, *x.shape[2:]))
        attended: Tensor = x + weights * answer
        return attended


class CentroidMemory(StageModule):
    """From the last map to logits, with the help of a centroid c_k of each class.

    f = A pool(attention(map)) + b; the memory o = softmax(V f + d) c, V and d being the stage's own classifier;
    the selector e = tanh(E f); u = (10 / min_k ||f - c_k||) (f + e o); logits 16 u / (1 + ||u||) . w / ||w||. Here c is
    without gradient: `centroid_distance` moves it. It starts from the class means of f.

    Gives `logits`, in the place of the classifier's, `direct_features` f (B, D) and `centroids` (C, D).

    Args:
        feature_dim: D.
        num_classes: C.
        attention: whether there is one. Default true; false: f = A pool(map) + b, which is what the authors' code for
            Places-LT amounts to, where the attention's last convolution stays at its zero start.
        side: of the last map, which the attention is made for. Default 7, of images of 224 pixels.

    Raises:
        ConfigError: a side below 1.
    """

    reads = ("feature_maps", "class_vectors", "class_biases")
    gives = ("logits", "direct_features", "centroids")
    sees = True

    def __init__(self, feature_dim: int, num_classes: int, attention: bool = True, side: int = 7) -> None:
        super().__init__()
        require(side >= 1, "side", side, "a whole number of 1 or more")
        self.side = side
        self.attention = ModulatedAttention(feature_dim, side * side) if attention else None
        self.reduce = nn.Linear(feature_dim, feature_dim)
        self.selector = nn.Linear(feature_dim, feature_dim)
        self.weight = nn.Parameter(nn.Linear(feature_dim, num_classes).weight.detach())
        self.centroids = nn.Parameter(torch.zeros(num_classes, feature_dim))
        self._sums, self._counts = torch.zeros(0), torch.zeros(0)

    def check(self, *inputs: Any) -> None:
        """Refuses maps of another size, and a classifier without vectors of its classes."""
        maps, vectors, _ = inputs
        if vectors is None:
            raise ConfigError("a centroid memory continues a linear classifier: choose classifier linear")
        height, width = maps[-1].shape[2:]
        fits = self.attention is None or height == width == self.side
        require(fits, "side", self.side, f"that of the last map, which is {height}x{width}; or attention=false")

    def forward(self, maps: Sequence[Tensor], vectors: Tensor, biases: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(logits (B, C), f (B, D), c (C, D)) of the backbone's maps, the last of which is (B, D, h, w)."""
        self.check(maps, vectors, biases)
        features = self.direct(maps)
        with torch.autocast(features.device.type, enabled=False):
            f, c = features.float(), self.centroids.detach()
            memory = F.linear(f, vectors, biases).softmax(1) @ c
            reach = REACH / torch.cdist(f, c).amin(1, keepdim=True).clamp_min(1e-6)
            u = reach * (f + self.selector(f).tanh() * memory)
            u = u / (1 + u.norm(dim=1, keepdim=True))
            return SCALE * F.linear(u, F.normalize(self.weight)), f, self.centroids

    def direct(self, maps: Sequence[Tensor]) -> Tensor:
        """f (B, D) of the backbone's maps."""
        last = maps[-1] if self.attention is None else self.attention(maps[-1])
        features: Tensor = self.reduce(last.mean((2, 3)))
        return features

    def see(self, labels: Tensor, *inputs: Any) -> None:
        """Sums up f by class."""
        features = self.direct(inputs[0])[: len(labels)].float()
        if len(self._sums) == 0:
            self._sums, self._counts = torch.zeros_like(self.centroids), features.new_zeros(len(self.centroids))
        self._sums.index_add_(0, labels, features)
        self._counts += torch.bincount(labels, minlength=len(self._counts))

    def seen(self) -> None:
        """Starts the centroids at the class means."""
        means = sum_over_ranks(self._sums) / sum_over_ranks(self._counts).clamp_min(1)[:, None]
        self.centroids.copy_(means)
        self._sums, self._counts = torch.zeros(0), torch.zeros(0)
