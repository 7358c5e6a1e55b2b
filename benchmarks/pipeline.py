"""Images per second and core from files to normalised batches against bare decoding and resizing of the same files.

JPEGs of smooth random images, of ImageNet's usual size and large ones, are written to a temporary folder. Rates are
images over the processor time of all processes, workers included, so that other work on the machine counts for little;
the start and end of the workers, once a training, is left out. All kinds run in turn; the medians are compared.
"""

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ltexp.data.files.augmentation import RandomResizedCrop
from ltexp.data.files.cache import make_cache
from ltexp.data.files.loader import FileLoader
from ltexp.data.files.split import FileSplit
from ltexp.training.session import pick_device

ROUNDS, WORKERS, BATCH, EPOCHS = 3, 2, 32, 3
USUAL, LARGE = (500, 375), (1500, 1200)
COUNTS = {USUAL: 192, LARGE: 64}
CHANNELS = {"channel_mean": (0.485, 0.456, 0.406), "channel_std": (0.229, 0.224, 0.225)}
LEAST, LEAST_CACHED = 0.85, 2.0


class InOrder:
    """Shows the rows as they come, as a sampler, so that the workers of the loader stay."""

    def __init__(self, count: int) -> None:
        self.count = count

    def indices(self, seed: int, epoch: int, max_epochs: int) -> Tensor:
        return torch.arange(self.count)


def smooth_images(folder: Path, size: tuple[int, int], count: int) -> FileSplit:
    """Writes `count` JPEGs as large as photos of this size: random colours on a coarse grid, with some fine noise."""
    random = np.random.default_rng(0)
    folder.mkdir()
    grain = random.normal(0, 6, (size[1], size[0], 1))
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) + np.roll(grain, number, axis=1)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
    paths = np.array([f"{number}.jpg".encode() for number in range(count)])
    return FileSplit(labels=np.zeros(count, np.int64), index=np.arange(count), paths=paths, root=str(folder))


def bare(split: FileSplit) -> float:
    """Images per second of processor time of Pillow alone, in this process."""
    start = time.process_time()
    for path in split.paths:
        with Image.open(os.path.join(split.root, os.fsdecode(path))) as image:
            image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    return len(split) / (time.process_time() - start)


def pipeline(split: FileSplit, **settings: Any) -> float:
    """Images per second of processor time of an epoch after the first, of this process and its workers."""
    seconds = []
    for epochs in (1, EPOCHS):
        start = processor_time()
        loader = FileLoader(
            split,
            batch_size=BATCH,
            device=pick_device("auto", 0),
            workers=WORKERS,
            sampler=InOrder(len(split)),
            **CHANNELS,
            **settings,
        )
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            total = sum((batch.inputs[0, 0, 0, 0] for batch in loader), torch.zeros((), device=loader.device))
            total.item()  # the device has finished
        loader.close()
        seconds.append(processor_time() - start)
    return (EPOCHS - 1) * len(split) / (seconds[1] - seconds[0])


def processor_time() -> float:
    """Of this process and its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(split: FileSplit, cache: str) -> dict[str, float]:
    """Medians of images per second and core, by kind."""
    plain, jittered = ({"augmentation": RandomResizedCrop(jitter=jitter)} for jitter in (0, 0.4))
    kinds: dict[str, Callable[[], float]] = {
        "bare decode and resize": lambda: bare(split),
        "evaluation": lambda: pipeline(split),
        "training": lambda: pipeline(split, **plain),
        "training, with jitter": lambda: pipeline(split, **jittered),
        "evaluation, cached": lambda: pipeline(split, cache=cache),
        "training, cached": lambda: pipeline(split, cache=cache, **plain),
    }
    speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        for kind, run in kinds.items():
            speeds[kind].append(run())
    return {kind: statistics.median(values) for kind, values in speeds.items()}


def main() -> None:
    """Prints the medians and the ratios."""
    torch.set_num_threads(1)
    print(f"to batches of {BATCH} x 224 x 224 pixels with {WORKERS} workers, median of {ROUNDS} rounds")
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for size, count in COUNTS.items():
            name = "x".join(map(str, size))
            split = smooth_images(Path(folder) / name, size, count)
            make_cache(Path(folder) / f"{name}_256", [split], 256, WORKERS)
            found[size] = measure(split, str(Path(folder) / f"{name}_256"))
            kilobytes = sum(path.stat().st_size for path in Path(split.root).iterdir()) / count / 1000
            print(f"{name} pixels, {kilobytes:.0f} kB a file: images per second and core")
            for kind, speed in found[size].items():
                print(f"  {kind:<26}{speed:>8.0f} {speed / found[size]['bare decode and resize']:>7.2f} of bare")
    for size, speeds in found.items():
        for kind in ("evaluation", "training"):
            ratio = speeds[kind] / speeds["bare decode and resize"]
            print(f"{kind} / bare, {'x'.join(map(str, size)):<24}{ratio:>6.2f}  (wanted: at least {LEAST})")
    for kind in ("evaluation", "training"):
        ratio = found[LARGE][f"{kind}, cached"] / found[LARGE][kind]
        print(f"{kind} cached / not, large originals{ratio:>8.2f}  (wanted: at least {LEAST_CACHED:g})")


if __name__ == "__main__":
    main()
