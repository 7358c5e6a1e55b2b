"""Augmentation of whole batches of small images on the device that holds them."""

from typing import Any

import torch
from torch import Tensor

from ltexp.config.require import is_whole, require
from ltexp.data.augmentation import Augmentation, constant
from ltexp.data.images.auto_augment import apply_operations, draw_operations
from ltexp.data.images.moving import rotate


class CropFlip(Augmentation):
    """A crop of the image's own size out of the zero-padded image, and a horizontal flip with probability 1/2.

    With a `rotation` of 15 it is the augmentation of RIDE's CIFAR code (Wang et al., ICLR 2021). With `auto_augment`
    and a `cutout` of 16 it is the stronger augmentation of balanced softmax's CIFAR code (Ren et al., NeurIPS 2020), in
    the order of the arguments.

    Args:
        padding: pixels on each side; CIFAR: 4 (Cao et al., NeurIPS 2019).
        flip: whether to flip.
        auto_augment: whether a sub-policy of AutoAugment's CIFAR-10 policy (Cubuk et al., CVPR 2019) follows.
        cutout: side of a black square with its centre anywhere in the image (DeVries and Taylor, 2017); 0: none.
        rotation: after crop and flip, by up to so many degrees to either side about the centre, black outside; 0: none.
        grey: the share of images that lose their colours, drawn at random (SimCLR, Chen et al., ICML 2020: 0.2).

    Raises:
        ConfigError: for a padding or a cutout below 0, a rotation out of [0, 180], or a share out of [0, 1].
    """

    def __init__(
        self,
        padding: int = 4,
        flip: bool = True,
        auto_augment: bool = False,
        cutout: int = 0,
        rotation: float = 0.0,
        grey: float = 0.0,
    ) -> None:
        require(0 <= grey <= 1, "grey", grey, "a share from 0 to 1")
        require(0 <= rotation <= 180, "rotation", rotation, "degrees from 0 to 180")
        for key, value in (("padding", padding), ("cutout", cutout)):
            require(is_whole(value, 0), key, value, "a whole number of 0 or more")
        self.padding = padding
        self.flip = flip
        self.auto_augment = auto_augment
        self.cutout = cutout
        self.rotation = rotation
        self.grey = grey
        self.replayable = type(self) is CropFlip and not auto_augment  # whose operations depend on the draws

    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`top` and `left` (count,), the crop's corner in the padded image, `flip` (count,) of bool, `operation` and
        `level` (count, 2) of AutoAugment, `hole` (count, 2), its centre as a share of height and width, `angle`
        (count,) in degrees, and `grey` (count,) of bool."""
        corners = torch.randint(2 * self.padding + 1, (2, count), generator=generator)
        draws = {"top": corners[0], "left": corners[1]}
        if self.flip:
            draws["flip"] = torch.randint(2, (count,), generator=generator).bool()
        if self.auto_augment:
            draws["operation"], draws["level"] = draw_operations(count, generator)
        if self.cutout:
            draws["hole"] = torch.rand(count, 2, generator=generator)
        if self.rotation:
            draws["angle"] = (2 * torch.rand(count, generator=generator) - 1) * self.rotation
        if self.grey:
            draws["grey"] = torch.rand(count, generator=generator) < self.grey
        return draws

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        images = self._crop(images, draws)
        if self.rotation:
            images = rotate(images, draws["angle"])
        if self.auto_augment:
            for step in range(2):
                images = apply_operations(images, draws["operation"][:, step], draws["level"][:, step])
        if self.grey:
            images = torch.where(draws["grey"][:, None, None, None], without_colours(images), images)
        return cut_out(images, draws["hole"], self.cutout) if self.cutout else images

    def _crop(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        batch, padded_height, padded_width, channels = images.shape
        height, width = padded_height - 2 * self.padding, padded_width - 2 * self.padding
        # numbers of pixels in 32 bits: there are a thousand for each image, and half as much of them is to be moved
        counting: dict[str, Any] = {"dtype": torch.int32, "device": images.device}
        row = torch.arange(height, **counting) + draws["top"][:, None].int()
        column = torch.arange(width, **counting)
        if self.flip:
            column = torch.where(draws["flip"][:, None], width - 1 - column, column)
        column = column + draws["left"][:, None].int()
        first = torch.arange(batch, **counting) * (padded_height * padded_width)
        pixel = (first[:, None] + row * padded_width)[:, :, None] + column[:, None, :]
        # one gather of whole pixels: several times faster than indexing by image, row and column
        return images.reshape(-1, channels).index_select(0, pixel.flatten()).view(batch, height, width, channels)


def without_colours(images: Tensor) -> Tensor:
    """`images` (B, H, W, 3) in grey, of the same type: the luma of ITU-R 601-2, as Pillow has it."""
    luma = images.float() @ constant(images.device, 0.299, 0.587, 0.114)
    return luma.round().to(images.dtype)[..., None].expand_as(images)


def cut_out(images: Tensor, hole: Tensor, side: int) -> Tensor:
    """`images` (B, H, W, 3) with a black square each, cut at the border.

    Args:
        images: not changed in place.
        hole: (B, 2) in [0, 1), the square's centre as a share of height and width.
        side: the side of the square, in pixels.
    """
    spans = []
    for axis, length in enumerate(images.shape[1:3]):
        first = (hole[:, axis, None] * length).long() - side // 2
        position = torch.arange(length, device=images.device)
        spans.append((position >= first) & (position < first + side))
    return images.masked_fill((spans[0][:, :, None] & spans[1][:, None, :])[..., None], 0)
