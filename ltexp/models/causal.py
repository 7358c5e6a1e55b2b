"""The de-confounded classifier (TDE; Tang et al., "Long-Tailed Classification by Keeping the Good", NeurIPS 2020)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config.require import is_whole, require
from ltexp.distributed import sum_over_ranks
from ltexp.errors import CheckpointError
from ltexp.models.classifier import Classifier, Kind

TAU, GAMMA = 16.0, 1 / 32  # the authors' code


class MultiHeadNormalized(Classifier):
    """Logits (τ / H) Σ_h x̂_h · w_ch / (||w_ch|| + γ), of H parts of the feature, each of ceil(D / H) places.

    x̂_h is a part of the feature scaled to norm 1, τ = 16 and γ = 1/32. While training, each step of the optimizer moves
    the mean m <- μ m + mean of the step's features, of all processes. In evaluation x̂_h gives way to
    x̂_h - α (x̂_h · m̂_h) m̂_h, m̂ being m with its parts scaled to norm 1: what the momentum of training, which goes
    towards the frequent classes, has put into every feature is taken out. Before any training m is 0 and takes out
    nothing.

    Args:
        feature_dim: D.
        num_classes: C.
        heads: H. Default 2 (the authors' code).
        alpha: α. Default 1.5, the authors' on CIFAR-100; 1 on CIFAR-10, 3 on ImageNet-LT and Places-LT. 0: the plain
            normalised classifier.
        momentum: μ in [0, 1). Default 0.9 (the authors' code on CIFAR).

    Raises:
        ConfigError: a setting out of range.
    """

    kind: Kind = "normalized"
    weight: nn.Parameter
    mean: Tensor

    def __init__(
        self, feature_dim: int, num_classes: int, heads: int = 2, alpha: float = 1.5, momentum: float = 0.9
    ) -> None:
        super().__init__(feature_dim, num_classes)
        require(is_whole(heads, 1), "heads", heads, "a whole number of 1 or more")
        require(alpha >= 0, "alpha", alpha, "a number of 0 or more")
        require(0 <= momentum < 1, "momentum", momentum, "a number of 0 or more and below 1")
        self.heads, self.alpha, self.momentum = heads, alpha, momentum
        bound = 1 / math.sqrt(feature_dim)
        self.weight = nn.Parameter(torch.empty(num_classes, feature_dim).uniform_(-bound, bound))
        self.register_buffer("mean", torch.zeros(feature_dim))
        self._seen: list[tuple[Tensor, int]] = []  # sums of the features of this step, and how many

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C), float32, of features (B, D)."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            if self.training and self.weight.requires_grad:
                self._seen.append((features.detach().sum(0), len(features)))
            return F.linear(self._unit(features), self._map(0.0 if self.training else self.alpha))

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Moves the mean by the features that have come by since the last step, on all processes."""
        if not self._seen:
            return
        sums = torch.stack([total for total, _ in self._seen]).sum(0)
        count = sums.new_full((1,), sum(rows for _, rows in self._seen))
        total = sum_over_ranks(torch.cat([sums, count]))
        self.mean.mul_(self.momentum).add_(total[:-1] / total[-1])
        self._seen.clear()

    def _parts(self, rows: Tensor) -> Tensor:
        """(n, H, ceil(D / H)) of rows (n, D); a shorter last part is filled up with zeros, which change no norm."""
        padded = F.pad(rows, (0, -self.feature_dim % self.heads))
        return padded.reshape(rows.shape[0], self.heads, -1)  # not len(): an export leaves the number of rows open

    def _joined(self, parts: Tensor) -> Tensor:
        """Rows (n, D) of their parts."""
        return parts.flatten(1)[:, : self.feature_dim]

    def _unit(self, rows: Tensor) -> Tensor:
        """Rows (n, D) whose parts are scaled to norm 1."""
        return self._joined(F.normalize(self._parts(rows), dim=2))

    def _map(self, alpha: float) -> Tensor:
        """(C, D) the map of features with parts of norm 1."""
        parts = self._parts(self.weight.float())
        parts = parts / (parts.norm(dim=2, keepdim=True) + GAMMA)
        if alpha:
            mean = self._parts(self._unit(self.mean[None]))
            parts = parts - alpha * (parts * mean).sum(2, keepdim=True) * mean
        return TAU / self.heads * self._joined(parts)

    @torch.no_grad()
    def linear_form(self) -> tuple[Tensor, Tensor | None]:
        """The map (C, D) of features with parts of norm 1, as in evaluation; no bias."""
        return self._map(self.alpha), None

    @torch.no_grad()
    def start_from(self, source: Classifier) -> None:
        """Continues weight and mean of another such classifier; see `Classifier.start_from`."""
        self._check_source(source, ["normalized"])
        assert isinstance(source, MultiHeadNormalized)
        if source.heads != self.heads:
            raise CheckpointError(f"the previous stage's classifier has {source.heads} heads and this one {self.heads}")
        self.weight.copy_(source.weight)
        self.mean.copy_(source.mean)
