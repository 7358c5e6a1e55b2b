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
        channel_mean, channel_std: those of R, G and B, for images scaled to [0, 1].
        settings: those of `Loader`.
    """

    samples = "images in memory"
    replayable = True

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
        paddings = [view.padding for view in self.augmentation.views]
        padded = {p: F.pad(images, (0, 0, p, p, p, p)) if p else images for p in set(paddings)}
        self._images = [padded[padding] for padding in paddings]
        self._normalize = Normalize(channel_mean, channel_std, images.shape[2], self.device)

    def _inputs(self, index: Tensor, draws: dict[str, Tensor], view: int) -> Tensor:
        augmentation = self.augmentation.views[view]
        return self._normalize(augmentation(self._images[view].index_select(0, index), draws))
