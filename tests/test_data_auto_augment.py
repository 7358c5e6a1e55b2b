"""AutoAugment and Cutout: each operation equals torchvision's image by image, and the draws follow the policy."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy
from torchvision.transforms.v2 import functional as tv

from ltexp.data.images import auto_augment
from ltexp.data.images.augmentation import CropFlip, cut_out
from ltexp.data.images.auto_augment import FILL, OPERATIONS, SIGNED, apply_operations, draw_operations, level_of
from ltexp.randomness import generator

SIDE = 32


@pytest.fixture
def images() -> Tensor:
    """Smooth and noisy images, one without contrast, one of two values."""
    draws = torch.Generator().manual_seed(0)
    noise = torch.randint(30, 200, (6, SIDE, SIDE, 3), generator=draws, dtype=torch.uint8)
    ramp = torch.arange(SIDE).expand(SIDE, SIDE)[..., None].expand(SIDE, SIDE, 3) * 5
    flat = torch.full((SIDE, SIDE, 3), 77)
    two = torch.where(torch.rand(SIDE, SIDE, 3, generator=draws) < 0.3, 20, 240)
    return torch.cat([noise, torch.stack([ramp, flat, two]).to(torch.uint8)])


def sheared(image: Tensor, across: float, down: float) -> Tensor:
    """torchvision takes a shear as an angle."""
    degrees = [float(torch.tensor(level).atan().rad2deg()) for level in (across, down)]
    return tv.affine(image, 0.0, [0, 0], 1.0, degrees, center=[0, 0], fill=[FILL] * 3)


def shifted(image: Tensor, right: float, down: float) -> Tensor:
    return tv.affine(image, 0.0, [int(right), int(down)], 1.0, [0.0, 0.0], fill=[FILL] * 3)


TRUTH: dict[str, Callable[[Tensor, float], Tensor]] = {
    "none": lambda image, _: image,
    "invert": lambda image, _: tv.invert(image),
    "solarize": lambda image, level: tv.solarize(image, level),
    "posterize": lambda image, level: tv.posterize(image, int(level)),
    "auto_contrast": lambda image, _: tv.autocontrast(image),
    "equalize": lambda image, _: tv.equalize(image),
    "brightness": lambda image, level: tv.adjust_brightness(image, 1 + level),
    "contrast": lambda image, level: tv.adjust_contrast(image, 1 + level),
    "color": lambda image, level: tv.adjust_saturation(image, 1 + level),
    "sharpness": lambda image, level: tv.adjust_sharpness(image, 1 + level),
    "shear_x": lambda image, level: sheared(image, level, 0),
    "shear_y": lambda image, level: sheared(image, 0, level),
    "translate_x": lambda image, level: shifted(image, level * SIDE, 0),
    "translate_y": lambda image, level: shifted(image, 0, level * SIDE),
    "rotate": lambda image, level: tv.rotate(image, level, fill=[FILL] * 3),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0, 3, 9])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_operation_is_torchvisions_image_by_image(name: str, magnitude: int, sign: int, images: Tensor) -> None:
    level = level_of(name, magnitude) * (sign if name in SIGNED else 1)
    count = len(images)
    found = apply_operations(images, torch.full((count,), OPERATIONS.index(name)), torch.full((count,), level))
    expected = torch.stack([TRUTH[name](image.permute(2, 0, 1), level).permute(1, 2, 0) for image in images])
    difference = (found.int() - expected.int()).abs()
    if name in ("rotate", "shear_x", "shear_y"):  # a pixel from exactly between two others may come from either
        assert (difference > 0).float().mean() < 0.01
    else:
        assert difference.max() <= 1  # a last bit of a product before it is cut to a whole number
        assert (difference > 0).float().mean() < 0.1


def test_all_images_computed_give_what_those_concerned_give(images: Tensor) -> None:
    """A GPU computes every kind of operation for every image, the host only where it is needed."""
    operation = torch.arange(len(images)) % len(OPERATIONS)
    level = torch.tensor([level_of(OPERATIONS[number], 7) for number in operation])
    concerned = apply_operations(images, operation, level)
    everything = images
    for change in (auto_augment._look_up, auto_augment._blend, auto_augment._move):
        everything = change(everything, operation, level)
    assert torch.equal(everything, concerned)


def test_images_of_a_batch_have_operations_of_their_own(images: Tensor) -> None:
    operation = torch.arange(4, 4 + len(images)) % len(OPERATIONS)
    level = torch.tensor([level_of(OPERATIONS[number], 7) for number in operation])
    together = apply_operations(images, operation, level)
    alone = [apply_operations(images[i : i + 1], operation[i : i + 1], level[i : i + 1]) for i in range(len(images))]
    assert torch.equal(together, torch.cat(alone))


def test_the_policy_is_torchvisions() -> None:
    """What is drawn, in how many of the cases, against torchvision's table and ranges."""
    names = {OPERATIONS.index(name): name.replace("_", "") for name in OPERATIONS}
    reference = AutoAugment(AutoAugmentPolicy.CIFAR10)
    ranges = reference._augmentation_space(10, (SIDE, SIDE))
    count = 200_000
    operation, level = draw_operations(count, generator("test"))
    expected: dict[tuple[int, str, float], float] = {}
    for policy in reference.policies:
        for step, (name, chance, magnitude) in enumerate(policy):
            values, signed = ranges[name]
            value = float(values[magnitude]) if magnitude is not None else 0.0
            value /= SIDE if name.startswith("Translate") else 1
            for direction in (1, -1) if signed else (1,):
                key = (step, name.lower(), round(direction * value, 3) + 0.0)
                expected[key] = expected.get(key, 0) + chance / 25 / (2 if signed else 1)
    found: dict[tuple[int, str, float], float] = {}
    for step in range(2):
        pairs, counts = torch.stack([operation[:, step], level[:, step]], 1).unique(dim=0, return_counts=True)
        for (number, value), times in zip(pairs.tolist(), counts.tolist(), strict=True):
            if number != 0:
                key = (step, names[int(number)], round(value, 3) + 0.0)
                found[key] = found.get(key, 0) + times / count
    expected = {key: value for key, value in expected.items() if value > 0}
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=0.004)  # over four deviations of the rarest


