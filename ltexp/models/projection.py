"""Projection heads: features to unit rows, for losses that compare samples with each other."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config.require import require
from ltexp.models.module import StageModule


class ProjectionHead(StageModule):
    """Features of all views (V, B, D) to unit rows (V, B, width): a linear map, ReLU, and another.

    Gives `projections` (Khosla et al., NeurIPS 2020, Sec. 3.1).

    Args:
        feature_dim: D, which is also the width of the hidden layer.
        width: of a projection. Default 128 (the paper).

    Raises:
        ConfigError: a width below 1.
    """

    reads = ("view_features",)
    gives = ("projections",)

    def __init__(self, feature_dim: int, width: int = 128) -> None:
        super().__init__()
        require(width >= 1, "width", width, "a whole number of 1 or more")
        self.layers = nn.Sequential(nn.Linear(feature_dim, feature_dim), nn.ReLU(), nn.Linear(feature_dim, width))

    def forward(self, view_features: Tensor) -> Tensor:
        """(V, B, width), float32."""
        with torch.autocast(view_features.device.type, enabled=False):
            rows: Tensor = self.layers(view_features.float())
            return F.normalize(rows, dim=-1)
