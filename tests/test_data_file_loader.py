"""Batches of image files: what Pillow makes of each, the same for any number of workers and processes."""

import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional

from ltexp.data.augmentation import Views
from ltexp.data.files import workers
from ltexp.data.files.augmentation import CentreCrop, Draw, RandomResizedCrop, jitter
from ltexp.data.files.decode import Crop
from ltexp.data.files.loader import FileLoader
from ltexp.data.files.split import FileSplit
from ltexp.errors import ConfigError, DataError, TrainingError
from ltexp.randomness import generator

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COUNT, SIZE, RESIZE = 21, 24, 28


class Shuffled:
    def indices(self, seed: int, epoch: int, max_epochs: int) -> Tensor:
        return torch.randperm(COUNT, generator=generator("order", seed, epoch))


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> FileSplit:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = []
    for number in range(COUNT):
        small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        path = root / f"class {number % 4}" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        sides = rng.integers(30, 90, 2)
        small.resize((int(sides[0]), int(sides[1])), Image.Resampling.BICUBIC).save(path)
        paths.append(str(path.relative_to(root)).encode())
    labels = np.arange(COUNT) % 4
    return FileSplit(labels=labels, index=np.arange(COUNT), paths=np.array(paths), root=str(root))


def loader(split: FileSplit, **changed: Any) -> FileLoader:
    settings: dict[str, Any] = {"batch_size": 8, "device": "cpu", "channel_mean": MEAN, "channel_std": STD}
    return FileLoader(split, **(settings | {"image_size": SIZE, "resize": RESIZE, "workers": 0} | changed))


def augmenting(split: FileSplit, **changed: Any) -> FileLoader:
    return loader(split, **({"augmentation": RandomResizedCrop(), "sampler": Shuffled(), "seed": 7} | changed))


def opened(split: FileSplit, row: int) -> Image.Image:
    return Image.open(Path(split.root) / split.paths[row].decode()).convert("RGB")


def normalized(pixels: np.ndarray) -> np.ndarray:
    return ((pixels / 255 - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)


def images_of(batches: FileLoader) -> Tensor:
    return torch.cat([batch.inputs for batch in batches])


def test_evaluation_is_torchvisions_resize_and_centre_crop(split: FileSplit) -> None:
    by_hand = transforms.Compose([transforms.Resize(RESIZE), transforms.CenterCrop(SIZE)])
    batches = list(loader(split))
    assert [(batch.size, batch.step, batch.share) for batch in batches] == [(8, 0, 1.0), (8, 1, 1.0), (5, 2, 1.0)]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(COUNT))
    assert torch.cat([batch.labels for batch in batches]).tolist() == split.labels.tolist()
    assert batches[0].inputs.dtype == torch.float32
    assert batches[0].inputs.is_contiguous(memory_format=torch.channels_last)
    expected = np.stack([normalized(np.asarray(by_hand(opened(split, row)))) for row in range(COUNT)])
    found = torch.cat([batch.inputs for batch in batches]).numpy()
    levels = np.abs(found - expected) * 255 * np.array(STD)[:, None, None]
    assert levels.max() < 1.01  # one step in place of two rounds once in place of twice
    assert levels.mean() < 0.1


