"""A process of a run of several dies: the run ends in a line within half a minute, and goes on with resume=true."""

import os
import signal
import time
from pathlib import Path

from faults.commands import PATIENCE, answer, one_line, small, start

SECONDS = 60.0  # from the death of one process to the end of the command


def main(folder: Path) -> list[str]:
    """Prints how long the end took, and returns what went wrong."""
    faults = []
    words = [*small("crt", ("stage1", "stage2"), epochs=60), "trainer.devices=2", "stage_cache.enabled=false"]
    for rank in (0, 1):
        run = folder / str(rank)
        process = start(run, words)
        deadline = time.monotonic() + PATIENCE
        while not (run / "stage1" / "resume.ckpt").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        worker = _worker(run, rank)
        if worker is None:
            ended = process.poll()
            process.kill()
            return [*faults, f"rank {rank} was not found (status {ended}): {answer(process)[2].strip()[-200:]}"]
        os.kill(worker, signal.SIGKILL)
        began = time.monotonic()
        status, _, err = answer(process)
        seconds = time.monotonic() - began
        print(f"rank {rank} killed: ended after {seconds:.1f} s with {err.strip().splitlines()[-1:]}", flush=True)
        if status == 0 or not one_line(err) or seconds > SECONDS:
            faults.append(f"rank {rank}: status {status} after {seconds:.0f} s: {err.strip()[-300:]}")
        status, _, err = answer(start(run, [*words, "resume=true"]))
        if status != 0:
            faults.append(f"rank {rank} resumed: {err.strip()[-300:]}")
    return faults


def _worker(run: Path, rank: int) -> int | None:
    """The number of the process of that rank, by what /proc says of its command and environment."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"ltexp.processes.rank" in command and os.fsencode(run) in command and b"RANK=%d" % rank in environment:
            return int(process.name)
    return None
