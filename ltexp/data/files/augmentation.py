"""Augmentation of image files: the crop is taken where a file is decoded, the rest is done on whole batches."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy.typing as npt
import torch
from torch import Tensor

from ltexp.config.require import is_number, require
from ltexp.data.augmentation import Augmentation
from ltexp.data.files.decode import Crop

ATTEMPTS = 10  # at a crop that lies inside the image, as in torchvision
GREY = (0.2989, 0.587, 0.114)  # of R, G and B, as in torchvision
BRIGHTNESS, CONTRAST, SATURATION = range(3)
ROWS_IN_CACHE = 4  # images that a CPU's cache holds while all is done to them: three times as fast as a whole batch

Draw = Mapping[str, npt.NDArray[Any]]  # one image's


class FileAugmentation(Augmentation):
    """A random change of images in files.

    `draws` as in every augmentation; `__call__` gets batches of cropped images, and leaves them as they are by default.

    Attributes:
        crop_draws: the names in `draws` that `crop` reads.
    """

    samples = "image files"
    crop_draws: ClassVar[tuple[str, ...]]

    @abstractmethod
    def crop(self, width: int, height: int, draw: Draw) -> Crop:
        """The part of an image of this size that is resized to the network's input; called in workers."""

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return images


class RandomResizedCrop(FileAugmentation):
    """A part of random area, shape and place, mirrored with probability 1/2, then jittered in colour.

    The field's augmentation of ImageNet-LT, Places-LT and iNaturalist, as torchvision's RandomResizedCrop,
    RandomHorizontalFlip and ColorJitter do it, without a change of hue.

    Args:
        scale: bounds of the crop's area over the image's (0.08 to 1: Szegedy et al., CVPR 2015).
        ratio: bounds of the crop's width over its height.
        flip: whether to mirror.
        jitter: brightness, contrast and saturation are changed by factors of 1 - jitter to 1 + jitter each, in random
            order; 0: none. 0.4 in the codes of classifier-balancing and MiSLAS for ImageNet-LT and Places-LT.

    Raises:
        ConfigError: for a setting out of range.
    """

    crop_draws = ("area", "shape", "corner", "flip")

    def __init__(
        self,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip: bool = True,
        jitter: float = 0.4,
    ) -> None:
        self.scale = bounds("scale", scale, most=1.0)
        self.ratio = bounds("ratio", ratio)
        require(is_number(jitter, 0, 1), "jitter", jitter, "a number from 0 to 1")
        self.flip, self.jitter = flip, float(jitter)

    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`area` and `shape` (count, 10), of each attempt, `corner` (count, 2), `flip` (count,) of bool, and of the
        jitter `factor` (count, 3), for brightness, contrast and saturation, and `order` (count, 3), which comes when.
        """
        draws = {
            "area": torch.empty(count, ATTEMPTS).uniform_(*self.scale, generator=generator),
            "shape": torch.empty(count, ATTEMPTS).uniform_(*map(math.log, self.ratio), generator=generator).exp_(),
            "corner": torch.rand(count, 2, generator=generator),
            "flip": torch.randint(2, (count,), generator=generator).bool() & self.flip,
        }
        if self.jitter:
            bounds = 1 - self.jitter, 1 + self.jitter
            draws["factor"] = torch.empty(count, 3).uniform_(*bounds, generator=generator)
            draws["order"] = torch.rand(count, 3, generator=generator).argsort(1).byte()
        return draws

    def crop(self, width: int, height: int, draw: Draw) -> Crop:
        right, down = draw["corner"].tolist()
        sides = self._sides(width, height, draw)
        if sides is None:  # no attempt fits: the largest part, from the middle
            sides, right, down = self._largest(width, height), 0.5, 0.5
        left, top = int(right * (width - sides[0] + 1)), int(down * (height - sides[1] + 1))
        return Crop((left, top, left + sides[0], top + sides[1]), bool(draw["flip"]))

    def _sides(self, width: int, height: int, draw: Draw) -> tuple[int, int] | None:
        for area, shape in zip(draw["area"].tolist(), draw["shape"].tolist(), strict=True):
            pixels = area * width * height
            across, down = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
            if 0 < across <= width and 0 < down <= height:
                return across, down
        return None

    def _largest(self, width: int, height: int) -> tuple[int, int]:
        """The largest part of an allowed shape."""
        least, most = self.ratio
        if width / height < least:
            return width, round(width / least)
        if width / height > most:
            return round(height * most), height
        return width, height

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return in_parts(self._jittered, images, draws) if self.jitter else images

    def _jittered(self, images: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
        return jitter(images, draws["factor"], draws["order"])


def in_parts(change: Callable[[Tensor, dict[str, Tensor]], Tensor], images: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """What `change` makes of images (B, H, W, 3) and their draws, float32; on a CPU of a few images at a time."""
    rows = ROWS_IN_CACHE if images.device.type == "cpu" else len(images)
    changed = torch.empty_like(images, dtype=torch.float32)
    for start in range(0, len(images), rows):
        part = slice(start, start + rows)
        changed[part] = change(images[part], {name: drawn[part] for name, drawn in draws.items()})
    return changed


def jitter(images: Tensor, factor: Tensor, order: Tensor) -> Tensor:
    """float32 (B, H, W, 3) of 0 to 255: brightness, contrast and saturation changed in each image's own order.

    Each is a blend, factor * image + (1 - factor) * other, cut off at 0 and 255; the other image is black, of the mean
    grey, and the image's own grey.

    Args:
        images: uint8 (B, H, W, 3).
        factor: (B, 3), for brightness, contrast and saturation.
        order: (B, 3), a permutation of 0 (brightness), 1 (contrast) and 2 (saturation).
    """
    values = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    for step in range(3):
        kind = order[:, step].long()
        own = factor.gather(1, kind[:, None]).squeeze(1)
        other = 1 - own
        grey = values[:, 0] * GREY[0]
        grey.add_(values[:, 1], alpha=GREY[1]).add_(values[:, 2], alpha=GREY[2])
        mean = grey.mean((1, 2)) * other * (kind == CONTRAST)
        grey.mul_((other * (kind == SATURATION))[:, None, None]).add_(mean[:, None, None])
        values.mul_(own[:, None, None, None]).add_(grey[:, None]).clamp_(0, 255)
    return values.permute(0, 2, 3, 1)


class CentreCrop:
    """What evaluation sees: the short side resized to `resize`, then the square of `size` in the middle.

    Args:
        resize: the length of the short side; 256 for a size of 224.
        size: side of the square, at most `resize`.
    """

    def __init__(self, resize: int, size: int) -> None:
        self.resize, self.size = resize, size

    def crop(self, width: int, height: int, draw: Draw) -> Crop:
        """See `FileAugmentation.crop`; it draws nothing."""
        short = min(width, height)
        # as torchvision's Resize and CenterCrop round
        resized = int(self.resize * width / short), int(self.resize * height / short)
        left, top = (round((side - self.size) / 2) for side in resized)
        across, down = width / resized[0], height / resized[1]
        return Crop((left * across, top * down, (left + self.size) * across, (top + self.size) * down))


def bounds(key: str, values: Sequence[float], most: float = math.inf) -> tuple[float, float]:
    expected = "two numbers above 0, the smaller first" + (f", at most {most:g}" if most < math.inf else "")
    require(len(values) == 2 and 0 < values[0] <= values[1] <= most, key, list(values), expected)
    return float(values[0]), float(values[1])
