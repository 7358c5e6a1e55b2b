"""Stronger augmentations of image files than a crop with jitter: RandAugment, and the one of contrastive views."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ltexp.data.files.augmentation import RandomResizedCrop, in_parts
from ltexp.data.images.auto_augment import FILL
from ltexp.data.images.contrastive import Colours
from ltexp.data.images.rand_augment import RandomOperations


class ResizedRandAugment(RandomResizedCrop):
    """`RandomResizedCrop` with its flip and jitter, then RandAugment (Cubuk et al., CVPR Workshops 2020).

    Args:
        scale, ratio, flip, jitter: see `RandomResizedCrop`.
        operations, magnitude, spread, probability, fill: see `RandAugment`. Defaults 2, 30, 1.5 and 0.5: what the codes
            of PaCo, BCL, ProCo and GLMC call `rand-n2-m10-mstd0.5`, of magnitudes up to 10.

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(
        self,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip: bool = True,
        jitter: float = 0.4,
        operations: int = 2,
        magnitude: float = 30.0,
        spread: float = 1.5,
        probability: float = 0.5,
        fill: int = FILL,
    ) -> None:
        super().__init__(scale, ratio, flip, jitter)
        self.operations = RandomOperations(operations, magnitude, spread, probability, fill)

    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Those of `RandomResizedCrop`, then those of `RandomOperations`."""
        return super().draws(count, generator) | self.operations.draws(count, generator)

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return self.operations(super().__call__(images, draws).round().to(torch.uint8), draws)


class ResizedContrastive(RandomResizedCrop):
    """The augmentation of contrastive views for image files: a resized crop, mirrored, then `Colours`.

    Args:
        scale, ratio: see `RandomResizedCrop`; scale from 0.08 in the codes of BCL, PaCo and ProCo for large sets.
        jitter, hue, jittered, grey, blurred: see `ContrastiveViews`; BCL and ProCo do not blur.

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(
        self,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        jitter: float = 0.4,
        hue: float = 0.1,
        jittered: float = 0.8,
        grey: float = 0.2,
        blurred: float = 0.5,
    ) -> None:
        super().__init__(scale, ratio, jitter=0.0)  # its own has no hue and is of every image
        self.colours = Colours(jitter, hue, jittered, grey, blurred)

    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Those of the crop, then those of `Colours`."""
        draws = super().draws(count, generator)
        return draws | self.colours.draws(torch.rand(count, 3, generator=generator), generator)

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return in_parts(self.colours, images, draws)
