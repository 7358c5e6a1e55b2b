"""Metrics that records do not hold, from what lies beside them: also for runs of older versions."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.errors import DataError
from ltexp.evaluation.arrays import Ints
from ltexp.evaluation.further import (
    OF_CONFUSION,
    OF_RECALLS,
    USUAL_BINS,
    further_metrics,
    of_confusion,
    of_recalls,
)
from ltexp.report.records import Run
from ltexp.run_folder import EVALUATIONS, PREDICTIONS


def further(run: Run, name: str, metrics: dict[str, Any], final: bool) -> float | None:
    """A metric of `ltexp.evaluation.further`; None where neither the record nor the predictions tell it.

    Args:
        run: the run.
        name: the metric's name.
        metrics: what is known of the run, of one of its stages, or of a later evaluation.
        final: whether they are of the predictions that the run's folder holds.
    """
    if metrics.get(name) is not None:
        return float(metrics[name])
    if name in OF_RECALLS:
        return of_recalls(metrics["per_class"]).get(name)
    if not final:
        return None
    if name in OF_CONFUSION and run.record.get("confusion"):
        return of_confusion(run.record["confusion"]).get(name)
    path = run.folder / PREDICTIONS
    return _of_file(path, changed(path), _bins(run)).get(name)


def changed(path: Path) -> int:
    """When a file, or a folder's list of files, last changed; 0 where there is none. What was read holds until then."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _bins(run: Run) -> int:
    """Those of the run's calibration errors."""
    reliability = run.record.get("reliability") or {}
    return len(reliability.get("count") or ()) or USUAL_BINS


@cache
def _of_file(path: Path, changed: int, bins: int) -> dict[str, float]:
    try:
        logits, labels = _read(path)
        return further_metrics(logits, labels, bins)
    except DataError:
        return {}


def _read(path: Path) -> tuple[Any, Ints]:
    from ltexp.report.drawing import load_arrays

    arrays = load_arrays(path, ("logits", "labels"), "train the run again")
    return arrays["logits"], arrays["labels"]


def kept_evaluations(run: Run) -> dict[str, dict[str, Any]]:
    """What `ltexp evaluate` kept of the run, by name; a damaged file is as none."""
    folder = run.folder / EVALUATIONS
    return _evaluations(folder, changed(folder), len(run.record["class_counts"]))


@cache
def _evaluations(folder: Path, changed: int, classes: int) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if len(content["metrics"]["per_class"]) == classes:
                found[path.stem] = content
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def counts_of_test(run: Run) -> Ints | None:
    """(C,) the test samples of each class; None where neither the record nor the predictions tell it."""
    if matrix := run.record.get("confusion"):
        counts: Ints = np.asarray(matrix).sum(axis=1)
        return counts
    path = run.folder / PREDICTIONS
    if not path.exists():
        return None
    try:
        return np.bincount(_read(path)[1], minlength=len(run.record["class_counts"])).astype(np.int64)
    except DataError:
        return None
