"""RandAugment (Cubuk et al., CVPR Workshops 2020) on whole batches of images."""

import torch
from torch import Tensor

from ltexp.config.require import is_number, is_whole, require
from ltexp.data.images.augmentation import CropFlip, cut_out
from ltexp.data.images.auto_augment import FILL, OPERATIONS, SIGNED, apply_operations, level_of

STRONGEST = 30  # the largest magnitude
STEPS = 10  # of a magnitude: with a spread it is drawn to a tenth
CHOSEN = tuple(name for name in OPERATIONS if name != "invert")  # the 14 of the paper (Sec. 3), "none" among them
LEVELS = tuple(
    tuple(level_of(name, step / STEPS, STRONGEST) for step in range(STEPS * STRONGEST + 1)) for name in OPERATIONS
)


class RandomOperations:
    """Operations on each image, one after the other, each drawn evenly from the 14 of RandAugment.

    Args:
        operations: how many, 1 or more.
        magnitude: from 0, nothing, to 30; brightness, contrast, colour, sharpness, shears, shifts and turns go either
            way.
        spread: standard deviation of the magnitude, cut off at 0 and 30.
        probability: that an operation is applied.
        fill: grey value from 0 to 255 where a moved image leaves a gap.

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(self, operations: int, magnitude: float, spread: float, probability: float, fill: int) -> None:
        require(is_whole(operations, 1), "operations", operations, "a whole number of 1 or more")
        require(is_number(magnitude, 0, STRONGEST), "magnitude", magnitude, f"a number from 0 to {STRONGEST}")
        require(is_number(spread, 0), "spread", spread, "a number of 0 or more")
        likely = is_number(probability, 0, 1) and probability > 0
        require(likely, "probability", probability, "a number above 0 and up to 1")
        require(is_whole(fill, 0, 255), "fill", fill, "a whole number from 0 to 255")
        self.operations, self.magnitude, self.spread = operations, float(magnitude), float(spread)
        self.probability, self.fill = float(probability), fill

    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`operation`, positions in `OPERATIONS`, and `level` with its sign (`level_of`), (count, operations) each."""
        size = (count, self.operations)
        numbers = torch.tensor([OPERATIONS.index(name) for name in CHOSEN])
        operation = numbers[torch.randint(len(CHOSEN), size, generator=generator)]
        magnitude = torch.full(size, self.magnitude)
        if self.spread:
            magnitude = (magnitude + self.spread * torch.randn(size, generator=generator)).clamp(0, STRONGEST)
        level = torch.tensor(LEVELS)[operation, (STEPS * magnitude).round().long()]
        signed = torch.tensor([name in SIGNED for name in OPERATIONS])[operation]
        backwards = torch.randint(2, size, generator=generator).bool() & signed
        if self.probability < 1:
            applied = torch.rand(size, generator=generator) < self.probability
            operation = torch.where(applied, operation, OPERATIONS.index("none"))
        return {"operation": operation, "level": torch.where(backwards, -level, level)}

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """uint8 (B, H, W, 3), of such images."""
        for step in range(self.operations):
            images = apply_operations(images, draws["operation"][:, step], draws["level"][:, step], self.fill)
        return images


class RandAugment(CropFlip):
    """Crop and flip of images in memory, then RandAugment, then Cutout.

    Args:
        padding, flip: see `CropFlip`.
        operations: of each image. Default 2 (the paper on ImageNet).
        magnitude: of 30. Default 9 (the same).
        spread: of the magnitude. Default 0 (the same).
        probability: of each operation. Default 1 (the same).
        fill: grey value of what a moved image leaves. Default 128 (the paper's code).
        cutout: side of a black square at the end; 0: none.

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(
        self,
        padding: int = 4,
        flip: bool = True,
        operations: int = 2,
        magnitude: float = 9.0,
        spread: float = 0.0,
        probability: float = 1.0,
        fill: int = FILL,
        cutout: int = 0,
    ) -> None:
        super().__init__(padding, flip, cutout=cutout)
        self.operations = RandomOperations(operations, magnitude, spread, probability, fill)

    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Those of `CropFlip`, then those of `RandomOperations`."""
        return super().draws(count, generator) | self.operations.draws(count, generator)

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        images = self.operations(self._crop(images, draws), draws)
        return cut_out(images, draws["hole"], self.cutout) if self.cutout else images
