"""Moving the pixels of whole batches of images, each pixel from the nearest one of where it was."""

import torch
from torch import Tensor


def from_centre(images: Tensor) -> tuple[Tensor, Tensor]:
    """(H, 1) heights and (W,) widths of the pixels of `images` (B, H, W, 3), from the centre, in pixels."""
    height, width = images.shape[1:3]
    y = (torch.arange(height, device=images.device) + 0.5 - height / 2)[:, None]
    return y, torch.arange(width, device=images.device) + 0.5 - width / 2


def turned(y: Tensor, x: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Where pixels (y, x) of an image that is turned by `angle`, in radians, come from."""
    return angle.sin() * x + angle.cos() * y, angle.cos() * x - angle.sin() * y


def fetched(images: Tensor, y: Tensor, x: Tensor, fill: int) -> Tensor:
    """The images whose pixels come from (y, x).

    Args:
        images: uint8 (B, H, W, 3), not changed in place.
        y: (B, H, W), from the centre, in pixels.
        x: as `y`.
        fill: value of what comes from outside.
    """
    batch, height, width, channels = images.shape
    column = (x + (width / 2 - 0.5)).round().long()
    row = (y + (height / 2 - 0.5)).round().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    first = (torch.arange(batch, device=images.device) * (height * width))[:, None, None]
    moved = images.reshape(-1, channels).index_select(0, (first + place).flatten()).view(images.shape)
    return torch.where(inside[..., None], moved, torch.full_like(moved[:1, :1, :1], fill))


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """`images` (B, H, W, 3) turned about their centres by (B,) `degrees`, black outside."""
    y, x = turned(*from_centre(images), degrees[:, None, None].deg2rad())
    return fetched(images, y, x, 0)
