"""How well confidence agrees with accuracy: bins, expected and maximum calibration error."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ltexp.errors import DataError
from ltexp.evaluation.arrays import Floats, to_numpy


@dataclass(frozen=True)
class Reliability:
    """What a reliability diagram shows, for bins of equal width over [0, 1].

    Attributes:
        count: samples in each bin.
        accuracy, confidence: their means in each bin, in [0, 1]; 0 where a bin is empty.
    """

    count: npt.NDArray[np.int64]
    accuracy: Floats
    confidence: Floats

    @property
    def expected_error(self) -> float:
        """Mean gap between accuracy and confidence over samples, in percent (ECE; Guo et al., ICML 2017)."""
        gap = np.abs(self.accuracy - self.confidence)
        return float(100 * (gap * self.count).sum() / max(int(self.count.sum()), 1))

    @property
    def maximum_error(self) -> float:
        """Largest gap of any bin that has samples, in percent (MCE)."""
        gap = np.abs(self.accuracy - self.confidence)[self.count > 0]
        return float(100 * gap.max()) if gap.size else 0.0


def reliability(probabilities: Any, labels: Any, bins: int = 15) -> Reliability:
    """Accuracy and mean confidence by bin of confidence.

    Args:
        probabilities: (N, C), rows summing to one; arrays or tensors.
        labels: (N,), from 0.
        bins: their number; 15 in MiSLAS and most codes. Bin b holds confidences in (b / bins, (b + 1) / bins], and
            a confidence of exactly 0 falls in the first.

    Raises:
        DataError: for no samples, other shapes, labels out of range, or values that are no probabilities.
    """
    values, targets = to_numpy(probabilities), to_numpy(labels)
    check_predictions(values, targets, "probabilities")
    confidence = values.max(axis=1)
    if not (values.min() >= 0 and confidence.max() <= 1 + 1e-3):  # a NaN fails both
        raise DataError("probabilities must be from 0 to 1: are these logits? Apply a softmax first")
    return bin_confidences(confidence, values.argmax(axis=1) == targets, bins)


def check_predictions(values: npt.NDArray[Any], labels: npt.NDArray[Any], name: str) -> None:
    """Raises a DataError unless `values` is (N, C) with N >= 1 and `labels` holds N of its C classes."""
    if values.ndim != 2 or not values.size or labels.shape != values.shape[:1]:
        raise DataError(f"{name} must be (N, C) with labels (N,), N at least 1; got {values.shape} and {labels.shape}")
    if labels.min() < 0 or labels.max() >= values.shape[1]:
        raise DataError(f"labels go from {labels.min()} to {labels.max()}, but {name} have {values.shape[1]} classes")


def bin_edges(bins: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """(bins + 1,) the edges of bins of equal width over [0, 1]."""
    return np.arange(bins + 1, dtype=dtype) / bins


def bin_confidences(confidence: npt.NDArray[Any], correct: npt.NDArray[np.bool_], bins: int = 15) -> Reliability:
    """As `reliability`, from the confidence (N,) of each prediction and whether it was right (N,)."""
    # Edges in the precision of the confidences: 0.2 in float32 lies above 0.2 in float64 and would change its bin. And
    # the edges decide, not confidence * bins, which rounding could carry over an edge.
    edges = bin_edges(bins, np.result_type(confidence.dtype, np.float32))
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    present = np.maximum(count, 1)
    return Reliability(
        count=count.astype(np.int64),
        accuracy=np.bincount(which, weights=correct, minlength=bins) / present,
        confidence=np.bincount(which, weights=confidence, minlength=bins) / present,
    )


def expected_calibration_error(probabilities: Any, labels: Any, bins: int = 15) -> float:
    """ECE in percent of probabilities (N, C) against labels (N,); see `reliability`."""
    return reliability(probabilities, labels, bins).expected_error


def maximum_calibration_error(probabilities: Any, labels: Any, bins: int = 15) -> float:
    """MCE in percent of probabilities (N, C) against labels (N,); see `reliability`."""
    return reliability(probabilities, labels, bins).maximum_error