def test_the_black_square_is_where_it_was_drawn() -> None:
    images = torch.full((3, 10, 12, 3), 9, dtype=torch.uint8)
    hole = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.99, 0.5]])  # centres (5, 6), (0, 0), (9, 6)
    cut = cut_out(images, hole, 4)
    assert (images == 9).all()
    black = [(image == 0).all(-1).nonzero().tolist() for image in cut]
    assert black[0] == [[row, column] for row in range(3, 7) for column in range(4, 8)]
    assert black[1] == [[row, column] for row in range(2) for column in range(2)]
    assert black[2] == [[row, column] for row in range(7, 10) for column in range(4, 8)]


def test_draws_are_keyed_and_the_rest_of_the_draws_stays() -> None:
    """The crops of an epoch are the same with and without what follows them."""
    strong, plain = CropFlip(auto_augment=True, cutout=16), CropFlip()

    def drawn(augmentation: Any, key: int) -> dict[str, Tensor]:
        return augmentation.draws(50, generator("augment", key))

    assert all(torch.equal(drawn(strong, 0)[name], value) for name, value in drawn(plain, 0).items())
    again = drawn(strong, 0)
    assert all(torch.equal(again[name], value) for name, value in drawn(strong, 0).items())
    assert not torch.equal(drawn(strong, 1)["hole"], again["hole"])


def test_pixels_of_the_source_are_not_changed(images: Tensor) -> None:
    before = images.clone()
    augmentation = CropFlip(padding=0, auto_augment=True, cutout=8)
    changed = augmentation(images, augmentation.draws(len(images), generator("test")))
    assert changed.dtype == torch.uint8
    assert torch.equal(images, before)
    assert not torch.equal(changed, images)


def test_a_rotation_is_torchvisions() -> None:
    from torchvision.transforms.v2 import functional as vision

    from ltexp.data.images.moving import rotate

    images = torch.randint(256, (6, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    angles = torch.tensor([0.0, -15.0, 3.7, 14.2, 90.0, -8.1])
    expected = [vision.rotate(one.permute(2, 0, 1), float(angle)) for one, angle in zip(images, angles, strict=True)]
    found = rotate(images, angles)
    differing = (found != torch.stack(expected).permute(0, 2, 3, 1)).any(-1).float().mean()
    assert differing < 0.005  # pixels half-way between two
    assert bool((CropFlip(rotation=15).draws(1000, torch.Generator())["angle"].abs() <= 15).all())
