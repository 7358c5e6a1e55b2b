"""CutMix; CMO, whose patches come from a stream of rarer classes; GLMC's mixup of one view and CutMix of another."""

import math
from collections.abc import Collection
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ltexp.config.require import is_whole, require
from ltexp.data.loader import Batch
from ltexp.randomness import key_to_seed
from ltexp.training.mixing import Mixed, Mixing, Mixture, partners_of


class Box(NamedTuple):
    """A part of an image, in pixels: rows from top to bottom, columns from left to right, the last ones left out."""

    top: int
    bottom: int
    left: int
    right: int

    def share(self, height: int, width: int) -> float:
        """Its area over the image's."""
        return (self.bottom - self.top) * (self.right - self.left) / (height * width)


def box_around(row: int, column: int, height: int, width: int, side: float) -> Box:
    """A box of `side` times the image's sides with its centre at a pixel, cut off at the border (Yun et al., Eq. 2)."""
    return box_within(row, column, height, width, int(height * side) // 2, int(width * side) // 2)


def box_within(row: int, column: int, height: int, width: int, down: int, across: int) -> Box:
    """The box that reaches so far from a pixel to either side, cut off at the border."""
    return Box(max(row - down, 0), min(row + down, height), max(column - across, 0), min(column + across, width))


class CutMix(Mixing):
    """CutMix (Yun et al., ICCV 2019): a part of each image is that of another, one box for the whole batch.

    λ ~ Beta(α, α); the box has sides of √(1 - λ) of the image's and its centre anywhere; a label counts for the area
    that its image keeps.

    Args:
        class_counts: without effect.
        alpha: α. Default 1 (the paper).
        probability: that a batch is mixed. Default 0.5 (the paper's CIFAR; 1 on ImageNet).

    Raises:
        ConfigError: a setting out of range.
    """

    needs_images: ClassVar[bool] = True

    def __init__(self, class_counts: Tensor, alpha: float = 1.0, probability: float = 0.5) -> None:
        super().__init__(class_counts)
        require(alpha > 0, "alpha", alpha, "a number above 0; mixing none switches it off")
        require(0 < probability <= 1, "probability", probability, "a number above 0 and up to 1")
        self.alpha, self.probability = alpha, probability

    def __call__(self, batch: Batch, seed: int) -> Mixed:
        """The batch, or the batch with its partners' patches."""
        box = self.draw_box(seed, batch.epoch, batch.step, *batch.inputs.shape[2:])
        if box is None:
            return Mixed(batch.inputs, Mixture(batch.labels, batch.labels, 1.0))
        patches, labels = self.partners(batch)
        inputs, part = batch.inputs.clone(), (..., slice(*box[:2]), slice(*box[2:]))
        inputs[part] = patches[part]
        return Mixed(inputs, Mixture(batch.labels, labels, 1.0 - box.share(*inputs.shape[2:])))

    def partners(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(images, labels) that the patches are from, row by row."""
        return partners_of(batch)

    def draw_box(self, seed: int, epoch: int, step: int, height: int, width: int) -> Box | None:
        """The box of one batch; None: it is not mixed."""
        draws = np.random.Generator(np.random.PCG64(key_to_seed("mixing", seed, epoch, step)))
        if draws.random() >= self.probability:
            return None
        side = float(np.sqrt(1 - draws.beta(self.alpha, self.alpha)))
        return box_around(int(draws.integers(height)), int(draws.integers(width)), height, width, side)


class ContextRichMinorityOversampling(CutMix):
    """CMO (Park et al., CVPR 2022): patches of images of the stream `minority` on the backgrounds of the batch.

    Args:
        class_counts: without effect.
        alpha: see `CutMix`.
        probability: see `CutMix`. Default 0.5 (the authors' code).
        plain_first: epochs at the stage's beginning without it. Default 4 (the same).
        plain_last: epochs at its end without it. Default 3 (the same).
        epochs: of the stage, from whose end the last ones are counted; null: none are plain there.

    Raises:
        ConfigError: a setting out of range.
    """

    streams: Collection[str] = ("minority",)

    def __init__(
        self,
        class_counts: Tensor,
        alpha: float = 1.0,
        probability: float = 0.5,
        plain_first: int = 4,
        plain_last: int = 3,
        epochs: int | None = None,
    ) -> None:
        super().__init__(class_counts, alpha, probability)
        for key, value in (("plain_first", plain_first), ("plain_last", plain_last)):
            require(is_whole(value, 0), key, value, "a whole number of 0 or more")
        self.plain_first = plain_first
        self.stop = None if epochs is None else epochs - plain_last

    def draw_box(self, seed: int, epoch: int, step: int, height: int, width: int) -> Box | None:
        """None in the plain epochs, too."""
        if epoch < self.plain_first or (self.stop is not None and epoch >= self.stop):
            return None
        return super().draw_box(seed, epoch, step, height, width)

    def partners(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The images of the stream in this step."""
        minority = batch.streams["minority"]
        return minority.inputs[: len(batch.labels)], minority.labels[: len(batch.labels)]


class MixupAndCutMix(Mixing):
    """GLMC (Du et al., CVPR 2023): first views of the batch and the stream `partner` by mixup, second ones by CutMix.

    One λ ~ Beta(α, α) a batch for both, and one box, of √(1 - λ) of the image's sides. As in the authors' code, labels
    count for λ and not for the areas, which a box at the border does not keep.

    Args:
        class_counts: without effect.
        alpha: α. Default 1 (the authors' code, whatever its option `beta` says).

    Raises:
        ConfigError: α not above 0.
    """

    needs_images: ClassVar[bool] = True
    streams: Collection[str] = ("partner",)
    views: ClassVar[int | None] = 2

    def __init__(self, class_counts: Tensor, alpha: float = 1.0) -> None:
        super().__init__(class_counts)
        require(alpha > 0, "alpha", alpha, "a number above 0")
        self.alpha = alpha

    def __call__(self, batch: Batch, seed: int) -> Mixed:
        """Both mixed views, (2, n, ...)."""
        partner = batch.streams["partner"]
        assert batch.views is not None
        assert partner.views is not None
        height, width = batch.inputs.shape[2:]
        weight, box = self.draw(seed, batch.epoch, batch.step, height, width)
        blended = batch.views[0].lerp(partner.views[0], 1.0 - weight)
        pasted, part = batch.views[1].clone(), (..., slice(*box[:2]), slice(*box[2:]))
        pasted[part] = partner.views[1][part]
        views = torch.cat([blended, pasted]).view(batch.views.shape)  # unlike a stack it keeps the strides of images
        return Mixed(views, Mixture(batch.labels, partner.labels, weight))

    def draw(self, seed: int, epoch: int, step: int, height: int, width: int) -> tuple[float, Box]:
        """(λ, the box) of one batch."""
        draws = np.random.Generator(np.random.PCG64(key_to_seed("mixing", seed, epoch, step)))
        weight = float(draws.beta(self.alpha, self.alpha))
        row, column = int(draws.integers(height)), int(draws.integers(width))
        down, across = (math.ceil(length * math.sqrt(1 - weight)) // 2 for length in (height, width))
        return weight, box_within(row, column, height, width, down, across)
