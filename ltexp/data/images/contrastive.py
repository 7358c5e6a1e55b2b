"""The augmentation of contrastive views (SimCLR; Chen et al., ICML 2020) on whole batches of small images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltexp.config.require import is_number, require
from ltexp.data.augmentation import Augmentation, constant
from ltexp.data.files.augmentation import ATTEMPTS, GREY, bounds, jitter

BLUR_RADIUS = 4  # pixels to each side, twice the largest deviation
BLUR_SIGMA = (0.1, 2.0)


class Colours:
    """Jitter, grey and blur, each on an image with its probability; a change of hue comes last of the jitter.

    Args:
        jitter, hue, jittered, grey, blurred: see `ContrastiveViews`.

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(self, jitter: float, hue: float, jittered: float, grey: float, blurred: float) -> None:
        for key, value in (("jitter", jitter), ("jittered", jittered), ("grey", grey), ("blurred", blurred)):
            require(is_number(value, 0, 1), key, value, "a number from 0 to 1")
        require(is_number(hue, 0, 0.5), "hue", hue, "a number from 0 to 0.5")
        self.jitter, self.hue, self.jittered, self.grey, self.blurred = jitter, hue, jittered, grey, blurred

    def draws(self, chances: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """`factor` and `order` (count, 3) of the jitter, 1 where there is none; `turn` (count,) of the hue; `grey`
        (count,) of bool; `sigma` (count,), 0 where there is no blur.

        Args:
            chances: (count, 3) drawn from [0, 1), of jitter, grey and blur.
            generator: of the further draws.
        """
        count, jittered = len(chances), chances[:, 0] < self.jittered
        factor = torch.empty(count, 3).uniform_(1 - self.jitter, 1 + self.jitter, generator=generator)
        order = torch.rand(count, 3, generator=generator).argsort(1).byte()
        turn = torch.empty(count).uniform_(-self.hue, self.hue, generator=generator)
        sigma = torch.empty(count).uniform_(*BLUR_SIGMA, generator=generator)
        return {
            "factor": torch.where(jittered[:, None], factor, 1.0),
            "order": order,
            "turn": turn * jittered,
            "grey": chances[:, 1] < self.grey,
            "sigma": sigma * (chances[:, 2] < self.blurred),
        }

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """float32 (B, H, W, 3) of images on the same scale of 0 to 255."""
        values = jitter(images, draws["factor"], draws["order"])
        if self.hue:
            values = turn_hue(values, draws["turn"])
        grey = (values * constant(values.device, *GREY)).sum(3, keepdim=True)
        values = torch.where(draws["grey"][:, None, None, None], grey, values)
        return blur(values, draws["sigma"]) if self.blurred else values


class ContrastiveViews(Augmentation):
    """A resized crop, mirrored with probability 1/2, jittered in colour, made grey, blurred, each with its probability.

    In the order of SimCLR's transformations; a change of hue comes after those of brightness, contrast and saturation,
    whose order is random. A crop is resized to the image's own size, bilinearly.

    Args:
        scale: bounds of the crop's area over the image's. Default 0.2 to 1 (MoCo v2, PaCo and BCL; ProCo from 0.08).
        ratio: bounds of the crop's width over its height.
        jitter: brightness, contrast and saturation by factors of 1 - jitter to 1 + jitter. Default 0.4 (the same).
        hue: the hue by up to this share of the circle to either side. Default 0.1 (the same).
        jittered: probability that an image is jittered. Default 0.8 (the same).
        grey: probability of grey. Default 0.2 (the same).
        blurred: probability of a Gaussian blur of a deviation of 0.1 to 2 pixels. Default 0.5 (the same; ProCo 0).

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(
        self,
        scale: Sequence[float] = (0.2, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        jitter: float = 0.4,
        hue: float = 0.1,
        jittered: float = 0.8,
        grey: float = 0.2,
        blurred: float = 0.5,
    ) -> None:
        self.scale, self.ratio = bounds("scale", scale, most=1.0), bounds("ratio", ratio)
        self.colours = Colours(jitter, hue, jittered, grey, blurred)

    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`box` (count, 4), the crop's centre and half sides as shares of the image, x before y; `flip` (count,) of 1
        or -1; and those of `Colours`."""
        area = torch.empty(count, ATTEMPTS).uniform_(*self.scale, generator=generator)
        shape = torch.empty(count, ATTEMPTS).uniform_(*map(math.log, self.ratio), generator=generator).exp_()
        sides = torch.stack([(area * shape).sqrt(), (area / shape).sqrt()], dim=2)
        fits = (sides <= 1).all(2)
        first = fits.int().argmax(1)[:, None, None].expand(-1, 1, 2)
        half = torch.where(fits.any(1)[:, None], sides.gather(1, first).squeeze(1), 1.0) / 2
        centre = half + torch.rand(count, 2, generator=generator) * (1 - 2 * half)
        chances = torch.rand(count, 4, generator=generator)  # of flip, jitter, grey and blur
        return {
            "box": torch.cat([centre, half], dim=1),
            "flip": torch.where(chances[:, 0] < 0.5, -1.0, 1.0),
            **self.colours.draws(chances[:, 1:], generator),
        }

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return self.colours(resized_crop(images, draws["box"], draws["flip"]), draws)


class WithColours(Augmentation):
    """Another augmentation, followed by the colour jitter, grey and blur of contrastive views.

    With a padded crop and a mirroring before them, and the defaults, these are the test-time views of SADE's code
    (Zhang et al., NeurIPS 2022).

    Args:
        first: the augmentation before them, of one view.
        blurred: probability of blur. Default 0.2 (the same).
    """

    def __init__(self, first: Augmentation, blurred: float = 0.2) -> None:
        self.first, self.padding = first, first.padding
        self.colours = Colours(jitter=0.4, hue=0.1, jittered=0.8, grey=0.2, blurred=blurred)

    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Those of the first, and as `colours.NAME` those of `Colours`."""
        found = self.first.draws(count, generator)
        colours = self.colours.draws(torch.rand(count, 3, generator=generator), generator)
        return found | {f"colours.{name}": own for name, own in colours.items()}

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        own = {name.removeprefix("colours."): value for name, value in draws.items() if name.startswith("colours.")}
        return self.colours(self.first(images, draws).float(), own)


def resized_crop(images: Tensor, box: Tensor, flip: Tensor) -> Tensor:
    """float32 (B, H, W, 3): a part of each image, resized to its own size.

    Args:
        images: (B, H, W, 3).
        box: (B, 4), centre and half sides as shares of width and height, x before y.
        flip: (B,), -1 where the part is mirrored, else 1.
    """
    values = images.permute(0, 3, 1, 2).float()
    zero = torch.zeros_like(flip)
    across = torch.stack([2 * box[:, 2] * flip, zero, 2 * box[:, 0] - 1], dim=1)
    down = torch.stack([zero, 2 * box[:, 3], 2 * box[:, 1] - 1], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), list(values.shape), align_corners=False)
    return F.grid_sample(values, grid, padding_mode="border", align_corners=False).permute(0, 2, 3, 1)


def turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Images (B, H, W, 3) of 0 to 255 with their hue moved by (B,) shares of the circle; saturation and value stay."""
    most, which = images.max(3)
    spread = most - images.amin(3)
    red, green, blue = images.unbind(3)
    safe = spread.clamp_min(1e-12)
    sides = torch.stack([(green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe], dim=3)
    hue = sides.gather(3, which[..., None]) + 6 * turn[:, None, None, None]
    # channel n is value - spread * max(0, min(k, 4 - k, 1)), k = (n + hue) mod 6, n = 5, 3, 1 for red, green, blue
    k = (hue + constant(hue.device, 5.0, 3.0, 1.0)) % 6
    return most[..., None] - spread[..., None] * torch.minimum(k, 4 - k).clamp(0, 1)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Images (B, H, W, 3) blurred by a Gaussian of (B,) deviations in pixels, mirrored at the border; 0: not."""
    batch, height, width, channels = images.shape
    radius = min(BLUR_RADIUS, height - 1, width - 1)
    away = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = (-0.5 * (away / sigma.clamp_min(1e-3)[:, None]) ** 2).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    values = images.permute(0, 3, 1, 2).reshape(1, batch * channels, height, width)
    values = F.pad(values, (radius, radius, radius, radius), mode="reflect")
    values = F.conv2d(values, kernel[:, :, None], groups=batch * channels)
    values = F.conv2d(values, kernel[:, :, :, None], groups=batch * channels)
    return values.view(batch, channels, height, width).permute(0, 2, 3, 1)
