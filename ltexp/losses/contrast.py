"""What losses that contrast the images of a batch with each other have in common: anchors, and all that they face."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from ltexp.distributed import gather_batch, gather_with_gradient, own_rows
from ltexp.losses.context import BatchContext


class Contrast(NamedTuple):
    """The projections of a batch as a loss compares them.

    Attributes:
        anchors: (A, d), this process's rows, view by view: A = V * B of V views of B images.
        labels: int64 (A,), theirs.
        others: (N, d), the rows of all processes, view by view, anchors among them; the gradient flows through them.
        other_labels: int64 (N,), theirs.
        place: int64 (A,), which of the others an anchor is itself.
        views: V.
    """

    anchors: Tensor
    labels: Tensor
    others: Tensor
    other_labels: Tensor
    place: Tensor
    views: int

    @classmethod
    def of(cls, projections: Tensor, target: Tensor, context: BatchContext) -> Self:
        """The contrast of projections (V, B, d), unit rows of this process's images with the labels `target` (B,)."""
        projections, views = projections.float(), len(projections)
        size = len(target) if context.size is None else context.size
        everything = gather_with_gradient(projections.transpose(0, 1), size).transpose(0, 1).flatten(0, 1)
        own = own_rows(size, target.device)
        place = own + size * torch.arange(views, device=target.device)[:, None]
        labels = gather_batch(target, size).repeat(views)
        return cls(projections.flatten(0, 1), target.repeat(views), everything, labels, place.flatten(), views)

    def similarities(self, rows: Tensor, temperature: float) -> Tensor:
        """(A, len(rows)): products of the anchors with unit rows, over the temperature, in float32."""
        with torch.autocast(rows.device.type, enabled=False):
            return self.anchors @ rows.T / temperature

    def without_itself(self, values: Tensor, fill: float = float("-inf")) -> Tensor:
        """`values` (A, N or more), N columns of the others first, with `fill` where an anchor meets itself."""
        return values.scatter(1, self.place[:, None], fill)

    def same_class(self, labels: Tensor) -> Tensor:
        """bool (A, len(labels)): whether an anchor is of the class of a column."""
        return self.labels[:, None] == labels

    def by_image(self, of_anchors: Tensor) -> Tensor:
        """(B,): the mean over an image's views of what (A,) anchors have."""
        return of_anchors.view(self.views, -1).mean(0)
