"""Copies of records to keep beside a table."""

from collections.abc import Iterable
from pathlib import Path

from ltexp.config.identity import digest
from ltexp.evaluation.record import RecordError, read_record
from ltexp.report.copies import copy_record
from ltexp.report.records import Run


def keep_records(runs: Iterable[Run], folder: Path) -> list[Path]:
    """Writes record.json and config.yaml of each run below `folder`, and returns where; see `copy_record`.

    A copy of the same experiment and seed is written over; one that differs in its images or code alone stays.

    Raises:
        LtexpError: if a run has no config.yaml, or the folder cannot be written.
    """
    written = []
    for run in runs:
        place = _place(run, folder)
        copy_record(run, place)
        written.append(place)
    return written


def _place(run: Run, folder: Path) -> Path:
    """Named by method and config, and by what else tells the run from the one that has this name already."""
    name = f"{run.record['method']}-{str(run.record.get('config_hash'))[:8]}"
    names = name, f"{name}-{digest(run.identity)[:8]}"
    places = [folder / str(run.record["dataset"]) / own / f"seed{run.record['seed']}" for own in names]
    return places[0] if _is_free(places[0], run) else places[1]


def _is_free(place: Path, run: Run) -> bool:
    """Whether no other experiment lies there."""
    try:
        return Run(place, read_record(place)).identity == run.identity
    except RecordError:
        return True