def test_training_crops_are_pillows_of_the_drawn_boxes(split: FileSplit) -> None:
    augmentation = RandomResizedCrop(jitter=0)
    made = augmenting(split, augmentation=augmentation)
    made.set_epoch(3)
    draws = augmentation.draws(COUNT, generator("augment", 7, 3))
    order = Shuffled().indices(7, 3, 1).tolist()
    expected = []
    for position, row in enumerate(order):
        image = opened(split, row)
        box, mirrored = augmentation.crop(*image.size, {name: drawn[position].numpy() for name, drawn in draws.items()})
        pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
        expected.append(normalized(pixels[:, ::-1] if mirrored else pixels))
    np.testing.assert_allclose(images_of(made).numpy(), np.stack(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_make_the_same_epochs(split: FileSplit, workers: int) -> None:
    alone, helped = augmenting(split), augmenting(split, workers=workers)
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        helped.sampler.set_epoch(epoch)  # as Lightning announces it
        assert torch.equal(images_of(alone), images_of(helped))
    resumed = augmenting(split, workers=workers)
    resumed.set_epoch(1)
    assert torch.equal(images_of(resumed), images_of(alone))
    helped.close()
    resumed.close()


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_equal_one(split: FileSplit, world: int) -> None:
    whole = augmenting(split)
    parts = [augmenting(split, rank=rank, world_size=world) for rank in range(world)]
    for batch, *shares in zip(whole, *parts, strict=True):
        for rank, share in enumerate(shares):
            assert torch.equal(share.inputs, batch.inputs[rank::world])
            assert torch.equal(share.index, batch.index[rank::world])
            assert torch.equal(share.labels, batch.labels[rank::world])


@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_crops_of_their_own_and_the_first_is_that_of_one_view_alone(split: FileSplit, workers: int) -> None:
    plain = RandomResizedCrop(jitter=0.4)
    both = Views([plain, RandomResizedCrop(scale=(0.5, 1.0), jitter=0.0)])
    alone, together = augmenting(split, augmentation=plain), augmenting(split, augmentation=both, workers=workers)
    for one, two in zip(alone, together, strict=True):
        assert torch.equal(one.inputs, two.inputs)
        assert two.views.shape == (2, *one.inputs.shape)
        assert torch.equal(two.views[0], one.inputs)
        assert not torch.allclose(two.views[1], one.inputs, atol=0.1)


def test_training_workers_stay_and_survive_an_early_end(split: FileSplit) -> None:
    made = augmenting(split, workers=2, batch_size=4)
    expected = images_of(augmenting(split, batch_size=4))
    for batch in made:  # the first batch alone, while others are on their way
        assert torch.equal(batch.inputs, expected[:4])
        break
    workers = processes_of(made)
    assert len(workers) == 2
    assert torch.equal(images_of(made), expected)
    assert processes_of(made) == workers
    made.close()
    assert not any(process.is_alive() for process in workers)
    assert torch.equal(images_of(made), expected)  # and it can be used again
    made.close()


def test_evaluation_workers_end_with_the_evaluation(split: FileSplit) -> None:
    made = loader(split, workers=2)
    batches = iter(made)
    next(batches)
    assert made._pool is not None
    batches.close()  # type: ignore[attr-defined]
    assert made._pool is None
    assert torch.equal(images_of(made), images_of(loader(split)))


def processes_of(made: FileLoader) -> list[Any]:
    assert made._pool is not None
    return list(made._pool._iterator._workers)  # type: ignore[union-attr]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_or_missing_file_is_named_in_one_line(split: FileSplit, tmp_path: Path, workers: int) -> None:
    (tmp_path / "good.jpg").write_bytes((Path(split.root) / split.paths[0].decode()).read_bytes())
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:400])
    for bad in ("cut.jpg", "gone.jpg"):
        paths = np.array([b"good.jpg", b"good.jpg", bad.encode()])
        broken = FileSplit(labels=np.zeros(3, np.int64), index=np.arange(3), paths=paths, root=str(tmp_path))
        with pytest.raises(DataError) as caught:
            images_of(loader(broken, batch_size=2, workers=workers))
        assert str(caught.value).startswith(f"{tmp_path / bad}: ")
        assert "\n" not in str(caught.value)


class Deadly(RandomResizedCrop):
    """Ends the process that uses it, as the kernel does when memory runs out."""

    def crop(self, width: int, height: int, draw: Draw) -> Crop:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_the_end_of_a_worker_is_said_in_one_line(split: FileSplit) -> None:
    with pytest.raises(TrainingError, match=r"^a process that decodes images died .*: free some memory.*workers$"):
        images_of(augmenting(split, workers=2, augmentation=Deadly()))


