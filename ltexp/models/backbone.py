"""What every backbone offers: features for the classifier, and on request the maps of its blocks."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from ltexp.config import FILES_OF_A_BACKBONE


class Backbone(nn.Module):
    """Images to features. A subclass writes `forward_maps` and sets `feature_dim` and `map_channels`.

    Attributes:
        reads: the kind of data the backbone is for (`LongTailedData.kind`).
        feature_dim: D, the width of a feature; with experts, of each expert's.
        map_channels: the number of channels of each block's map, in the order of `forward_maps`.
        num_branches: how many last blocks the network has side by side; features and last maps are those of all, one
            after the other. Default 1.
    """

    reads: ClassVar[str] = "images"
    feature_dim: int
    map_channels: list[int]
    num_branches: int = 1

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, H, W)."""
        return self.forward_maps(images)[0]

    def forward_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (B, D) and the map of each block, (B, map_channels[i], h_i, w_i), after its last ReLU."""
        raise NotImplementedError

    def forward_branch(self, images: Tensor, branch: int) -> tuple[Tensor, list[Tensor]]:
        """`forward_maps` through one of several branches alone, whose features count for all (`ltexp.models.branches`).

        Args:
            images: (B, 3, H, W).
            branch: its number, from 0.
        """
        raise NotImplementedError

    def check(self, inputs: Tensor) -> None:
        """Refuses, before training, samples that the backbone cannot read, such as images of another size.

        Args:
            inputs: (1, ...), one sample as batches hold it.

        Raises:
            ConfigError: saying what to choose instead.
        """

    def frozen_parts(self) -> list[nn.Module]:
        """Parts that never learn: no stage gives their parameters a gradient or takes them out of eval mode."""
        return []


def without_files(config: Mapping[str, Any]) -> dict[str, Any]:
    """A backbone's config node without the files that it starts from, for one whose state is loaded anyway."""
    return {key: None if key in FILES_OF_A_BACKBONE else value for key, value in config.items()}
