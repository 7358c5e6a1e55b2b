"""The norms that tell frequent from rare classes: of the features by class, and of the classifier's weights."""

from pathlib import Path
from typing import Any

import numpy as np

from ltexp.evaluation.metrics import Top1
from ltexp.models.classifier import Classifier
from ltexp.run_folder import read_metrics, write_metrics


def append_norms(path: Path, epoch: int, top1: Top1, num_classes: int) -> None:
    """Adds the mean feature norm of each class in `epoch` as a row of a stage's feature_norms.csv.

    Its columns are `epoch` and the labels 0 to C - 1; a class without samples stays empty. Rows of this epoch and later
    ones, which a killed run may have left, are dropped; a model without features leaves no file.
    """
    norms, labels = top1.feature_norms, top1.labels
    if np.isnan(norms).any():
        return
    samples = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=norms, minlength=num_classes)
    row: dict[str, Any] = {"epoch": epoch}
    row |= {str(label): f"{sums[label] / samples[label]:.6g}" if samples[label] else "" for label in range(num_classes)}
    earlier = [kept for kept in read_metrics(path) if int(kept["epoch"]) < epoch]
    write_metrics(path, [*earlier, row])


def weight_norms(classifier: Classifier) -> list[float] | None:
    """The norm of each class's weight (C,), as its logits use it: 1 for cosines; None where there is no such weight."""
    try:
        weight, _ = classifier.linear_form()
    except NotImplementedError:
        return None
    return [float(norm) for norm in weight.norm(dim=1)]
