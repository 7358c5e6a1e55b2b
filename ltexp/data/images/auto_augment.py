"""AutoAugment's CIFAR-10 policy (Cubuk et al., CVPR 2019) on whole batches: no Python for each image, no waiting.

RandAugment's operations are the same (`ltexp.data.images.rand_augment`).

Every operation is one of three kinds, and each kind is computed for the whole batch at once, with settings of each
image's own: a table of 256 values for each channel, a blend with another version of the image, a map of coordinates.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ltexp.data.augmentation import constant
from ltexp.data.images.moving import fetched, from_centre, turned

LOOKED_UP = ("invert", "solarize", "posterize", "auto_contrast", "equalize", "brightness", "contrast")
BLENDED = ("color", "sharpness")
MOVED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
OPERATIONS = ("none", *LOOKED_UP, *BLENDED, *MOVED)
# 25 sub-policies of two operations, each with its probability in tenths and its magnitude from 0 to 9 (paper, Table 7)
POLICY = """
invert 1 7, contrast 2 6; rotate 7 2, translate_x 3 9; sharpness 8 1, sharpness 9 3; shear_y 5 8, translate_y 7 9;
auto_contrast 5 8, equalize 9 2; shear_y 2 7, posterize 3 7; color 4 3, brightness 6 7; sharpness 3 9, brightness 7 9;
equalize 6 5, equalize 5 1; contrast 6 7, sharpness 6 5; color 7 7, translate_x 5 8; equalize 3 7, auto_contrast 4 8;
translate_y 4 3, sharpness 2 6; brightness 9 6, color 2 8; solarize 5 2, invert 0 3; equalize 2 0, auto_contrast 6 0;
equalize 2 8, equalize 6 4; color 9 9, equalize 6 6; auto_contrast 8 4, solarize 2 8; brightness 1 3, color 7 0;
solarize 4 5, auto_contrast 9 3; translate_y 9 9, translate_y 7 9; auto_contrast 9 2, solarize 8 3;
equalize 8 8, invert 1 3; translate_y 7 9, auto_contrast 9 1
"""
# the strongest of an operation whose magnitude goes either way: at 9, from nothing at 0
SIGNED = {"shear_x": 0.3, "shear_y": 0.3, "translate_x": 150 / 331, "translate_y": 150 / 331, "rotate": 30.0}
SIGNED |= dict.fromkeys(("brightness", "contrast", "color", "sharpness"), 0.9)
FILL = 128  # grey, where a moved image leaves a gap
_OPERATION = {name: number for number, name in enumerate(OPERATIONS)}


def level_of(name: str, magnitude: float, strongest: int = 9) -> float:
    """What a magnitude from 0 to `strongest` means: degrees, a shear, a share of the image's side, a change of a factor
    of 1, the threshold from which `solarize` inverts, the bits that `posterize` keeps."""
    if name == "solarize":
        return 255 - 255 * magnitude / strongest
    if name == "posterize":
        return 8 - round(magnitude * 4 / strongest)
    return SIGNED.get(name, 0.0) * magnitude / strongest


def draw_operations(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(operation, level), both (count, 2): what is done to each image, one after the other, and how strongly.

    A sub-policy is drawn for each image, then for each of its operations whether it is applied and, where there are two
    directions, which.
    """
    pairs = [[step.split() for step in pair.split(",")] for pair in POLICY.split(";")]
    operations = torch.tensor([[_OPERATION[name] for name, _, _ in pair] for pair in pairs])
    chances = torch.tensor([[int(chance) / 10 for _, chance, _ in pair] for pair in pairs])
    levels = torch.tensor([[level_of(name, int(magnitude)) for name, _, magnitude in pair] for pair in pairs])
    signed = torch.tensor([[name in SIGNED for name, _, _ in pair] for pair in pairs])
    policy = torch.randint(len(pairs), (count,), generator=generator)
    applied = torch.rand(count, 2, generator=generator) < chances[policy]
    backwards = torch.randint(2, (count, 2), generator=generator).bool() & signed[policy]
    level = torch.where(backwards, -levels[policy], levels[policy])
    return torch.where(applied, operations[policy], 0), level


def apply_operations(images: Tensor, operation: Tensor, level: Tensor, fill: int = FILL) -> Tensor:
    """One operation on each image.

    Args:
        images: uint8 (B, H, W, 3).
        operation: (B,), positions in `OPERATIONS`.
        level: (B,) float32, see `level_of`, with its sign.
        fill: grey value from 0 to 255 where a moved image leaves a gap.
    """
    for change, names in ((_look_up, LOOKED_UP), (_blend, BLENDED), (partial(_move, fill=fill), MOVED)):
        concerned = _is(operation, *names).flatten()
        if images.is_cpu:
            rows = concerned.nonzero().flatten()
            changed = change(images[rows], operation[rows], level[rows])
            images = images.index_copy(0, rows, changed)
        else:  # the host would have to wait to learn which images are concerned; computing the others costs less
            images = change(images, operation, level)
    return images


