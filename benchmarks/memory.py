"""Images per second where the process keeps its memory, in large pages, as runs do, over those where it does not.

On a CPU. `LTEXP_BENCH_PRECISION=32-true` measures in float32.
"""

import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from benchmarks.training import BATCH, PRECISION, configured, data_for, evaluations, real
from ltexp.processes.memory import LARGE_PAGES, keep_memory
from ltexp.processes.worker import quieten

ROUNDS = 3


def speeds(kept: bool) -> dict[str, float]:
    """Images per second of what a run does, in a process that has just begun."""
    quieten()
    if kept:
        keep_memory()
    ce, crt = (configured(method, "trainer.accelerator=cpu") for method in ("ce", "crt"))
    data = data_for(ce)
    return {
        "stage 1 (ce)": real(ce, data, "stage1")[1],
        "stage 2 (crt, frozen)": real(crt, data, "stage2")[1],
        "evaluation": evaluations(ce, data)[1],
    }


def main() -> None:
    """Prints the medians and their ratios."""
    os.environ.pop(LARGE_PAGES, None)
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for kept, rounds in found.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as apart:
                rounds.append(apart.submit(speeds, kept).result())
    print(f"ResNet-32, batch {BATCH}, {PRECISION}, {torch.get_num_threads()} threads, median of {ROUNDS} rounds")
    for name in found[True][0]:
        plain, kept = (statistics.median(one[name] for one in found[each]) for each in (False, True))
        print(f"  {name:<30}{kept:>7.0f} images/s, {kept / plain:.2f} times {plain:.0f}")


if __name__ == "__main__":
    main()
