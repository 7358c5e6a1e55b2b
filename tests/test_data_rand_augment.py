"""RandAugment and the contrastive views against torchvision's transformations, image by image, for fixed settings."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import ColorJitter, RandAugment
from torchvision.transforms.v2 import functional as tv

from ltexp.data.files.augmentation import RandomResizedCrop, jitter
from ltexp.data.files.stronger import ResizedContrastive, ResizedRandAugment
from ltexp.data.images import rand_augment
from ltexp.data.images.auto_augment import OPERATIONS, SIGNED, apply_operations, level_of
from ltexp.data.images.contrastive import ContrastiveViews, blur, resized_crop, turn_hue
from ltexp.data.images.rand_augment import RandomOperations
from ltexp.errors import ConfigError
from ltexp.randomness import generator

NAMES = {"none": "Identity"} | {name: name.title().replace("_", "") for name in rand_augment.CHOSEN if name != "none"}


def smooth(count: int = 4, side: int = 32) -> Tensor:
    """uint8 (count, side, side, 3), without edges."""
    draws = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=draws) * 200 + 20
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
    return fine.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def one_by_one(images: Tensor, change: Any) -> Tensor:
    return torch.stack([change(image.permute(2, 0, 1)).permute(1, 2, 0) for image in images])


@pytest.mark.parametrize("name", rand_augment.CHOSEN)
@pytest.mark.parametrize("magnitude", [0, 7, 10, 30])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_operation_is_torchvisions(name: str, magnitude: int, sign: int) -> None:
    """Its meaning of every magnitude, and what is done to one image."""
    reference, images = RandAugment(fill=128), smooth()
    values, signed = reference._AUGMENTATION_SPACE[NAMES[name]]
    assert signed == (name in SIGNED)
    found = values(31, 32, 32)
    theirs = 0.0 if found is None else float(found[magnitude]) * (sign if signed else 1)
    level = level_of(name, magnitude, 30) * (sign if signed else 1)

    def change(image: Tensor) -> Any:
        fill = {Tensor: [128] * 3}
        return reference._apply_image_or_video_transform(image, NAMES[name], theirs, InterpolationMode.NEAREST, fill)

    expected = one_by_one(images, change)
    number = torch.full((len(images),), OPERATIONS.index(name))
    mine = apply_operations(images, number, torch.full((len(images),), level))
    difference = (mine.int() - expected.int()).abs()
    if name in ("rotate", "shear_x", "shear_y"):  # a pixel from exactly between two others may come from either
        assert (difference > 0).float().mean() < 0.03
    else:
        assert difference.max() <= 1  # a last bit of a product before it is cut to a whole number


def test_operations_are_drawn_evenly_and_either_way() -> None:
    count = 60_000
    drawn = RandomOperations(2, 9, 0.0, 1.0, 128).draws(count, generator("test"))
    shares = torch.bincount(drawn["operation"].flatten(), minlength=len(OPERATIONS)) / (2 * count)
    expected = torch.tensor([0.0 if name == "invert" else 1 / 14 for name in OPERATIONS])
    torch.testing.assert_close(shares, expected, atol=0.005, rtol=0)
    for number, name in enumerate(OPERATIONS):
        found = set(drawn["level"][drawn["operation"] == number].tolist())
        level = float(torch.tensor(level_of(name, 9, 30)))
        assert found == (set() if name == "invert" else {level, -level} if name in SIGNED else {level})
        if name in SIGNED:
            levels = drawn["level"][drawn["operation"] == number]
            assert float((levels > 0).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_the_spread_is_the_deviation_of_the_magnitude() -> None:
    drawn = RandomOperations(1, 10, 0.5, 1.0, 128).draws(200_000, generator("test"))
    degrees = drawn["level"][drawn["operation"] == OPERATIONS.index("rotate")].abs()  # one for each of 30
    assert float(degrees.mean()) == pytest.approx(10, abs=0.02)
    assert float(degrees.std()) == pytest.approx(0.5, abs=0.02)
    at_the_end = RandomOperations(1, 30, 5.0, 1.0, 128).draws(1000, generator("test"))
    assert float(at_the_end["level"][at_the_end["operation"] == OPERATIONS.index("rotate")].abs().max()) == 30


def test_an_operation_has_its_probability() -> None:
    """That of none is one of 14 and what is not applied; what is applied keeps its draws."""
    always, half = (RandomOperations(2, 9, 0.0, chance, 128).draws(50_000, generator("a")) for chance in (1.0, 0.5))
    applied = half["operation"] != OPERATIONS.index("none")
    assert float(applied.float().mean()) == pytest.approx(0.5 * 13 / 14, abs=0.005)
    assert all(torch.equal(half[name][applied], always[name][applied]) for name in always)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("operations", 0), ("magnitude", 31), ("magnitude", -1), ("spread", -0.1), ("fill", 256), ("probability", 0)],
)
def test_settings_out_of_range(setting: str, value: float) -> None:
    keywords = {"operations": 2, "magnitude": 9, "spread": 0.0, "probability": 1.0, "fill": 128} | {setting: value}
    with pytest.raises(ConfigError, match=f"invalid {setting}="):
        RandomOperations(**keywords)  # type: ignore[arg-type]


def test_the_crops_of_a_plain_augmentation_stay() -> None:
    """Both kinds make those of the choice that they extend, and leave the source's pixels as they are."""
    strong, plain = ResizedRandAugment(), RandomResizedCrop()
    mine, theirs = strong.draws(50, generator("a")), plain.draws(50, generator("a"))
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    small = rand_augment.RandAugment(padding=0, flip=False, operations=1, cutout=4)
    images = smooth(8)
    before = images.clone()
    changed = small(images, small.draws(8, generator("b")))
    assert changed.dtype == torch.uint8
    assert torch.equal(images, before)
    assert (
        (changed == 0).all(-1).flatten(1).sum(1) >= 4
    ).all()  # the square, of which a border cuts at most three quarters


