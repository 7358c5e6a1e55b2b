"""Batches of images in memory."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltexp.data.loader import Loader
from ltexp.data.normalize import Normalize
from ltexp.data.types import ImageSplit


class ImageLoader(Loader[ImageSplit]):
    """Batches of images that lie in memory on the training device; no workers, no Python for each image.

    Args:
        split: its images go to the device once, as uint8.
        channel_mean, channel_std: of R, G and B, for images scaled to [0, 1].
        settings: see `Loader`.
    """

    samples = "images in memory"

    def __init__(
        self,
        split: ImageSplit,
        *,
        channel_mean: tuple[float, float, float],
        channel_std: tuple[float, float, float],
        **settings: Any,
    ) -> None:
        super().__init__(split, **settings)
        images = torch.from_numpy(split.images).to(self.device)
        padding = self.augmentation.padding
        self._images = F.pad(images, (0, 0, padding, padding, padding, padding)) if padding else images
        self._normalize = Normalize(channel_mean, channel_std, images.shape[2], self.device)

    def _inputs(self, index: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return self._normalize(self.augmentation(self._images.index_select(0, index), draws))
