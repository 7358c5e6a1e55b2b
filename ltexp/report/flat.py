"""Runs as plain dictionaries, for code that is not ltexp's."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltexp.report.records import Run, find_runs

FACTS = ("method", "dataset", "imbalance", "imbalance_ratio", "backbone", "seed")


def flat_records(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """See `ltexp.records`."""
    runs, notes = find_runs(folders)
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return [_flat(run) for run in runs]


def _flat(run: Run) -> dict[str, Any]:
    record, stages = run.record, run.record["stages"]
    numbers = {
        key: value
        for key, value in record["metrics"].items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }
    return {
        **{key: record.get(key) for key in FACTS},
        "overrides": " ".join(run.overrides),
        "epochs": "+".join(str(stage.get("epochs")) for stage in stages),
        **numbers,
        "seconds": sum(stage.get("seconds") or 0.0 for stage in stages),
        "finished": record.get("finished"),
        "folder": str(run.folder),
    }