def test_a_worker_that_does_not_begin_is_started_anew(split: FileSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython 3.11 may wait for ever in a fork, in which another thread enters the interpreter."""
    hanging, killed = hang_some(monkeypatch), kills(monkeypatch)
    made, before = augmenting(split, workers=2), set(multiprocessing.active_children())
    found, expected = images_of(made), images_of(augmenting(split))
    made.close()
    assert torch.equal(found, expected)
    assert not hanging.acquire(block=False)
    assert len(killed) == 1  # the other may hold a lock that torch needs for the end
    assert set(multiprocessing.active_children()) <= before
    monkeypatch.setattr(workers, "ATTEMPTS", 2)
    for _ in range(2):
        hanging.release()
    with pytest.raises(TrainingError, match=r"^the processes that decode images do not begin within 2 s"):
        images_of(loader(split, workers=1))


def hang_some(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As many workers as the semaphore that is returned counts, one at first, never begin."""
    hanging, begin = multiprocessing.Semaphore(1), workers._begin

    def hang(begun: Any, worker: int) -> None:
        if hanging.acquire(block=False):
            time.sleep(600)
        begin(begun, worker)

    monkeypatch.setattr(workers, "_begin", hang)
    monkeypatch.setattr(workers, "START_LIMIT", 2.0)
    return hanging


def kills(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The workers that are killed; each must be known to have ended, or torch would report its death."""
    killed, kill = [], workers.kill_workers

    def kill_and_note(silent: set[Any]) -> None:
        kill(silent)
        assert not any(worker.is_alive() for worker in silent)
        killed.extend(silent)

    monkeypatch.setattr(workers, "kill_workers", kill_and_note)
    return killed


def test_global_generators_are_left_alone(split: FileSplit) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    images_of(loader(split, workers=1))
    images_of(augmenting(split))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_sizes_that_cannot_be_are_refused(split: FileSplit) -> None:
    with pytest.raises(ConfigError, match="invalid image_size=32: expected a whole number from 1 to resize=28"):
        loader(split, image_size=32)
    for wrong in ({"scale": [0.5, 1.2]}, {"ratio": [2.0, 1.0]}, {"jitter": 1.5}, {"jitter": -0.1}):
        with pytest.raises(ConfigError, match=f"^invalid {next(iter(wrong))}="):
            RandomResizedCrop(**wrong)


def test_jitter_is_torchvisions_in_each_images_own_order() -> None:
    images = torch.randint(256, (30, 9, 7, 3), generator=generator("images"), dtype=torch.uint8)
    draws = RandomResizedCrop(jitter=0.4).draws(30, generator("jitter"))
    steps = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    found = jitter(images, draws["factor"], draws["order"])
    assert len({tuple(order) for order in draws["order"].tolist()}) == math.factorial(3)
    for row in range(len(images)):
        expected = images[row].permute(2, 0, 1) / 255
        for kind in draws["order"][row].tolist():
            expected = steps[kind](expected, float(draws["factor"][row, kind]))
        torch.testing.assert_close(found[row], 255 * expected.permute(1, 2, 0), rtol=0, atol=0.01)
    assert torch.equal(RandomResizedCrop()(images, draws), found)  # some at a time


def test_crops_are_distributed_as_asked() -> None:
    augmentation = RandomResizedCrop()
    count, width, height = 4000, 500, 375
    draws = {name: drawn.numpy() for name, drawn in augmentation.draws(count, generator("crops")).items()}
    crops = [augmentation.crop(width, height, {name: drawn[i] for name, drawn in draws.items()}) for i in range(count)]
    left, top, right, bottom = np.array([crop.box for crop in crops]).T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= width
    assert bottom.max() <= height
    area = (right - left) * (bottom - top) / (width * height)
    shape = (right - left) / (bottom - top)
    assert 0.079 < area.min() < 0.09
    assert 0.98 < area.max() <= 1
    assert 0.74 < shape.min() < 0.77
    assert 1.31 < shape.max() < 1.35
    ours, theirs = (area, shape), reference(count, width, height)
    for one, other in zip(ours, theirs, strict=True):  # five deviations of a difference of two means
        assert abs(one.mean() - other.mean()) < 5 * math.sqrt((one.var() + other.var()) / count)
    assert np.mean(left == width - right) < 0.05  # anywhere, not in the middle
    assert Counter(crop.mirrored for crop in crops)[True] == pytest.approx(count / 2, abs=5 * math.sqrt(count / 4))


def reference(count: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Area and shape of torchvision's own crops."""
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        crops = [transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    down, across = np.array(crops).T[2:]
    return across * down / (width * height), across / down


@pytest.mark.parametrize(("size", "expected"), [((1000, 10), (494, 0, 507, 10)), ((10, 1000), (0, 494, 10, 507))])
def test_an_image_too_long_for_any_attempt_gives_its_middle(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    augmentation = RandomResizedCrop(scale=(0.9, 1.0))
    draw = {name: drawn[0].numpy() for name, drawn in augmentation.draws(1, generator("long")).items()}
    assert augmentation.crop(*size, draw).box == expected


def test_a_crop_of_the_middle_is_as_large_as_asked() -> None:
    left, top, right, bottom = CentreCrop(256, 224).crop(512, 400, {}).box
    assert (right - left, bottom - top) == pytest.approx((224 * 512 / 327, 224 * 400 / 256))
    assert (left + right, top + bottom) == pytest.approx((512, 400), abs=1.6)
