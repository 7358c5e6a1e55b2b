"""Accuracy overall, by shot and by class, calibration and confusion of a set of predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ltexp.errors import DataError
from ltexp.evaluation.arrays import Floats, Floats32, Ints, to_numpy
from ltexp.evaluation.calibration import bin_confidences, check_predictions
from ltexp.evaluation.shots import GROUPS, ShotRule

_CHUNK = 4096  # rows at a time: float64 copies of 8142 classes would fill the memory
CONFUSION_LIMIT = 256  # classes; a larger matrix is left to predictions.npz


def merge_predictions(
    parts: Sequence[Sequence[npt.NDArray[Any]]], size: int | None = None, whole: bool = True
) -> list[npt.NDArray[Any]]:
    """The columns of all processes in index order; a sample that came twice counts once.

    Args:
        parts: for each process its columns: index (n,) in the split, from 0, and others (n, ...).
        size: samples of the split, N; None: one more than the highest index.
        whole: whether all samples of the split must be there.

    Raises:
        DataError: without any sample.
        RuntimeError: if a sample of 0..N-1 is missing, since a mean over the others would look like a result.
    """
    if not any(len(part[0]) for part in parts):
        raise DataError("nothing to evaluate: the split has no samples")
    index, *values = (np.concatenate(column) for column in zip(*parts, strict=True))
    unique, first = np.unique(index, return_index=True)
    expected = np.arange(unique[-1] + 1 if size is None else size)
    if whole and not np.array_equal(unique, expected):
        missing, foreign = np.setdiff1d(expected, unique), np.setdiff1d(unique, expected)
        which = f"missing {missing[:5].tolist()}" if len(missing) else f"not of the split {foreign[:5].tolist()}"
        raise RuntimeError(f"predictions for {len(unique)} of {len(expected)} samples; {which}")
    return [unique, *(column[first] for column in values)]


class Top1(NamedTuple):
    """What a model says first of the N samples of a split: all that metrics need, whatever the number of classes.

    Attributes:
        index: (N,) int64, positions in the split.
        labels: (N,) int64.
        classes: (N,) int64, those with the largest logit.
        confidence: (N,) float64, their probabilities by the softmax; NaN where the logits are not numbers.
        feature_norms: (N,) float32, the length of each sample's feature; NaN where the model hands over none.
    """

    index: Ints  # type: ignore[assignment]  # a tuple's own method of this name is of no use here
    labels: Ints
    classes: Ints
    confidence: Floats
    feature_norms: Floats32


def top1_of(logits: npt.NDArray[Any], scale: float = 1.0) -> tuple[Ints, Floats]:
    """(classes (N,), confidence (N,) in float64) of logits (N, C), see `Top1`; a row's do not depend on the others.

    Args:
        logits: (N, C).
        scale: multiplies the logits before the softmax.
    """
    classes, confidence = np.empty(len(logits), np.int64), np.empty(len(logits))
    for start in range(0, len(logits), _CHUNK):
        rows = slice(start, start + _CHUNK)
        classes[rows] = logits[rows].argmax(axis=1)
        values = logits[rows].astype(np.float64) * scale
        with np.errstate(invalid="ignore"):  # infinite logits become NaN, which `measure_top1` reports
            confidence[rows] = 1 / np.exp(values - values.max(axis=1, keepdims=True)).sum(axis=1)
    return classes, confidence


def confusion_matrix(labels: Any, predictions: Any, num_classes: int) -> Ints:
    """(C, C) counts; row: the label, column: the prediction."""
    flat = to_numpy(labels) * num_classes + to_numpy(predictions)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def measure(
    logits: Any,
    labels: Any,
    class_counts: Any,
    rule: ShotRule | None,
    bins: int = 15,
    logit_scale: float = 1.0,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`measure_top1` of logits.

    Args:
        logits: (N, C).
        labels: (N,).
        class_counts, rule, bins: see `measure_top1`.
        logit_scale: multiplies the logits before the softmax (the scale of a cosine loss).

    Raises:
        DataError: for shapes that do not fit, labels out of range, or logits that are not numbers.
    """
    counts, logits, labels = to_numpy(class_counts), to_numpy(logits), to_numpy(labels)
    check_predictions(logits, labels, "logits")
    if len(counts) != logits.shape[1]:
        raise DataError(f"class_counts has {len(counts)} classes, the logits have {logits.shape[1]}")
    return measure_top1(*top1_of(logits, logit_scale), labels, counts, rule, bins)


