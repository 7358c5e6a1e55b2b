"""The names of what lies in a run's folder."""

import json
from pathlib import Path

CONFIG = "config.yaml"
RECORD = "record.json"
LOCK = ".lock"  # held while the run is being worked on
PREDICTIONS = "predictions.npz"
CHECKPOINT = "checkpoint.pt"  # in the folder of each stage
RESUME = "resume.ckpt"  # in the folder of a stage that is being trained
METRICS = "metrics.csv"  # in the folder of each stage, a row for each epoch
FEATURE_NORMS = "feature_norms.csv"  # likewise, a row for each evaluation, a column for each class
FEATURES = "features.npz"  # of the training and the test split, where they were asked for


def read_status(folder: Path) -> str | None:
    """`running`, `finished` or `failed` as the record in `folder` says; None without a readable record."""
    try:
        status = json.loads((folder / RECORD).read_text(encoding="utf-8")).get("status")
    except (OSError, ValueError, AttributeError):
        return None
    return str(status) if status is not None else None
