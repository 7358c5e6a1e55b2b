"""Synthetic records of finished runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.run_folder import write_metrics

KINDS = ("mean", "variance")  # of batch norm's running statistics


def record(**changes: Any) -> dict[str, Any]:
    """A finished record of three classes; `all=` sets its accuracy."""
    accuracy = changes.pop("all", 50.0)
    metrics = {"all": accuracy, "many": 60.0, "medium": 40.0, "few": None, "ece": 5.0, "mce": 9.0}
    metrics |= {"per_class": [60.0, 40.0, None]}
    best = {"all": accuracy + 1, "epoch": 3}
    stage = {
        "metrics": metrics,
        "weight_norms": [3.0, 2.0, 1.0],
        "epochs": 2,
        "seconds": 65.0,
        "images_per_second": 1234.5,
        "cached": False,
    }
    stages = [
        {"name": "stage1", "classifier": "linear", **stage, "cached": True},
        {"name": "stage2", "classifier": "weight_shift", **stage, "best_on_test": best},
    ]
    base: dict[str, Any] = {"schema": 1, "method": "crt", "dataset": "cifar10_lt", "imbalance": "longtail"}
    base |= {"imbalance_ratio": 100.0, "backbone": "resnet32", "seed": 0, "class_counts": [500, 50, 30]}
    base |= {"class_names": ["a", "b", "c"], "shot_rule": "many > 100 >= medium >= 20 > few", "subset_hash": "s"}
    base |= {"config_hash": "c", "overrides": [], "selection": "last", "metrics": metrics, "stages": stages}
    base |= {"reliability": {"count": [0, 4], "accuracy": [0.0, 0.5], "confidence": [0.0, 0.75]}}
    base |= {"confusion": [[6, 4, 0], [3, 4, 3], [0, 0, 0]], "environment": {}, "status": "finished"}
    base |= {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T01:00:00+00:00"}
    return base | changes


def write(folder: Path, **changes: Any) -> Path:
    """Writes a record, and the stages' metrics by epoch, into `folder`, which it makes."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage in ("stage1", "stage2"):
        write_metrics(folder / stage / "metrics.csv", [{"epoch": epoch, "train_loss": 1.5} for epoch in range(2)])
    (folder / "record.json").write_text(json.dumps(record(**changes)))
    return folder


def write_measured(folder: Path) -> None:
    """The files beside a record that figures read: 4 test images of each of the first two classes, 6 of training."""
    draws, labels = np.random.default_rng(0), np.repeat([0, 1], 4)
    logits = draws.normal(size=(8, 3)).astype(np.float32)
    norms = np.arange(8, dtype=np.float32)  # 0 to 3 of class 0, 4 to 7 of class 1
    np.savez(folder / "predictions.npz", logits=logits, labels=labels, index=np.arange(8), feature_norms=norms)
    arrays = {"train_features": draws.normal(size=(6, 5)), "train_labels": np.array([0, 0, 0, 1, 1, 2])}
    arrays |= {"test_features": draws.normal(size=(8, 5)), "test_labels": labels}
    arrays["classifier_weight"] = draws.normal(size=(3, 5))
    np.savez(folder / "features.npz", **arrays)
    statistics = {
        f"{s}/{layer}/{kind}": draws.random(4) for s in ("stage1", "stage2") for layer in "ab" for kind in KINDS
    }
    np.savez(folder / "batch_norm.npz", **statistics)  # type: ignore[arg-type]
    (folder / "stage2").mkdir(exist_ok=True)
    (folder / "stage1" / "feature_norms.csv").write_text("epoch,0,1,2\n0,1.0,2.0,\n1,1.5,2.5,\n")
    rows = [{"class": label, "positive": 1.0, "negative": 3.0 - label} for label in range(3)]
    write_metrics(folder / "stage2" / "gradients.csv", rows)
