"""SIGKILL at random moments over the methods, each run resumed until it ends: its weights are those of a whole run.

KILLS=100 is how many; METHODS=crt,mislas,... which methods, in turn; SEED=0 the moments.
"""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

from faults.commands import answer, equal, small, start, weights

METHODS = "crt_mixup,mislas,bkd,glag,dasl,ce_drw,ride_bkd_2,kps"
STAGES = {"ce_drw": ("stage1",), "kps": ("stage1",)}
FURTHER = {"glag": ["stage2.features.tail_at_most=8"]}  # of the 24 and 13 of the head features are generated
FRUITLESS = 6  # kills of one run in a row; then it may end, so that each run ends


def main(folder: Path) -> list[str]:
    """Prints how many kills ended in equal bits, and returns what did not."""
    wanted, moments = int(os.environ.get("KILLS", 100)), random.Random(int(os.environ.get("SEED", 0)))
    methods = os.environ.get("METHODS", METHODS).split(",")
    faults: list[str] = []
    kills = runs = 0
    while kills < wanted:
        method = methods[runs % len(methods)]
        words = [*command(method), "stage_cache.enabled=false"]
        whole = folder / f"{runs}-whole"
        began = time.monotonic()
        status, _, err = answer(start(whole, words))
        if status != 0:
            return [*faults, f"{method} without a kill: {err.strip()[-200:]}"]
        killed, fault = killed_and_resumed(folder / f"{runs}", words, time.monotonic() - began, moments, wanted - kills)
        if not fault and not equal(weights(whole), weights(folder / f"{runs}")):
            fault = "other weights than an uninterrupted run's"
        kills, runs = kills + killed, runs + 1
        faults += [f"{method}: {fault}"] if fault else []
        print(f"{method:<12} killed {killed} times, {fault or 'bit-equal'}", flush=True)
    print(f"{kills} kills in {runs} runs, {len(faults)} faults")
    return faults


def command(method: str) -> list[str]:
    """A run of a few seconds with several epochs in each stage."""
    stages = STAGES.get(method, ("stage1", "stage2"))
    return [*small(method, stages, epochs=12), *FURTHER.get(method, [])]


def killed_and_resumed(
    folder: Path, words: list[str], seconds: float, moments: random.Random, most: int
) -> tuple[int, str | None]:
    """(how often it was killed, what went wrong): a run whose command is killed within `seconds`, and given again."""
    for killed in range(min(FRUITLESS, most) + 1):
        process = start(folder, [*words, "resume=true"])
        if killed < min(FRUITLESS, most):
            try:
                process.wait(timeout=moments.uniform(0.2, 0.9) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                continue
        status, _, err = answer(process)
        return killed, None if status == 0 else f"resumed with status {status}: {err.strip()[-200:]}"
    return most, "it did not end"
