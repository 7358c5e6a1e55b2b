"""What every backbone offers: features for the classifier, and on request the maps of its blocks."""

from typing import ClassVar

from torch import Tensor, nn


class Backbone(nn.Module):
    """Images to features. A subclass writes `forward_maps` and sets `feature_dim` and `map_channels`.

    Attributes:
        reads: the kind of data the backbone is for (`LongTailedData.kind`).
        feature_dim: D, the width of a feature; with experts, of each expert's.
        map_channels: the number of channels of each block's map, in the order of `forward_maps`.
    """

    reads: ClassVar[str] = "images"
    feature_dim: int
    map_channels: list[int]

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, H, W)."""
        return self.forward_maps(images)[0]

    def forward_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (B, D) and the map of each block, (B, map_channels[i], h_i, w_i), after its last ReLU."""
        raise NotImplementedError
