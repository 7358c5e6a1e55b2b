"""What else papers compare predictions by: means of the recalls, macro-F1, likelihood, Brier score, class-wise ECE."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ltexp.errors import DataError
from ltexp.evaluation.arrays import Floats, Ints, to_numpy
from ltexp.evaluation.calibration import bin_edges, check_predictions

CHUNK = 2048  # rows turned to float64 at a time: 8142 classes would fill the memory
USUAL_BINS = 15  # as of the ECE
OF_RECALLS = ("balanced", "geometric_mean", "harmonic_mean", "lowest")
OF_CONFUSION = ("macro_f1",)
OF_PROBABILITIES = ("nll", "brier", "classwise_ece")
UNEVEN = 1.2  # a test set whose largest class is so many times its smallest is called imbalanced


def of_recalls(per_class: Sequence[float | None]) -> dict[str, float]:
    """Summaries of the accuracies by class, in percent; classes without test samples (None) are left out.

    `balanced` is their mean (balanced accuracy), `geometric_mean` and `harmonic_mean` are 0 as soon as one class is
    never recognised, and `lowest` is the worst class's.
    """
    recalls = np.asarray([value for value in per_class if value is not None], dtype=np.float64)
    if not recalls.size:
        return {}
    nothing = bool((recalls <= 0).any())
    return {
        "balanced": float(recalls.mean()),
        "geometric_mean": 0.0 if nothing else float(np.exp(np.log(recalls).mean())),
        "harmonic_mean": 0.0 if nothing else float(recalls.size / (1 / recalls).sum()),
        "lowest": float(recalls.min()),
    }


def of_confusion(matrix: Any) -> dict[str, float]:
    """`macro_f1` in percent of a confusion matrix (C, C), rows by label: the mean F1 over classes with test samples."""
    counts = np.asarray(matrix, dtype=np.float64)
    hits, labelled, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    return _macro_f1(hits, labelled, predicted)


def _macro_f1(hits: Floats, labelled: Floats, predicted: Floats) -> dict[str, float]:
    there = labelled > 0
    if not there.any():
        return {}
    return {"macro_f1": float(100 * (2 * hits[there] / (labelled + predicted)[there]).mean())}


def further_metrics(logits: Any, labels: Any, bins: int = USUAL_BINS) -> dict[str, float]:
    """All of them, of one set of predictions.

    Args:
        logits: (N, C), times their scale: a softmax over them gives the probabilities.
        labels: (N,).
        bins: of the class-wise calibration error; default 15, as of the ECE.

    Returns:
        Percentages as in `of_recalls` and `of_confusion`; `nll`, the mean negative log-likelihood in nats; `brier`, the
        mean over samples of the squared distance of probabilities to the one-hot label, from 0 to 2 (Brier, 1950);
        `classwise_ece` in percent, the mean over classes of the calibration error of that class's probability (Kull et
        al., NeurIPS 2019).

    Raises:
        DataError: for shapes that do not fit, labels out of range, or logits that are not numbers.
    """
    logits, labels = to_numpy(logits), to_numpy(labels)
    check_predictions(logits, labels, "logits")
    classes = logits.shape[1]
    predictions = logits.argmax(axis=1)
    hits, labelled, predicted = (
        np.bincount(of, minlength=classes).astype(np.float64)
        for of in (labels[predictions == labels], labels, predictions)
    )
    recalls = [float(100 * hit / n) if n else None for hit, n in zip(hits, labelled, strict=True)]
    return of_recalls(recalls) | _macro_f1(hits, labelled, predicted) | _of_probabilities(logits, labels, bins)


def _of_probabilities(logits: Any, labels: Ints, bins: int) -> dict[str, float]:
    samples, classes = logits.shape
    edges = bin_edges(bins, np.float64)
    surplus = np.zeros((classes, bins))  # of each class's probability over its labels, summed over the bin
    likelihood = distance = 0.0
    offsets = np.arange(classes) * bins
    for start, log_probabilities in log_softmax(logits):
        own = labels[start : start + len(log_probabilities)]
        rows, values = np.arange(len(own)), np.exp(log_probabilities)
        likelihood -= float(log_probabilities[rows, own].sum())
        values[rows, own] -= 1
        distance += float(np.square(values).sum())
        which = np.clip(np.searchsorted(edges, np.exp(log_probabilities), side="left") - 1, 0, bins - 1) + offsets
        surplus += np.bincount(which.ravel(), values.ravel(), minlength=classes * bins).reshape(classes, bins)
    return {
        "nll": likelihood / samples,
        "brier": distance / samples,
        "classwise_ece": float(100 * np.abs(surplus).sum() / samples / classes),
    }


def log_softmax(logits: Any) -> Iterator[tuple[int, Floats]]:
    """(first row, log-probabilities in float64) of some rows of logits (N, C) at a time.

    Raises:
        DataError: for logits that are not numbers.
    """
    for start in range(0, len(logits), CHUNK):
        values = logits[start : start + CHUNK].astype(np.float64)
        if not np.isfinite(values).all():
            raise DataError("some logits are not finite: has training diverged?")
        values -= values.max(axis=1, keepdims=True)
        yield start, values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def is_uneven(test_counts: Any) -> bool:
    """Whether the test set is imbalanced: accuracy over its samples is then not the mean over classes."""
    counts = to_numpy(test_counts)
    counts = counts[counts > 0]
    return bool(counts.size) and bool(counts.max() >= UNEVEN * counts.min())
