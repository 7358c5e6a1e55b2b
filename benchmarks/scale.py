"""What grows with the number of classes: samplers, losses and predictions at iNaturalist's size and beyond.

Samplers are built and asked for an epoch of 437,513 images over 8,142 classes (iNaturalist 2018) and of a million over
100,000. A step of every loss is timed at SMALL and at four times as many classes: one that takes four times as long or
less grows with C, one that takes far longer with C squared. Times are the processor's.
"""

import time

import numpy as np
import torch
from omegaconf import OmegaConf

from benchmarks import losses
from ltexp.config.build import build
from ltexp.config.path import group_files
from ltexp.losses.context import BatchContext, StreamBatch

SETS = {"iNaturalist 2018": (8142, 437_513, 24_426), "100,000 classes": (100_000, 1_000_000, 200_000)}
SMALL, TIMES, ROUNDS, BATCH = 4000, 4, 5, 64
BYTES_OF_A_SAMPLE = 36  # of `ltexp.evaluation.metrics.Top1`
SQUARE = 10.0  # from this ratio on a loss grows with more than C; C squared would be 16


def sampler_seconds(classes: int, images: int) -> dict[str, float]:
    """Seconds to build each sampler and to draw the order of one epoch."""
    weights = 1 / (np.arange(classes) + classes / 60)
    counts = torch.from_numpy(np.maximum(2, weights / weights.sum() * images).astype(np.int64))
    labels = torch.repeat_interleave(torch.arange(classes), counts)
    seconds = {}
    for name, path in group_files("sampler").items():
        node = OmegaConf.to_container(OmegaConf.load(path))
        start = time.process_time()
        try:
            build(node, labels, counts).indices(0, 1, 10)
        except Exception as error:  # one that is made of others in a config
            print(f"    {name}: not timed alone ({type(error).__name__})")
            continue
        seconds[name] = time.process_time() - start
    return seconds


def loss_seconds(classes: int) -> dict[str, float]:
    """Seconds of the fastest forward and backward pass of each loss on a batch over so many classes."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(2, 1000, (classes,), generator=generator)
    target = torch.randint(0, classes, (BATCH,), generator=generator)
    vars(losses).update(BATCH=BATCH, CLASSES=classes)
    output = losses.everything(generator)
    fastest: dict[str, float] = {}
    for name, loss in losses.timed(counts).items():
        streams = {stream: StreamBatch(output, target) for stream in loss.streams}
        context = BatchContext(epoch=150, max_epochs=200, streams=streams)
        for _ in range(ROUNDS):
            start = time.process_time()
            loss(output, target, context).backward()
            fastest[name] = min(fastest.get(name, float("inf")), time.process_time() - start)
    return fastest


def main() -> None:
    """Prints the times, the memory of predictions, and the losses that grow with more than the number of classes."""
    for name, (classes, images, tests) in SETS.items():
        slowest = max((seconds, sampler) for sampler, seconds in sampler_seconds(classes, images).items())
        print(f"{name}: {images:,} images of {classes:,} classes")
        print(f"  the slowest sampler, built and asked for an epoch ({slowest[1]})".ljust(75) + f"{slowest[0]:.2f} s")
        print("  order of an epoch, on each process".ljust(75) + f"{8 * images / 2**20:.0f} MiB")
        print("  logits of the test split, on the first process and in predictions.npz".ljust(75), end="")
        print(f"{4 * tests * (classes + 1) / 2**30:.2f} GiB")
        print("  what metrics are computed from, on each process".ljust(75), end="")
        print(f"{BYTES_OF_A_SAMPLE * tests / 2**20:.1f} MiB")
    few, many = loss_seconds(SMALL), loss_seconds(TIMES * SMALL)
    ratios = {name: many[name] / few[name] for name in few}
    print(f"{len(ratios)} losses, a step at {TIMES * SMALL:,} classes against one at {SMALL:,} (batch {BATCH}):")
    largest = max(ratios, key=ratios.__getitem__)
    print(f"  median {np.median(list(ratios.values())):.1f}, largest {ratios[largest]:.1f} ({largest})")
    for name, ratio in ratios.items():
        if ratio > SQUARE:
            print(f"  {name}: {ratio:.1f}, grows with more than the number of classes")


if __name__ == "__main__":
    main()
