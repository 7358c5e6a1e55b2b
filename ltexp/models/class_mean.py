"""A cosine classifier whose training starts from class means."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ltexp.models.classifier import Cosine


class ClassMeanCosine(Cosine):
    """`Cosine` whose weight starts as the mean of each class's training features, of norm 1.

    As LIFT starts its head over networks without text (Shi et al., ICML 2024, its code). A class without images keeps
    its random row.
    """

    starts_from_features: ClassVar[bool] = True

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Takes the class means of features (N, D) with labels (N,)."""
        sums = torch.zeros(self.num_classes, self.feature_dim, dtype=torch.float64, device=features.device)
        sums.index_add_(0, labels, features.double())
        seen = torch.bincount(labels, minlength=self.num_classes) > 0
        self.weight[seen] = F.normalize(sums)[seen].to(self.weight.dtype)
