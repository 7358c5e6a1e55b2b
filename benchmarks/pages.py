"""Images per second of stage 1 with tensors in pages of 2 MB, as runs have them on a CPU, over those without."""

import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from benchmarks.training import BATCH, configured, data_for, real
from ltexp.config import Config
from ltexp.processes.memory import LARGE_PAGES, use_large_pages
from ltexp.processes.worker import quieten

ROUNDS = 4


def speed(config: Config) -> float:
    """Images per second of the second epoch of stage 1."""
    quieten()
    return real(config, data_for(config), "stage1")[1]


def main() -> None:
    """Prints the medians and their ratio, for each precision."""
    os.environ.pop(LARGE_PAGES, None)
    use_large_pages()
    if os.environ.pop(LARGE_PAGES, None) is None:
        print("this system has no pages of 2 MB to give")
        return
    print(f"ResNet-32, batch {BATCH}, {torch.get_num_threads()} threads, median of {ROUNDS} rounds")
    for precision in ("bf16-mixed", "32-true"):
        config = configured("ce", f"trainer.precision={precision}", "trainer.accelerator=cpu")
        speeds: dict[str, list[float]] = {"0": [], "1": []}
        for _ in range(ROUNDS):
            for value, found in speeds.items():
                os.environ[LARGE_PAGES] = value
                with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # PyTorch reads it once in a process
                    found.append(apart.submit(speed, config).result())
        without, with_them = (statistics.median(speeds[value]) for value in ("0", "1"))
        print(f"  {precision}: {with_them:.0f} and {without:.0f} images/s, {with_them / without:.2f} times as many")


if __name__ == "__main__":
    main()
