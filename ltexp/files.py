"""Files that are either whole or not there."""

import errno
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ltexp.errors import WriteError

_STREAM = re.compile(r"/dev/stdout|/dev/stderr|(/dev/fd|/proc/self/fd)/\d+")
_NUMBERS = {"stdout": 1, "stderr": 2}


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file whose content is at `path` when the block ends without an error, and not before.

    A symbolic link stays: the file that it leads to is written. A pipe or a device stays as well, and is given the
    content.

    Raises:
        WriteError: if the disk is full or the folder cannot be written; `path` is then as it was before.
    """
    try:
        if is_file_to_be(path):
            with _replacing(_followed(path)) as file:
                yield file
        else:
            content = io.BytesIO()
            yield content
            _give(content.getvalue(), path)
    except OSError as error:
        raise WriteError(_cannot_write(path, error)) from error


def is_file_to_be(path: Path) -> bool:
    """Whether `path` is a regular file or nothing yet: no pipe, device, folder or open stream such as /dev/stdout."""
    try:
        return not _STREAM.fullmatch(str(path)) and (path.is_file() or not path.exists())
    except OSError:  # a name too long, or a folder that may not be read: writing says so
        return True


def _followed(path: Path) -> Path:
    """The file that a symbolic link leads to; any other path as it is."""
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside `path`, which takes its place at the end."""
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


def _give(content: bytes, path: Path) -> None:
    """Writes to a pipe or a device, or to a stream that is open: opened anew, it would be written from its start."""
    if _STREAM.fullmatch(str(path)):
        sys.stdout.flush()
        opened = os.fdopen(os.dup(_NUMBERS[path.name] if path.name in _NUMBERS else int(path.name)), "wb")
    else:
        opened = path.open("wb")
    with opened as file:
        file.write(content)


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
