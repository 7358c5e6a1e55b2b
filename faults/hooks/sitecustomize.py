"""Imported by every Python process that has this folder on its path: a write fails, or the clock jumps.

FAULTS_FULL_AT=N with FAULTS_COUNT=FILE: the N-th file that is synchronised to the disk, over all processes of a
command, finds it full; FILE counts them. FAULTS_CLOCK=SEED: the clock jumps by up to a day, forwards or back, between
any two readings.
"""

import errno
import os
import random
import time


def _full_at(number: int, count: str) -> None:
    synchronise = os.fsync

    def fsync(descriptor: int) -> None:
        counter = os.open(count, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(counter, b".")
            reached = os.fstat(counter).st_size
        finally:
            os.close(counter)
        if reached == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synchronise(descriptor)

    os.fsync = fsync


def _jumping_clock(seed: str) -> None:
    jumps, read, day = random.Random(seed), time.time, 86_400.0

    def now() -> float:
        return read() + jumps.uniform(-day, day)

    time.time = now
    time.time_ns = lambda: int(now() * 1e9)


if "FAULTS_COUNT" in os.environ:
    _full_at(int(os.environ.get("FAULTS_FULL_AT", 0)), os.environ["FAULTS_COUNT"])
if "FAULTS_CLOCK" in os.environ:
    _jumping_clock(os.environ["FAULTS_CLOCK"])
