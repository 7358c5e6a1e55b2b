"""Augmentation: random changes of samples, in whole batches.

All random draws of an epoch are made at its start, one for each position of the epoch's order; a step only gathers.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor


class Augmentation(ABC):
    """A random change of images, in two parts: the draws, made for a whole epoch, and their use on a batch.

    Attributes:
        reads: the `samples` of the loaders that it works with; "" for all.
        padding: pixels of zeros that the loader puts around every image beforehand.
    """

    reads: ClassVar[str] = "images in memory"
    padding: int = 0

    @abstractmethod
    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The random numbers for `count` images, as CPU tensors (count, ...) drawn from `generator` alone."""

    @abstractmethod
    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """The changed images.

        Args:
            images: uint8 (B, H + 2 padding, W + 2 padding, 3); not to be changed in place.
            draws: the batch's rows of what `draws` gave, on the images' device.

        Returns:
            (B, H, W, 3), uint8, or float32 on the same scale of 0 to 255.
        """


class NoAugmentation(Augmentation):
    """Images as they are; of files, the part that evaluation sees."""

    reads = ""

    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return images
