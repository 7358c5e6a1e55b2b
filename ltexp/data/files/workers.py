"""Starts the worker processes of a DataLoader, and makes sure that they have."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.utils.data import DataLoader

from ltexp.errors import TrainingError

START_LIMIT = 60.0  # seconds in which a worker begins, on a busy machine too
ATTEMPTS = 5


def start_workers(make: Callable[[Callable[[int], None]], DataLoader[Any]]) -> tuple[DataLoader[Any], Iterator[Any]]:
    """A DataLoader and its first iteration, whose workers have all begun.

    A process that is forked in the moment in which another thread of this one enters the interpreter, as those that
    exchange tensors do after each exchange, may wait for ever before it has begun (CPython 3.11). Its parent would wait
    for its first batch as long; so workers say that they have begun, and those that do not are started anew.

    Args:
        make: a DataLoader whose `worker_init_fn` is the function that it is given.

    Raises:
        TrainingError: if no attempt succeeds.
    """
    for _ in range(ATTEMPTS):
        before = set(multiprocessing.active_children())
        begun, begin = multiprocessing.Pipe(duplex=False)
        with begun, begin:
            pool = make(partial(_begin, begin))
            batches = iter(pool)
            silent = _silent(set(multiprocessing.active_children()) - before, begun)
        if not silent:
            return pool, batches
        kill_workers(silent)
        del pool, batches  # ends those that have begun
    raise TrainingError(
        f"the processes that decode images do not begin within {START_LIMIT:g} s: set dataset.workers=0, "
        "or try again when this machine is less busy"
    )


def _silent(workers: set[Any], begun: Connection) -> set[Any]:
    """Those of which none has said that it begins for a while."""
    waiting = {worker.pid: worker for worker in workers}
    while waiting and begun.poll(START_LIMIT):
        waiting.pop(begun.recv(), None)
    return set(waiting.values())


def kill_workers(workers: set[Any]) -> None:
    """Kills worker processes that have not begun, and waits until they have ended.

    One that has begun may hold the lock of the event with which torch ends them all: its death then blocks that end.
    """
    with _deaths_unreported():
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()


@contextmanager
def _deaths_unreported() -> Iterator[None]:
    """Torch raises an error in the main thread when a worker was killed, be it between its end and the note of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _begin(begin: Connection, _: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the one that trains ends these."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    begin.send(os.getpid())