def measure_top1(
    classes: Ints, confidence: Floats, labels: Ints, class_counts: Any, rule: ShotRule | None, bins: int = 15
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that a record says of a set of predictions.

    Args:
        classes: (N,), predicted.
        confidence: (N,), of the predictions.
        labels: (N,).
        class_counts: (C,), training images of each class.
        rule: the bounds of the shot groups; None: there are none.
        bins: the number of bins of the calibration errors.

    Returns:
        metrics, in percent: `all` (over samples), `many`, `medium`, `few` (means of the per-class accuracies; None for
        an empty group), `ece`, `mce`, `per_class` (None for a class without samples); and details: `reliability`, by
        bin, and `confusion`, (C, C) counts with a row for each label, or None above 256 classes.

    Raises:
        DataError: where the confidence is not a number, as the logits then were not.
    """
    counts = to_numpy(class_counts)
    if np.isnan(confidence).any():
        bad = f"the logits of {np.isnan(confidence).sum()} of {len(confidence)} samples are not finite"
        raise DataError(f"{bad}: has training diverged? Lower the learning rate")
    correct = classes == labels
    per_class = class_accuracies(classes, labels, len(counts))
    bin_values = bin_confidences(confidence, correct, bins)
    metrics: dict[str, Any] = {"all": float(100 * correct.mean())}
    metrics |= group_means(per_class, counts, rule)
    metrics |= {"ece": bin_values.expected_error, "mce": bin_values.maximum_error, "per_class": per_class}
    small = len(counts) <= CONFUSION_LIMIT
    details = {
        "reliability": {
            "count": bin_values.count.tolist(),
            "accuracy": bin_values.accuracy.tolist(),
            "confidence": bin_values.confidence.tolist(),
        },
        "confusion": confusion_matrix(labels, classes, len(counts)).tolist() if small else None,
    }
    return metrics, details


def class_accuracies(classes: Ints, labels: Ints, num_classes: int) -> list[float | None]:
    """The accuracy of each class, in percent, of predicted classes (N,); None for a class without samples."""
    samples = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels, weights=classes == labels, minlength=num_classes)
    return [float(100 * hit / n) if n else None for hit, n in zip(hits, samples, strict=True)]


def group_means(per_class: Sequence[float | None], class_counts: Any, rule: ShotRule | None) -> dict[str, float | None]:
    """`many`, `medium` and `few`, the means of the accuracies by class (C,); None for a group without any."""
    none = np.zeros(len(per_class), dtype=bool)
    means: dict[str, float | None] = {}
    for group, members in (rule.groups(class_counts) if rule else dict.fromkeys(GROUPS, none)).items():
        known = [value for value, member in zip(per_class, members, strict=True) if member and value is not None]
        means[group] = float(np.mean(known)) if known else None
    return means


@dataclass(frozen=True)
class Metrics:
    """By which rules a run measures predictions.

    Attributes:
        class_counts: (C,), the training images of each class that tell many, medium and few shot.
        rule: the bounds of the shot groups; None: there are none.
        bins: the number of bins of the calibration errors.
    """

    class_counts: Ints
    rule: ShotRule | None
    bins: int = 15

    def __call__(self, logits: Floats32, labels: Ints, logit_scale: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """Metrics in percent and their details, see `measure`."""
        return measure(logits, labels, self.class_counts, self.rule, self.bins, logit_scale)

    def of_top1(self, top1: Top1) -> tuple[dict[str, Any], dict[str, Any]]:
        """The same of what the processes of a run have gathered, see `measure_top1`."""
        return measure_top1(top1.classes, top1.confidence, top1.labels, self.class_counts, self.rule, self.bins)
