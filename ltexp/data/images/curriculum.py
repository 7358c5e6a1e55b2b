"""CUDA: each class's images are changed as strongly as the network can still tell them."""

import torch
from torch import Tensor

from ltexp.config.require import is_number, require
from ltexp.data.augmentation import Curriculum, constant
from ltexp.data.images.augmentation import CropFlip, cut_out
from ltexp.data.images.auto_augment import OPERATIONS, SIGNED, apply_operations, level_of
from ltexp.data.images.rand_augment import STRONGEST

LEVELS = 10  # the highest
CHOSEN = tuple(name for name in OPERATIONS if name != "none")
AT_LEVEL = tuple(tuple(level_of(name, level, STRONGEST) for name in OPERATIONS) for level in range(LEVELS + 1))


class ClassCurriculum(CropFlip, Curriculum):
    """CUDA (Ahn et al., ICLR 2023): crop and flip, then as many operations as the class's level says, then Cutout.

    At level s an image gets s operations, drawn evenly from AutoAugment's and RandAugment's 14, each at magnitude s of
    30; in training with a probability, else none. `ltexp.training.curriculum` raises and lowers the levels.

    Args:
        padding, flip, cutout: see `CropFlip`. Cutout of 16 is in the authors' command.
        probability: that a training image is changed by its class's level. Default 0.5 (the authors' code).
        threshold: the share of a class's changed images that the network must tell, at its level and each lower one, to
            raise the level. Default 0.6 (the same).
        images: of a class that are tried at level s are so many times s + 1. Default 10 (the same).

    Raises:
        ConfigError: a setting out of range.
    """

    highest = LEVELS

    def __init__(
        self,
        padding: int = 4,
        flip: bool = True,
        cutout: int = 16,
        probability: float = 0.5,
        threshold: float = 0.6,
        images: int = 10,
    ) -> None:
        CropFlip.__init__(self, padding, flip, cutout=cutout)
        require(is_number(probability, 0, 1) and probability > 0, "probability", probability, "above 0 and up to 1")
        Curriculum.__init__(self, threshold, images)
        self.probability = probability

    def draws_of(self, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Those of `draws`, `label` (count,), and `changed` (count,) of bool."""
        draws = self.draws(len(labels), generator)
        changed = torch.rand(len(labels), generator=generator) < self.probability
        return draws | {"label": labels, "changed": changed}

    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Those of `CropFlip`, `operation` (count, 10), positions in `OPERATIONS`, `backwards` (count, 10) of bool."""
        size = (count, LEVELS)
        numbers = torch.tensor([OPERATIONS.index(name) for name in CHOSEN])
        operation = numbers[torch.randint(len(CHOSEN), size, generator=generator)]
        backwards = torch.randint(2, size, generator=generator).bool()
        return super().draws(count, generator) | {"operation": operation, "backwards": backwards}

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        if not len(self.levels):  # nobody adapts them
            return self.at(images, draws, torch.zeros_like(draws["label"]), 0)
        levels = self.levels.to(images.device, non_blocking=True)[draws["label"]] * draws["changed"]
        return self.at(images, draws, levels, int(self.levels.max()))

    def at(self, images: Tensor, draws: dict[str, Tensor], levels: Tensor, most: int) -> Tensor:
        images = self._crop(images, draws)
        table = constant(images.device, *AT_LEVEL)
        signed = constant(images.device, *(name in SIGNED for name in OPERATIONS))
        for step in range(most):
            operation = torch.where(levels > step, draws["operation"][:, step], 0)  # 0: none
            strength = table[levels, operation]
            backwards = draws["backwards"][:, step] & signed[operation]
            images = apply_operations(images, operation, torch.where(backwards, -strength, strength))
        return cut_out(images, draws["hole"], self.cutout) if self.cutout else images
