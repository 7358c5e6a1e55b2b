"""Work that one job of a machine does while others wait for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ltexp.distributed import rank
from ltexp.errors import WriteError


@contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Within the block no other job holds the lock `path`; waits for one that does. One process of a job holds it.

    The lock is the operating system's: a job that is killed gives it back.

    Args:
        path: of the lock; its folder is made.
        doing: what another job does that this one waits for.

    Raises:
        WriteError: where nothing can be written, or on a file system without locks.
    """
    if rank() != 0:
        yield
        return
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another job is {doing}: waiting for it", flush=True)
            lock.acquire()
    except OSError as error:
        raise WriteError(f"cannot lock {path}: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()
