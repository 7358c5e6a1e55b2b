"""The cache of resized images gives what the files give, goes on where it was stopped, and is never half-trusted."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from ltexp.data.files import cache as image_cache
from ltexp.data.files.augmentation import RandomResizedCrop
from ltexp.data.files.cache import ImageCache, make_cache, open_cache
from ltexp.data.files.loader import FileLoader
from ltexp.data.files.split import FileSplit
from ltexp.errors import DataError

COUNT, SHORT, SHARD = 10, 64, 4


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "SHARD", SHARD)


@pytest.fixture
def split(tmp_path: Path) -> FileSplit:
    """Parts of a photo: a small one, a grey one, a PNG, and large ones."""
    photo = Image.fromarray(load_sample_images().images[0])
    root = tmp_path / "images"
    root.mkdir()
    paths = []
    for number in range(COUNT):
        part = photo.crop((10 * number, 5 * number, 10 * number + 200, 5 * number + 150 + number))
        name = f"{(7 * number) % COUNT}.{'png' if number == 3 else 'jpg'}"
        small, grey = number == 1, number == 2
        part = part.resize((50, 40)) if small else part.convert("L") if grey else part
        part.save(root / name)
        paths.append(name.encode())
    return FileSplit(labels=np.arange(COUNT) % 3, index=np.arange(COUNT), paths=np.array(paths), root=str(root))


def loader(split: FileSplit, cache: Path | None, **changed: Any) -> FileLoader:
    settings: dict[str, Any] = {"batch_size": 4, "device": "cpu", "image_size": 56, "resize": SHORT, "workers": 0}
    channels = {"channel_mean": (0.0, 0.0, 0.0), "channel_std": (1.0, 1.0, 1.0)}
    return FileLoader(split, **settings, **channels, cache=None if cache is None else str(cache), **changed)


def images_of(batches: FileLoader) -> torch.Tensor:
    return 255 * torch.cat([batch.inputs for batch in batches])


@pytest.mark.parametrize("workers", [1, 2])
def test_cached_images_are_the_files_own(split: FileSplit, tmp_path: Path, workers: int) -> None:
    told: list[tuple[int, int]] = []
    assert make_cache(tmp_path / "cache", [split, split], SHORT, workers, lambda *now: told.append(now)) == COUNT
    assert told[0] == (0, COUNT)
    assert told[-1] == (COUNT, COUNT)
    for settings in ({}, {"augmentation": RandomResizedCrop(jitter=0)}):  # the same draws, on the copies
        plain = images_of(loader(split, None, **settings))
        cached = images_of(loader(split, tmp_path / "cache", **settings))
        assert (plain - cached).abs().mean() < (6 if settings else 3)
        assert torch.equal(cached[1] == plain[1], torch.ones_like(plain[1], dtype=torch.bool))  # a small JPEG as it is
    cache = open_cache(str(tmp_path / "cache"), SHORT)
    for row, place in enumerate(cache.places(split).tolist()):
        _, content = cache.read(place)
        (tmp_path / "copy.jpg").write_bytes(content)
        with Image.open(tmp_path / "copy.jpg") as image:
            assert min(image.size) == (40 if row == 1 else SHORT)
    part = split.take(np.array([7, 2]))  # of a subset, in any order
    assert torch.equal(
        images_of(loader(part, tmp_path / "cache")), images_of(loader(split, tmp_path / "cache"))[[7, 2]]
    )


def test_a_stopped_command_goes_on_where_it_was(
    split: FileSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    made = image_cache.make_shard
    calls: list[Path] = []

    def stopped(shard: image_cache.Shard) -> image_cache.Shard:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(shard.target)
        return made(shard)

    monkeypatch.setattr(image_cache, "make_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        make_cache(folder, [split], SHORT, 1)
    with pytest.raises(DataError, match=r"is not finished: run"):
        ImageCache(str(folder), SHORT)
    calls[1].write_bytes(calls[1].read_bytes()[:-1])  # and one was cut short since
    before = calls[0].stat()
    monkeypatch.setattr(image_cache, "make_shard", made)
    told: list[int] = []
    make_cache(folder, [split], SHORT, 1, lambda done, _: told.append(done))
    assert told == [SHARD, 2 * SHARD, COUNT]
    assert calls[0].stat().st_mtime_ns == before.st_mtime_ns
    make_cache(tmp_path / "whole", [split], SHORT, 1)
    for file in (tmp_path / "whole").glob("*.shard"):
        assert (folder / file.name).read_bytes() == file.read_bytes()
    assert torch.equal(images_of(loader(split, folder)), images_of(loader(split, tmp_path / "whole")))


def test_a_cache_of_other_images_is_refused(split: FileSplit, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with pytest.raises(DataError, match="holds no cache: run"):
        loader(split, folder)
    make_cache(folder, [split.take(np.arange(COUNT - 2))], SHORT, 1)
    with pytest.raises(DataError, match=r"cache of other lists, without 2 images of these, such as \d.jpg"):
        loader(split, folder)
    with pytest.raises(DataError, match=r"images of 64 pixels on the short side, and dataset.resize=100"):
        ImageCache(str(folder), 100)
    for splits, short in (([split], SHORT), ([split.take(np.arange(COUNT - 2))], 50)):
        with pytest.raises(DataError, match=r"holds something else, such as .* delete it, or give out=ANOTHER"):
            make_cache(folder, splits, short, 1)
    path = Path(split.root) / split.paths[0].decode()
    path.write_bytes(path.read_bytes() + b"\0")  # as if another image had taken its place
    with pytest.raises(DataError, match=f"{re.escape(str(path))} is not the file that"):
        loader(split.take(np.arange(3)), folder)
    moved = replace(split.take(np.arange(3)), root=str(tmp_path / "elsewhere"))
    assert len(images_of(loader(moved, folder))) == 3  # the copies alone are enough


def test_damage_is_noticed(split: FileSplit, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    make_cache(folder, [split], SHORT, 1)
    shards = sorted(folder.glob("*.shard"))
    whole = shards[0].read_bytes()
    shards[0].write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"00000.shard is missing or not as long as it was"):
        ImageCache(str(folder), SHORT)
    shards[0].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # of the right length
    with pytest.raises(DataError, match=r"00000.shard, \d.(jpg|png) is damaged: delete the folder"):
        images_of(loader(split, folder))
    shards[0].unlink()
    with pytest.raises(DataError, match=r"00000.shard is missing"):
        ImageCache(str(folder), SHORT)
    (folder / "index.npz").write_bytes((folder / "index.npz").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"index.npz is damaged"):
        ImageCache(str(folder), SHORT)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_cannot_be_read_is_named(split: FileSplit, tmp_path: Path, workers: int) -> None:
    path = Path(split.root) / split.paths[5].decode()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: not a readable image"):
        make_cache(tmp_path / "cache", [split], SHORT, workers)
    path.unlink()
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: No such file"):
        make_cache(tmp_path / "cache", [split], SHORT, workers)
