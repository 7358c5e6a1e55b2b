"""Running covariances of each class's features, and the spread of the logits from them (ISDA, Wang et al., 2019)."""

from typing import Any, Literal

import torch
from torch import Tensor

from ltexp.config.require import require_choice
from ltexp.counts import count_labels
from ltexp.distributed import sum_over_ranks
from ltexp.errors import ConfigError
from ltexp.models.module import StageModule

FORMS = ("full", "diagonal")


class ClassCovariance(StageModule):
    """Covariance S_c and mean M_c of each class's features, and the spread of the logits that follows from S.

    Gives `logit_spread` (B, C): (w_j - w_y)ᵀ S_y (w_j - w_y) for a sample's label y and every class j, the variance of
    z_j - z_y where the feature has the covariance S_y. The estimates move when `update` is called, by a step.

    Args:
        feature_dim: D.
        num_classes: C.
        form: "full" (default, the authors' code): D x D for each class. "diagonal": D for each class, for large sets:
            1,000 full matrices of 2,048 features are 17 GB.

    Attributes:
        covariance: (C, D, D), or (C, D).
        mean: (C, D).
        count: (C,) samples seen.

    Raises:
        ConfigError: an unknown form.
    """

    reads = ("labels", "class_vectors")
    gives = ("logit_spread",)

    covariance: Tensor
    mean: Tensor
    count: Tensor

    def __init__(self, feature_dim: int, num_classes: int, form: Literal["full", "diagonal"] = "full") -> None:
        super().__init__()
        require_choice("form", form, FORMS)
        self.full = form == "full"
        shape = (feature_dim, feature_dim) if self.full else (feature_dim,)
        self.register_buffer("covariance", torch.zeros(num_classes, *shape))
        self.register_buffer("mean", torch.zeros(num_classes, feature_dim))
        self.register_buffer("count", torch.zeros(num_classes))

    def check(self, *inputs: Any) -> None:
        """Refuses a classifier without vectors of its classes."""
        if inputs[1] is None:
            raise ConfigError("class covariances spread the logits of a linear classifier: choose classifier linear")

    def forward(self, labels: Tensor, vectors: Tensor) -> Tensor:
        """(B, C) spread of the logits of samples with `labels` (B,), for the classes' `vectors` (C, D)."""
        with torch.autocast(vectors.device.type, enabled=False):
            vectors, spreads = vectors.float(), self.covariance[labels]
            if self.full:
                apart = vectors - vectors[labels][:, None]
                return torch.einsum("bcd,bde,bce->bc", apart, spreads, apart)
            own = vectors[labels]
            squares = spreads @ vectors.square().T
            return squares - 2 * (spreads * own) @ vectors.T + (spreads * own.square()).sum(1, keepdim=True)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Takes a batch in: the estimates are those of all samples seen, as the authors' running estimator has them.

        Args:
            features: (n, D) of this process's rows, float32; the batch is that of all processes.
            labels: (n,).
        """
        classes, width = self.mean.shape
        count = sum_over_ranks(count_labels(labels, classes).to(features))
        total = features.new_zeros(classes, width).index_add_(0, labels, features)
        mean = sum_over_ranks(total) / count.clamp_min(1)[:, None]
        apart = features - mean[labels]
        squares = apart[:, :, None] * apart[:, None] if self.full else apart.square()
        spread = sum_over_ranks(torch.zeros_like(self.covariance).index_add_(0, labels, squares))
        shape = (-1, *[1] * (spread.ndim - 1))
        new = (count / (count + self.count).clamp_min(1)).view(shape)
        spread, shift = spread / count.clamp_min(1).view(shape), self.mean - mean
        moved = shift[:, :, None] * shift[:, None] if self.full else shift.square()
        self.covariance.copy_((1 - new) * self.covariance + new * spread + new * (1 - new) * moved)
        share = new.view(-1, 1)
        self.mean.copy_((1 - share) * self.mean + share * mean)
        self.count.add_(count)
