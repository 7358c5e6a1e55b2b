"""Trained stages, shared between runs: the same stage is trained once, however many runs ask for it at a time."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ltexp.distributed import broadcast_object, rank
from ltexp.errors import LtexpError
from ltexp.files import copy_file, write_text
from ltexp.lock import alone
from ltexp.run_folder import (
    CHECKPOINT,
    CONFIDENCE,
    FEATURE_NORMS,
    LAST_WEIGHTS,
    LEVELS,
    METRICS,
    read_metrics,
    write_metrics,
)

_ENTRY = "entry.json"
OPTIONAL = (FEATURE_NORMS, CONFIDENCE, LEVELS, LAST_WEIGHTS)  # what only some stages leave


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
        if self.folder is None:
            yield
            return
        with alone(self.folder / f"{fingerprint}.lock", "training this stage"):
            yield

    def fetch(self, fingerprint: str, stage_folder: Path, evaluation: dict[str, Any]) -> bool:
        """Copies the stage into a run's `stage_folder` if it is here and whole; a damaged entry is removed.

        Args:
            evaluation: how this run evaluates while training; what an entry measured otherwise, or of other
                samples, is left out.
        """
        found = False
        if self.folder is not None and rank() == 0:
            found = self._fetch(self.folder / fingerprint, stage_folder, evaluation)
        return broadcast_object(found)

    def store(self, fingerprint: str, stage_folder: Path, evaluation: dict[str, Any]) -> None:
        """Keeps a copy of a run's trained stage, unless it is here; it appears in one step."""
        if self.folder is None or rank() != 0 or (self.folder / fingerprint).exists():
            return
        temporary = self.folder / f".{fingerprint}.{os.getpid()}"
        try:
            kept = [name for name in (CHECKPOINT, METRICS, *OPTIONAL) if (stage_folder / name).exists()]
            for name in kept:
                copy_file(stage_folder / name, temporary / name)
            checksums = {name: checksum(temporary / name) for name in kept}
            write_text(temporary / _ENTRY, json.dumps({"checksums": checksums, "evaluation": evaluation}))
            os.rename(temporary, self.folder / fingerprint)
        except (OSError, LtexpError) as error:  # the run itself has its stage; only sharing it failed
            print(f"stage cache: this stage was not stored ({error})", flush=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _fetch(self, entry: Path, stage_folder: Path, evaluation: dict[str, Any]) -> bool:
        if not entry.is_dir():
            return False
        try:
            kept = json.loads((entry / _ENTRY).read_text(encoding="utf-8"))
            names = {CHECKPOINT, METRICS, *kept["checksums"]}
            whole = all(checksum(entry / name) == kept["checksums"][name] for name in names)
            same_evaluation = kept["evaluation"] == evaluation
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            print(f"stage cache: {entry} is damaged; it is removed and the stage trained again", flush=True)
            shutil.rmtree(entry, ignore_errors=True)
            return False
        rows = read_metrics(entry / METRICS)
        if not same_evaluation:
            rows = [{key: row[key] for key in row if not key.startswith(("test_", "validation_"))} for row in rows]
        write_metrics(stage_folder / METRICS, rows)
        left_out = set() if same_evaluation else {FEATURE_NORMS}
        for name in names & set(OPTIONAL) - left_out:
            copy_file(entry / name, stage_folder / name)
        copy_file(entry / CHECKPOINT, stage_folder / CHECKPOINT)  # last: it says that the stage is done
        return True


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
