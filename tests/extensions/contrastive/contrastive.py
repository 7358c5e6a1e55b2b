"""Supervised contrastive learning (Khosla et al., NeurIPS 2020) beside classification: a projection head and a loss."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config.require import require
from ltexp.distributed import gather_batch, gather_with_gradient, own_rows
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.models.module import StageModule
from ltexp.outputs import ModelOutput


class ProjectionHead(StageModule):
    """Features of all views (V, B, D) to unit rows (V, B, width): a linear map, ReLU, and another (Sec. 3.1).

    Args:
        feature_dim: D, which is also the width of the hidden layer.
        width: of a projection. Default 128 (the paper).
    """

    reads = ("view_features",)
    gives = ("projections",)

    def __init__(self, feature_dim: int, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(feature_dim, feature_dim), nn.ReLU(), nn.Linear(feature_dim, width))

    def forward(self, view_features: Tensor) -> Tensor:
        rows: Tensor = self.layers(view_features)
        return F.normalize(rows, dim=-1)


class SupervisedContrastive(Loss):
    """L_out of Eq. 2: each version of an image is to be nearer to those of its class than to all others of the batch.

    Args:
        class_counts: int64 (C,).
        temperature: τ, which divides the cosines. Default 0.1 (the paper).

    Raises:
        ConfigError: a temperature that is not positive.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"projections"})
    compares_rows = True

    def __init__(self, class_counts: Tensor, temperature: float = 0.1) -> None:
        super().__init__(class_counts)
        require(temperature > 0, "temperature", temperature, "a number above 0")
        self.temperature = temperature

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) the mean over an image's versions, against the versions of all images of the global batch."""
        projections = output.extra["projections"].float()
        views, size = len(projections), len(target) if context.size is None else context.size
        rows = gather_with_gradient(projections.transpose(0, 1), size)
        everything, labels = rows.transpose(0, 1).flatten(0, 1), gather_batch(target, size).repeat(views)
        anchors = projections.flatten(0, 1)
        logits = anchors @ everything.T / self.temperature
        # an anchor's own place among all: view by view, each with the global batch's rows
        place = (own_rows(size).to(target.device) + size * torch.arange(views, device=target.device)[:, None]).flatten()
        logits = logits.scatter(1, place[:, None], float("-inf"))
        positive = (target.repeat(views)[:, None] == labels).scatter(1, place[:, None], False)
        of_positives = logits.log_softmax(1).masked_fill(~positive, 0.0).sum(1)
        losses: Tensor = -of_positives / positive.sum(1)
        return losses.view(views, -1).mean(0)
