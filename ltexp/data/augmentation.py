"""Augmentation: random changes of samples, in whole batches.

All random draws of an epoch are made at its start, one for each position of the epoch's order; a step only gathers.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from ltexp.config.require import is_number, is_whole, require
from ltexp.errors import ConfigError


@lru_cache(maxsize=None, typed=True)
def constant(device: torch.device, *values: Any) -> Tensor:
    """Numbers, or rows of them, as a tensor on the device, made once: a copy of the host's makes it wait for a GPU."""
    return torch.tensor(values, device=device)


class Augmentation(ABC):
    """A random change of images, in two parts: the draws, made for a whole epoch, and their use on a batch.

    Attributes:
        samples: the kind of samples that it works with (`Loader.samples`); "" for all.
        padding: pixels of zeros that the loader puts around every image beforehand.
        replayable: whether a call does the same operations on the device for every batch, so that it can be part of a
            replayed step (`trainer.step_graph`). Of others, batches are made before it.
    """

    samples: str = "images in memory"
    replayable: bool = False
    padding: int = 0

    @property
    def views(self) -> Sequence["Augmentation"]:
        """The augmentation of each version of an image that a batch shows: one, itself."""
        return (self,)

    @abstractmethod
    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The random numbers for `count` images, as CPU tensors (count, ...) drawn from `generator` alone."""

    def draws_of(self, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """`draws` for images with these labels, int64 (count,) on the CPU, for an augmentation that depends on them."""
        return self.draws(len(labels), generator)

    @abstractmethod
    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """The changed images.

        Args:
            images: uint8 (B, H + 2 padding, W + 2 padding, 3); not to be changed in place.
            draws: the batch's rows of what `draws` gave, on the images' device.

        Returns:
            (B, H, W, 3), uint8, or float32 on the same scale of 0 to 255.
        """


class Curriculum(Augmentation):
    """An augmentation of a strength of each class's own, which `ltexp.training.curriculum` adapts to the model.

    Args:
        threshold: the share of a class's changed images that the model must tell for its level to rise.
        images: of a class that are tried at level s are so many times s + 1.

    Attributes:
        levels: int64 (C,), from 0 to `highest`; empty, all 0, where nothing adapts them.

    Raises:
        ConfigError: a setting out of range.
    """

    highest: ClassVar[int]

    def __init__(self, threshold: float, images: int) -> None:
        below_1 = is_number(threshold, 0, 1) and threshold < 1
        require(below_1, "threshold", threshold, "a number of 0 or more and below 1")
        require(is_whole(images, 1), "images", images, "a whole number of 1 or more")
        self.threshold, self.images = threshold, images
        self.levels = torch.zeros(0, dtype=torch.int64)

    @abstractmethod
    def at(self, images: Tensor, draws: dict[str, Tensor], levels: Tensor, most: int) -> Tensor:
        """The images changed by levels of their own.

        Args:
            images, draws: see `__call__`; the draws are `draws`'s.
            levels: int64 (B,), on the images' device.
            most: the highest of them, or more.
        """


class NoAugmentation(Augmentation):
    """Images as they are; of files, the part that evaluation sees."""

    samples = ""
    replayable = True

    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return images


class Views(Augmentation):
    """Several versions of each image, each by an augmentation of its own; the first is what classification reads.

    The first version's draws are those that its augmentation would make alone.

    Args:
        augmentations: one for each version, in their order; in a mapping the names are for the config alone.

    Raises:
        ConfigError: for fewer than two, one of several versions itself, or for different kinds of images.
    """

    def __init__(self, augmentations: Sequence[Augmentation] | Mapping[str, Augmentation]) -> None:
        parts = augmentations.values() if isinstance(augmentations, Mapping) else augmentations
        self._views = tuple(parts)
        kinds = {view.samples for view in self._views} - {""}
        if len(self._views) < 2 or any(len(view.views) > 1 for view in self._views):
            raise ConfigError("expected two or more augmentations, each of one view", "augmentations")
        if len(kinds) > 1:
            raise ConfigError(f"they are for {' and for '.join(sorted(kinds))}: choose those of one", "augmentations")
        self.samples = kinds.pop() if kinds else ""

    @property
    def views(self) -> Sequence[Augmentation]:
        return self._views

    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Those of the first view."""
        return self._views[0].draws(count, generator)

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """The first view."""
        return self._views[0](images, draws)
