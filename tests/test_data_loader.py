"""Batches: the right pixels, the same on any number of processes, and the same whenever an epoch is repeated."""

from typing import Any

import numpy as np
import pytest
import torch
from choices import load, names
from omegaconf import OmegaConf
from torch import Tensor

from ltexp.config.build import build
from ltexp.data.augmentation import Augmentation, NoAugmentation
from ltexp.data.images.augmentation import CropFlip
from ltexp.data.images.loader import ImageLoader
from ltexp.data.samplers import InstanceBalanced
from ltexp.data.types import ImageSplit
from ltexp.errors import ConfigError
from ltexp.randomness import generator

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
COUNT, HEIGHT, WIDTH = 23, 6, 5


class Shuffled:
    def indices(self, seed: int, epoch: int, max_epochs: int) -> Tensor:
        return torch.randperm(COUNT, generator=generator("order", seed, epoch))


@pytest.fixture
def split() -> ImageSplit:
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (COUNT, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return ImageSplit(images=images, labels=rng.randint(0, 4, COUNT), index=np.arange(COUNT))


def loader(split: ImageSplit, **changed: Any) -> ImageLoader:
    settings: dict[str, Any] = {"batch_size": 8, "device": "cpu", "channel_mean": MEAN, "channel_std": STD}
    return ImageLoader(split, **(settings | changed))


def augmenting(split: ImageSplit, **changed: Any) -> ImageLoader:
    return loader(split, **({"augmentation": CropFlip(padding=2), "sampler": Shuffled(), "seed": 7} | changed))


def normalized(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (3, H, W): scale to [0, 1], take off the mean, divide by the deviation."""
    return ((image / 255 - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)


def cropped(image: np.ndarray, padding: int, top: int, left: int, flip: bool) -> np.ndarray:
    """Pixel by pixel: the crop at (top, left) of the zero-padded image, mirrored if `flip`."""
    result = np.zeros_like(image)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            taken = WIDTH - 1 - column if flip else column
            y, x = row + top - padding, taken + left - padding
            if 0 <= y < HEIGHT and 0 <= x < WIDTH:
                result[row, column] = image[y, x]
    return result


def test_evaluation_gives_every_row_once_in_order(split: ImageSplit) -> None:
    batches = list(loader(split))
    assert [len(batch.labels) for batch in batches] == [8, 8, 7]
    assert [(batch.size, batch.step, batch.share) for batch in batches] == [(8, 0, 1.0), (8, 1, 1.0), (7, 2, 1.0)]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(COUNT))
    assert torch.cat([batch.labels for batch in batches]).tolist() == split.labels.tolist()
    expected = np.stack([normalized(image) for image in split.images])
    np.testing.assert_allclose(torch.cat([batch.inputs for batch in batches]).numpy(), expected, rtol=0, atol=2e-6)


def test_batches_are_float32_with_channels_last_strides(split: ImageSplit) -> None:
    batch = next(iter(augmenting(split)))
    assert batch.inputs.dtype == torch.float32
    assert batch.inputs.shape == (8, 3, HEIGHT, WIDTH)
    assert batch.inputs.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == batch.index.dtype == torch.int64


@pytest.mark.parametrize("flip", [True, False])
def test_crop_and_flip_pixel_by_pixel(split: ImageSplit, flip: bool) -> None:
    augmentation = CropFlip(padding=2, flip=flip)
    draws = augmentation.draws(COUNT, generator("augment", 7, 3))
    made = augmenting(split, augmentation=augmentation)
    made.set_epoch(3)
    order = Shuffled().indices(7, 3, 1)
    position = 0
    for batch in made:
        for row in range(len(batch.labels)):
            image = split.images[order[position]]
            flipped = flip and bool(draws["flip"][position])
            corner = int(draws["top"][position]), int(draws["left"][position])
            expected = normalized(cropped(image, 2, *corner, flipped))
            np.testing.assert_allclose(batch.inputs[row].numpy(), expected, rtol=0, atol=2e-6)
            assert batch.labels[row] == split.labels[order[position]]
            position += 1
    assert position == COUNT


def test_draws_cover_every_corner_and_both_sides_evenly() -> None:
    draws = CropFlip(padding=4).draws(90_000, generator("test"))
    for name in ("top", "left"):
        counts = torch.bincount(draws[name], minlength=9)
        assert len(counts) == 9
        assert (counts / 10_000 - 1).abs().max() < 0.05  # 5 standard deviations
    assert abs(draws["flip"].float().mean() - 0.5) < 0.01
    assert "flip" not in CropFlip(padding=4, flip=False).draws(4, generator("test"))


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("batch_size", [2, 8, 23, 100])
def test_processes_together_equal_one(split: ImageSplit, world: int, batch_size: int) -> None:
    whole = augmenting(split, batch_size=batch_size)
    whole.set_epoch(4)
    parts = [augmenting(split, batch_size=batch_size, rank=rank, world_size=world) for rank in range(world)]
    for part in parts:
        part.set_epoch(4)
        assert len(part) == len(whole)
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sum(share.share for share in shares) == pytest.approx(world)
        for rank, share in enumerate(shares):
            own = batch.labels[rank::world]
            assert (share.size, share.epoch, share.step) == (batch.size, 4, batch.step)
            assert share.share == pytest.approx(len(own) * world / batch.size)
            rows = slice(rank, None, world) if len(own) else slice(-1, None)  # an empty share: the last row stands in
            assert torch.equal(share.inputs, batch.inputs[rows])
            assert torch.equal(share.labels, batch.labels[rows])
            assert torch.equal(share.index, batch.index[rows])


def test_shares_make_the_mean_over_processes_the_global_mean(split: ImageSplit) -> None:
    # what DDP does with gradients: the plain mean over processes of share * (mean over the process's rows)
    for batch, *shares in zip(
        augmenting(split), *(augmenting(split, rank=rank, world_size=3) for rank in range(3)), strict=True
    ):
        over_processes = sum(share.inputs.double().mean() * share.share for share in shares) / 3
        assert over_processes == pytest.approx(batch.inputs.double().mean().item(), abs=1e-6)


def test_evaluation_over_processes_covers_every_row_once(split: ImageSplit) -> None:
    seen = [
        row
        for rank in range(3)
        for batch in loader(split, batch_size=11, rank=rank, world_size=3)
        if batch.share > 0
        for row in batch.index.tolist()
    ]
    assert sorted(seen) == list(range(COUNT))
    # a last batch of one row, which two of four processes and more have no share of
    alone = [list(loader(split, batch_size=2, rank=rank, world_size=4)) for rank in range(4)]
    assert [batches[-1].share for batches in alone] == [4.0, 0.0, 0.0, 0.0]


def test_a_handful_of_rows_left_over_joins_the_batch_before(split: ImageSplit) -> None:
    """One image alone would give batch statistics without meaning."""
    assert COUNT == 23
    assert [batch.size for batch in loader(split, batch_size=22)] == [23]
    assert [batch.size for batch in loader(split, batch_size=11)] == [11, 12]
    assert [batch.size for batch in loader(split, batch_size=10)] == [10, 10, 3]  # at least an eighth: kept
    assert [batch.size for batch in loader(split, batch_size=400)] == [23]


def test_one_row_left_over_is_never_trained_on_alone(split: ImageSplit) -> None:
    sampler = InstanceBalanced(torch.from_numpy(split.labels), torch.bincount(torch.from_numpy(split.labels)))
    assert [batch.size for batch in loader(split, batch_size=2, sampler=sampler)] == [2] * 10 + [3]
    assert [batch.size for batch in loader(split, batch_size=2)] == [2] * 11 + [1]  # evaluated it may be


def images_of(batches: ImageLoader) -> Tensor:
    return torch.cat([batch.inputs for batch in batches])


def test_epochs_repeat_exactly_and_differ_from_each_other(split: ImageSplit) -> None:
    made = augmenting(split)
    made.set_epoch(2)
    second = images_of(made)
    made.sampler.set_epoch(3)  # as Lightning announces it
    third = images_of(made)
    made.set_epoch(2)
    assert torch.equal(images_of(made), second)
    assert torch.equal(images_of(made), second)
    assert not torch.equal(third, second)
    fresh = augmenting(split)
    fresh.set_epoch(3)
    assert torch.equal(images_of(fresh), third)
    assert not torch.equal(images_of(augmenting(split, seed=8)), images_of(augmenting(split, seed=7)))
    assert {batch.epoch for batch in fresh} == {3}


def test_seed_zero_is_a_seed(split: ImageSplit) -> None:
    assert torch.equal(images_of(augmenting(split, seed=0)), images_of(augmenting(split, seed=0)))


def test_global_generators_are_left_alone(split: ImageSplit) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    images_of(augmenting(split))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


def test_images_of_the_split_are_not_changed(split: ImageSplit) -> None:
    before = split.images.copy()
    for augmentation in (None, NoAugmentation(), CropFlip(padding=0), CropFlip(padding=2)):
        images_of(augmenting(split, augmentation=augmentation))
    assert np.array_equal(split.images, before)


def test_no_augmentation_equals_none(split: ImageSplit) -> None:
    assert torch.equal(
        images_of(augmenting(split, augmentation=NoAugmentation())), images_of(augmenting(split, augmentation=None))
    )


class Brightness(Augmentation):
    """An augmentation with float output, as later ones may have."""

    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {"factor": torch.rand(count, generator=generator)}

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        return images * draws["factor"][:, None, None, None]


def test_another_augmentation_may_give_floats(split: ImageSplit) -> None:
    batch = next(iter(augmenting(split, augmentation=Brightness())))
    factor = Brightness().draws(COUNT, generator("augment", 7, 0))["factor"][0]
    expected = normalized(split.images[batch.index[0]] * factor.numpy())
    np.testing.assert_allclose(batch.inputs[0].numpy(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", names("augmentation"))
def test_every_augmentation_config_builds(name: str, split: ImageSplit) -> None:
    augmentation = build(OmegaConf.to_container(load("augmentation", name)))  # type: ignore[arg-type]
    assert images_of(augmenting(split, augmentation=augmentation)).shape == (COUNT, 3, HEIGHT, WIDTH)


def test_negative_padding_is_refused() -> None:
    with pytest.raises(ConfigError, match="padding=-1"):
        CropFlip(padding=-1)