def test_jitter_comes_before_the_operations() -> None:
    images = smooth()
    augmentation = ResizedRandAugment(operations=1)
    draws = augmentation.draws(len(images), generator("test"))
    draws |= {"operation": torch.full((4, 1), OPERATIONS.index("solarize")), "level": torch.full((4, 1), 128.0)}
    jittered = jitter(images, draws["factor"], draws["order"]).round().to(torch.uint8)
    expected = one_by_one(jittered, lambda image: tv.solarize(image, 128.0))
    assert torch.equal(augmentation(images, draws), expected)


# ---- the contrastive views


def test_a_turn_of_the_hue_is_torchvisions() -> None:
    images = smooth()
    for share in (-0.1, 0.03, 0.25):
        expected = one_by_one(images / 255, lambda image, share=share: tv.adjust_hue(image, share)) * 255
        found = turn_hue(images.float(), torch.full((4,), share))
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_a_blur_is_torchvisions() -> None:
    images = smooth().float()
    for sigma in (0.3, 1.0, 2.0):
        expected = one_by_one(images, lambda image, sigma=sigma: tv.gaussian_blur(image, [9, 9], [sigma, sigma]))
        torch.testing.assert_close(blur(images, torch.full((4,), sigma)), expected, atol=0.01, rtol=0)
    torch.testing.assert_close(blur(images, torch.zeros(4)), images)


def test_a_crop_is_torchvisions_inside() -> None:
    """8 to 24 and 4 to 20 of 32 pixels, mirrored or not; at its rim torchvision does not look out of the crop."""
    images = smooth().float()
    box = torch.tensor([[16 / 32, 12 / 32, 8 / 32, 8 / 32]]).expand(4, 4)
    for flip in (1.0, -1.0):
        found = resized_crop(images, box, torch.full((4,), flip))

        def change(image: Tensor, flip: float = flip) -> Any:
            part = tv.resized_crop(image, 4, 8, 16, 16, [32, 32], antialias=True)
            return part if flip > 0 else tv.horizontal_flip(part)

        torch.testing.assert_close(found[:, 1:-1, 1:-1], one_by_one(images, change)[:, 1:-1, 1:-1], atol=0.05, rtol=0)


def test_files_are_coloured_as_torchvision_does_it() -> None:
    """Every image jittered by torchvision's functions in the order that was drawn, then its hue, its grey, its blur."""
    images = smooth()
    augmentation = ResizedContrastive(jittered=1.0, grey=0.5, blurred=0.5)
    draws = augmentation.draws(len(images), generator("colours"))
    draws["grey"], draws["sigma"] = torch.tensor([False, True, False, True]), torch.tensor([0.0, 0.0, 1.5, 0.7])
    found = augmentation(images, draws)
    functions = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for row in range(len(images)):
        image: Any = images[row].permute(2, 0, 1) / 255
        for kind in draws["order"][row].tolist():
            image = functions[kind](image, float(draws["factor"][row, kind]))
        image = tv.adjust_hue(image, float(draws["turn"][row]))
        image = tv.rgb_to_grayscale(image, 3) if draws["grey"][row] else image
        sigma = float(draws["sigma"][row])
        image = tv.gaussian_blur(image, [9, 9], [sigma, sigma]) if sigma else image
        torch.testing.assert_close(found[row], image.permute(1, 2, 0) * 255, atol=0.1, rtol=0)


@pytest.mark.parametrize("augmentation", [ContrastiveViews(), ResizedContrastive()])
def test_each_change_has_its_probability_and_range(augmentation: Any) -> None:
    reference = ColorJitter(0.4, 0.4, 0.4, 0.1)
    count = 20_000
    drawn = augmentation.draws(count, generator("test"))
    jittered = (drawn["factor"] != 1).any(1)
    assert float(jittered.float().mean()) == pytest.approx(0.8, abs=0.015)
    assert torch.equal(jittered, drawn["turn"] != 0)
    assert float(drawn["grey"].float().mean()) == pytest.approx(0.2, abs=0.015)
    assert float((drawn["sigma"] > 0).float().mean()) == pytest.approx(0.5, abs=0.015)
    for bounds, values in ((reference.brightness, drawn["factor"][jittered]), (reference.hue, drawn["turn"][jittered])):
        assert bounds is not None
        assert float(values.min()) == pytest.approx(bounds[0], abs=0.002)
        assert float(values.max()) == pytest.approx(bounds[1], abs=0.002)


def test_a_crop_of_a_file_has_the_drawn_area() -> None:
    augmentation, count = ResizedContrastive(scale=(0.2, 1.0)), 2000
    drawn = augmentation.draws(count, generator("test"))
    areas, mirrored = [], 0
    for row in range(count):
        draw = {name: np.asarray(drawn[name][row]) for name in augmentation.crop_draws}
        crop = augmentation.crop(300, 300, draw)
        left, top, right, bottom = crop.box
        areas.append((right - left) * (bottom - top) / 90_000)
        mirrored += crop.mirrored
    assert 0.199 < min(areas) < 0.21
    assert max(areas) <= 1
    assert mirrored / count == pytest.approx(0.5, abs=0.05)
