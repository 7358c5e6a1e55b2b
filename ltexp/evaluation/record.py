"""The record of a run: one self-describing file, and the predictions beside it."""

import json
import os
import platform
import subprocess
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import ltexp
from ltexp.errors import LtexpError
from ltexp.files import atomic_write, write_text
from ltexp.run_folder import RECORD

SCHEMA = 1
STATUSES = ("running", "finished", "stopped", "failed")  # stopped: by a signal
REQUIRED = ("schema", "method", "dataset", "imbalance", "imbalance_ratio", "backbone", "seed", "class_counts", "status")
FINISHED = ("metrics", "stages", "selection", "shot_rule", "finished")
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "omegaconf", "numpy")


class RecordError(LtexpError):
    """A record that is damaged, or not one of ltexp's."""


def environment() -> dict[str, Any]:
    """Versions and platform of this process; nothing that names the machine."""
    versions = {"python": platform.python_version(), "ltexp": ltexp.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return {"versions": versions, **machine(), "commit": _commit()}


def machine() -> dict[str, Any]:
    """What a run's duration depends on and a record may tell of this machine."""
    return {"platform": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()}


def _commit() -> str | None:
    """The commit of the project's checkout with `+` where it was changed; None outside a checkout."""
    root = Path(ltexp.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        head, changed = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes record.json in one step.

    Raises:
        LtexpError: if the disk is full or the folder cannot be written.
    """
    write_text(folder / RECORD, json.dumps(record, indent=1, allow_nan=False) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """The record in `path`, a record.json or a run's folder.

    Raises:
        RecordError: if it is missing, damaged, of another schema, or no record of ltexp's.
    """
    path = path / RECORD if path.is_dir() else path
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise RecordError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(record, dict) or "schema" not in record:
        raise RecordError(f"{path} is not a record of ltexp")
    if record["schema"] != SCHEMA:
        raise RecordError(f"{path} has schema {record['schema']}, this version of ltexp reads {SCHEMA}")
    required = (*REQUIRED, *FINISHED) if record.get("status") == "finished" else REQUIRED
    if missing := [key for key in required if key not in record]:
        raise RecordError(f"{path} lacks {', '.join(missing)}")
    if record["status"] not in STATUSES:
        raise RecordError(f"{path} has the unknown status {record['status']!r}")
    if problem := _problem(record):
        raise RecordError(f"{path} is damaged: {problem}")
    return record


def seen_beyond(record: dict[str, Any]) -> str:
    """What the run's training saw beside its training set, such as `10 unused images a class`; empty: nothing."""
    held = [node for node in record.get("held_out", {}).values() if node["of"] != "train"]
    return ", ".join(f"{node['per_class']} {node['of']} images a class" for node in held)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # NaN and Infinity, which Python would read


def _problem(record: dict[str, Any]) -> str | None:
    """What is wrong with the values that tables and figures rely on; None if nothing is."""
    if not _is_whole(record["seed"]) or not _is_number(record["imbalance_ratio"]):
        return "seed or imbalance_ratio is not a number"
    counts = record["class_counts"]
    if not isinstance(counts, list) or not counts or not all(_is_whole(count) for count in counts):
        return "class_counts is not a list of whole numbers"
    if record["status"] != "finished":
        return None
    if problem := _metrics_problem(record["metrics"], len(counts)):
        return f"metrics: {problem}"
    stages = record["stages"]
    if not isinstance(stages, list) or not stages or not all(isinstance(s, dict) and "name" in s for s in stages):
        return "stages is not a list of named stages"
    # a pretext stage has labels of its own
    problems = (_metrics_problem(stage.get("metrics"), stage.get("num_classes", len(counts))) for stage in stages)
    return next((f"stages: {problem}" for problem in problems if problem), None)


def _metrics_problem(metrics: Any, num_classes: int) -> str | None:
    if not isinstance(metrics, dict):
        return "not a mapping"
    for key in ("all", "many", "medium", "few", "ece"):
        empty = key in ("many", "medium", "few") and metrics.get(key, "") is None  # a group without classes
        if not empty and not _is_percentage(metrics.get(key)):
            return f"{key} is not a percentage"
    per_class = metrics.get("per_class")
    if not isinstance(per_class, list) or len(per_class) != num_classes:
        return f"per_class does not have {num_classes} classes"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_percentage(value: Any) -> bool:
    return _is_number(value) and bool(0 <= value <= 100)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def mark_failed(folder: Path, message: str, status: str = "failed") -> None:
    """Notes in the record, if there is one, that the run failed, or was stopped, and why; never raises."""
    try:
        record = read_record(folder)
        if record["status"] != "finished":
            write_record(folder, record | {"status": status, "error": message})
    except LtexpError:
        pass


def write_predictions(
    path: Path,
    logits: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    index: npt.NDArray[np.int64],
    feature_norms: npt.NDArray[np.float32],
) -> None:
    """Writes predictions.npz in one step.

    It holds `logits` (N, C) float32, `labels` (N,), `index` (N,) in the test split, and `feature_norms` (N,) float32.
    """
    arrays = {
        "logits": logits.astype(np.float32, copy=False),
        "labels": labels,
        "index": index,
        "feature_norms": feature_norms,
    }
    with atomic_write(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def run_id(folder: Path) -> str:
    """The id of the run in `folder`: the one in its record, so that a resumed run keeps it, or a new one."""
    try:
        return str(read_record(folder)["run_id"])
    except (RecordError, KeyError):
        return uuid.uuid4().hex[:12]