def _is(operation: Tensor, *names: str) -> Tensor:
    """(B, 1, 1) whether an image's operation is one of `names`."""
    first, *others = (operation == _OPERATION[name] for name in names)
    for other in others:
        first |= other
    return first[:, None, None]


def _tables(images: Tensor, operation: Tensor, level: Tensor) -> Tensor:
    """(B, 3, 256) uint8: what becomes of each value of each channel."""
    batch = len(images)
    pixels = images.flatten(1, 2)
    value = torch.arange(256, device=images.device, dtype=torch.float32)
    level = level[:, None, None]
    table = value.expand(batch, 3, 256)

    threshold = torch.where(_is(operation, "solarize"), level, 0.0)
    table = torch.where(_is(operation, "solarize", "invert") & (value >= threshold), 255 - value, table)
    coarse = torch.exp2(8 - torch.where(_is(operation, "posterize"), level, 8.0))
    table = torch.where(_is(operation, "posterize"), (value / coarse).floor() * coarse, table)
    # towards black, or towards the mean grey
    base = torch.where(_is(operation, "contrast"), _grey(images).mean((1, 2))[:, None, None], 0.0)
    table = torch.where(_is(operation, "brightness", "contrast"), base + (1 + level) * (value - base), table)
    lowest, highest = (found[:, :, None] for found in pixels.aminmax(dim=1))
    spread = (highest - lowest).float()
    stretched = torch.where(spread > 0, (value - lowest) * 255 / spread.clamp_min(1), value)
    table = torch.where(_is(operation, "auto_contrast"), stretched, table)
    table = torch.where(_is(operation, "equalize"), _equalizing(pixels, value), table)
    return table.clamp(0, 255).to(torch.uint8)


def _equalizing(pixels: Tensor, value: Tensor) -> Tensor:
    """(B, 3, 256): the table that evens out each channel's histogram, or leaves a channel that is nearly flat."""
    histogram = torch.zeros(len(pixels), 256, 3, device=pixels.device, dtype=torch.int32)
    index = pixels.long()
    histogram.scatter_add_(1, index, torch.ones((), device=pixels.device, dtype=torch.int32).expand(index.shape))
    largest = histogram.gather(1, index.amax(1, keepdim=True))
    step = ((pixels.shape[1] - largest) // 255).transpose(1, 2)
    below = (histogram.cumsum(1) - histogram).transpose(1, 2)
    return torch.where(step > 0, (below + step // 2) // step.clamp_min(1), value)


def _look_up(images: Tensor, operation: Tensor, level: Tensor) -> Tensor:
    batch, tables = len(images), _tables(images, operation, level)
    first = 256 * torch.arange(3 * batch, device=images.device).view(batch, 1, 1, 3)
    return tables.flatten().index_select(0, (images + first).flatten()).view(images.shape)


def _grey(images: Tensor) -> Tensor:
    """(B, H, W) brightness as ITU-R 601 weighs the channels, cut to whole numbers, float32."""
    weights = constant(images.device, 0.2989, 0.587, 0.114)
    return (images.float() @ weights).floor()


def _blend(images: Tensor, operation: Tensor, level: Tensor) -> Tensor:
    """`color` moves an image from its grey version, `sharpness` from a smoothed one."""
    own = images.float()
    grey = _grey(images)[..., None].expand_as(own)
    # the weights are 5 in the middle and 1 around it, over 13; the rim stays
    mean = F.avg_pool2d(own.permute(0, 3, 1, 2), 3, stride=1).permute(0, 2, 3, 1)
    smooth = own.clone()
    smooth[:, 1:-1, 1:-1] = ((9 * mean + 4 * own[:, 1:-1, 1:-1]) / 13).round()
    is_color, is_sharpness = _is(operation, "color")[..., None], _is(operation, "sharpness")[..., None]
    other = torch.where(is_color, grey, smooth)
    factor = torch.where(is_color | is_sharpness, 1 + level[:, None, None, None], 1.0)
    return (factor * own + (1 - factor) * other).clamp_(0, 255).to(torch.uint8)


def _move(images: Tensor, operation: Tensor, level: Tensor, fill: int = FILL) -> Tensor:
    """Each pixel comes from the nearest one of where it was: turned, sheared or shifted."""
    height, width = images.shape[1:3]
    level = level[:, None, None]
    y, x = from_centre(images)
    angle = torch.where(_is(operation, "rotate"), level, 0.0).deg2rad()
    # about the corner, where the others have the centre
    lean, shear = (torch.where(_is(operation, name), level, 0.0) for name in ("shear_x", "shear_y"))
    right = torch.where(_is(operation, "translate_x"), level * width, 0.0).trunc()
    down = torch.where(_is(operation, "translate_y"), level * height, 0.0).trunc()
    from_y, from_x = turned(y, x, angle)
    from_x = from_x + lean * (y + height / 2) - right
    from_y = from_y + shear * (x + width / 2) - down
    return fetched(images, from_y, from_x, fill)
