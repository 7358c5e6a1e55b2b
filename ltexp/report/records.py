"""The finished runs below some folders, and what is said about the others."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ltexp.config.identity import digest, is_material
from ltexp.config.words import key_of
from ltexp.errors import DataError
from ltexp.evaluation.record import RecordError, read_record
from ltexp.run_folder import PREDICTIONS, RECORD, is_held

SKIPPED = "stage_cache"  # stages that runs share, and no runs
COPIES = ".copies"  # marks a folder of copies that lie beside a page

# what a table shows in columns of its own
_SHOWN = ("method", "dataset", "backbone", "seed", "dataset.imbalance", "dataset.imbalance_ratio")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run's folder.
        record: its record, as `ltexp.evaluation.record.read_record` gives it.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for runs that may be averaged: the same experiment on the same data, read by the same rules."""
        record = self.record
        experiment = record.get("config_hash") or (
            *(record.get(key) for key in ("method", "dataset", "imbalance", "imbalance_ratio", "backbone")),
            *((stage["name"], stage.get("epochs")) for stage in record["stages"]),
            *self.overrides,
        )
        read = record["shot_rule"], record["selection"]
        return experiment, record.get("subset_hash"), *read, self.contents, self.code

    @property
    def contents(self) -> str:
        """The hashes of the training and test data."""
        return "-".join(str(self.record.get(key)) for key in ("content_hash", "test_hash"))

    @property
    def code(self) -> str:
        """A hash of the user's own code that the run was trained with; empty: with ltexp's alone."""
        return digest(code) if (code := self.record.get("code")) else ""

    @property
    def overrides(self) -> tuple[str, ...]:
        """What the user typed last for each key that changes the experiment and has no column of its own, sorted."""
        last = {text.lstrip("+").partition("=")[0]: text for text in self.record.get("overrides") or ()}
        return tuple(sorted(text for text in last.values() if is_own_setting(text)))

    @property
    def finished(self) -> float:
        """When the run ended, in seconds since 1970; times without a zone are read as UTC."""
        try:
            time = datetime.fromisoformat(str(self.record.get("finished")))
        except ValueError:
            return 0.0
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def is_own_setting(override: str) -> bool:
    """Whether an override changes the experiment and is not shown as one of the record's facts."""
    key = key_of(override)
    return key not in _SHOWN and is_material(key)


def find_runs(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """(runs, notes): every finished run at or below `folders`, and one line for each thing left out.

    A damaged or foreign record is left out, and so are unfinished runs; one that no command is working on any more,
    and that did not say why, was killed. Of two runs of the same experiment and seed the
    one that finished last stays, of its copies one with predictions. Copies beside a page count where they are named.

    Raises:
        DataError: if a folder does not exist.
    """
    runs, notes, unfinished = [], [], Counter[str]()
    found = {path.resolve(): path for folder in folders for path in _record_files(folder)}
    for path in sorted(found.values(), key=_by_number):
        try:
            record = read_record(path)
        except RecordError as error:
            notes.append(f"skipped: {error}")
            continue
        if record["status"] == "finished":
            runs.append(Run(path.parent, record))
        else:
            gone = record["status"] == "running" and not is_held(path.parent)
            unfinished["killed" if gone else record["status"]] += 1
    if unfinished:
        counts = ", ".join(f"{count} {status}" for status, count in sorted(unfinished.items()))
        notes.append(f"left out: {counts_of(sum(unfinished.values()), 'run')} not finished ({counts})")
    kept, repeated = _latest(runs)
    return kept, notes + repeated


def _by_number(path: Path) -> list[tuple[int, str]]:
    """A key that sorts folders that are numbers, as a sweep's jobs are, by size."""
    return [(int(part) if part.isdecimal() else -1, part) for part in path.parts]


def counts_of(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _record_files(folder: Path) -> Iterator[Path]:
    if folder.is_file() and folder.name == RECORD:
        yield folder
        return
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    for parent, children, files in os.walk(folder):
        children[:] = sorted(name for name in children if name != SKIPPED and not name.startswith("."))
        children[:] = [name for name in children if not _is_of_a_page(Path(parent) / name, files)]
        if RECORD in files:
            yield Path(parent) / RECORD


def _age(run: Run) -> tuple[float, bool, str]:
    return run.finished, (run.folder / PREDICTIONS).exists(), str(run.folder)


def _is_of_a_page(folder: Path, beside: Sequence[str]) -> bool:
    """Whether it holds copies of the runs of a page; those of older versions are known by the page beside them."""
    stem = folder.name.removesuffix("_files")
    return (folder / COPIES).exists() or (stem != folder.name and f"{stem}.html" in beside)


def _latest(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs without repetitions of an experiment and seed, and a line for each repetition."""
    same: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        same.setdefault((run.identity, run.record["seed"]), []).append(run)
    kept, notes = [], []
    for twins in same.values():
        *others, latest = sorted(twins, key=_age)
        kept.append(latest)
        if others:
            dropped = ", ".join(str(run.folder) for run in others)
            notes.append(
                f"the same config and seed {latest.record['seed']} {len(twins)} times: "
                f"kept the latest, {latest.folder}; left out {dropped}"
            )
    return kept, notes
