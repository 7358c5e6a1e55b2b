"""Files that are either whole or not there."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ltexp.errors import LtexpError


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` that takes its place when the block ends without an error.

    Raises:
        LtexpError: if the disk is full or the folder cannot be written; `path` is then as it was before.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise LtexpError(_cannot_write(path, error)) from error


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` in one step (see `atomic_write`)."""
    with atomic_write(path) as file:
        file.write(text.encode())


def copy_file(source: Path, target: Path) -> None:
    """Copies `source` to `target` in one step (see `atomic_write`)."""
    with source.open("rb") as original, atomic_write(target) as copy:
        shutil.copyfileobj(original, copy)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"the disk is full: {path} was not written; free some space and run the same command with resume=true"
    return f"cannot write {path}: {error.strerror or error}"
