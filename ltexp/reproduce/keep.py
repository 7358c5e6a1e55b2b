"""Copies of records to keep beside a table."""

from collections.abc import Iterable
from pathlib import Path

from ltexp.report.copies import copy_record
from ltexp.report.records import Run


def keep_records(runs: Iterable[Run], folder: Path) -> list[Path]:
    """Writes record.json and config.yaml of each run below `folder`, and returns where; see `copy_record`.

    Raises:
        LtexpError: if a run has no config.yaml, or the folder cannot be written.
    """
    written = []
    for run in runs:
        name = f"{run.record['method']}-{str(run.record.get('config_hash'))[:8]}/seed{run.record['seed']}"
        place = folder / str(run.record["dataset"]) / name
        copy_record(run, place)
        written.append(place)
    return written
