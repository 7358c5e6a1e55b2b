"""Trained stages, shared between runs: the same stage is trained once, however many runs ask for it at a time."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ltexp.distributed import broadcast_object, rank
from ltexp.files import write_text
from ltexp.run_folder import CHECKPOINT, METRICS

_ENTRY = "entry.json"


class StageCache:
    """A folder of stages under the fingerprints of everything that determined them.

    Args:
        folder: made when first written to; None turns the cache off.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @contextmanager
    def reserve(self, fingerprint: str) -> Iterator[None]:
        """Within the block no other job trains this stage; waits for one that does. One process of a job holds it.

        The lock is the operating system's: a job that is killed gives it back.
        """
        if self.folder is None or rank() != 0:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{fingerprint}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print("another job is training this stage: waiting for it", flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def fetch(self, fingerprint: str, stage_folder: Path) -> bool:
        """Copies the stage into a run's `stage_folder` if it is here and whole; a damaged entry is removed."""
        found = False
        if self.folder is not None and rank() == 0:
            found = self._fetch(self.folder / fingerprint, stage_folder)
        return broadcast_object(found)

    def store(self, fingerprint: str, stage_folder: Path) -> None:
        """Keeps a copy of a run's trained stage; it appears in one step."""
        if self.folder is None or rank() != 0:
            return
        temporary = Path(tempfile.mkdtemp(dir=self.folder, prefix=f".{fingerprint}."))
        try:
            for name in (CHECKPOINT, METRICS):
                shutil.copyfile(stage_folder / name, temporary / name)
            entry = {name: checksum(temporary / name) for name in (CHECKPOINT, METRICS)}
            write_text(temporary / _ENTRY, json.dumps(entry))
            shutil.rmtree(self.folder / fingerprint, ignore_errors=True)
            os.rename(temporary, self.folder / fingerprint)
        except OSError as error:  # the run itself has its stage; only sharing it failed
            shutil.rmtree(temporary, ignore_errors=True)
            print(f"stage cache: this stage was not stored ({error.strerror or error})", flush=True)

    def _fetch(self, entry: Path, stage_folder: Path) -> bool:
        if not entry.is_dir():
            return False
        try:
            checksums = json.loads((entry / _ENTRY).read_text(encoding="utf-8"))
            whole = all(checksum(entry / name) == checksums[name] for name in (CHECKPOINT, METRICS))
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            print(f"stage cache: {entry} is damaged; it is removed and the stage trained again", flush=True)
            shutil.rmtree(entry, ignore_errors=True)
            return False
        stage_folder.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, CHECKPOINT):
            shutil.copyfile(entry / name, stage_folder / name)
        return True


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
