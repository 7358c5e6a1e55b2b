"""The names of what lies in a run's folder, and the files that stand between training and report."""

import csv
import fcntl
import io
import json
import os
from pathlib import Path
from typing import Any

from ltexp.files import write_text

CONFIG = "config.yaml"
RECORD = "record.json"
FROZEN = "frozen"  # in a sweep's folder: the configs of its jobs
LOCK = ".lock"  # held while the run is being worked on
FAILED = ".failed"  # why the first process to fail did so, in a run of several
RUN_LOG = "run.log"  # all that the run has said
PREDICTIONS = "predictions.npz"
CHECKPOINT = "checkpoint.pt"  # in the folder of each stage
LAST_WEIGHTS = "last_weights.pt"  # in the folder of a stage whose checkpoint holds averaged weights
RESUME = "resume.ckpt"  # in the folder of a stage that is being trained
TRIAL = "trial.json"  # of a search's run: its trial
METRICS = "metrics.csv"  # in the folder of each stage, a row for each epoch
# what the best epoch on a split is the best in: held-out images are as long-tailed as the training images
BEST_BY = {"test": "all", "validation": "balanced"}
STEPS_LEFT = "steps_left"  # in metrics.csv: of an epoch that was stopped in its middle, the steps it did not take
FEATURE_NORMS = "feature_norms.csv"  # likewise, a row for each evaluation, a column for each class
GRADIENTS = "gradients.csv"  # in the folder of a stage, a row for each class, where they were asked for
CONFIDENCE = "confidence.csv"  # of a stage that generates features: beta of each tail class, a row for each epoch
LEVELS = "levels.csv"  # of a stage with a curriculum of augmentation: each class's level, rows for each epoch
TEXT_FEATURES = "text_features.pt"  # what the text tower said of the class names, where a classifier reads them
EVALUATIONS = "evaluations"  # folder: what `ltexp evaluate` kept, a file for each
BATCH_NORM = "batch_norm.npz"  # running statistics after each stage, where they were asked for
FEATURES = "features.npz"  # of the training and the test split, where they were asked for


def read_status(folder: Path) -> str | None:
    """The status that the record in `folder` names (`ltexp.evaluation.record`); None without a readable record."""
    try:
        status = json.loads((folder / RECORD).read_text(encoding="utf-8")).get("status")
    except (OSError, ValueError, AttributeError):
        return None
    return str(status) if status is not None else None


def is_held(folder: Path) -> bool:
    """Whether a command is working on the run in `folder`: its lock is the operating system's and ends with it."""
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(lock)
    return False


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a stage's metrics.csv, values as text; none when there is no file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def write_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows to a metrics.csv in one step; its columns are all keys in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())
