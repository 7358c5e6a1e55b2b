"""Calibration errors against numbers worked by hand and against the definition written out sample by sample."""

import numpy as np
import pytest
import torch

from ltexp.errors import DataError
from ltexp.evaluation import expected_calibration_error, maximum_calibration_error
from ltexp.evaluation.calibration import bin_confidences, reliability


def test_by_hand() -> None:
    # 10 bins. (0.8, 0.9]: 0.9 right, 0.85 wrong: accuracy 0.5, confidence 0.875, gap 0.375, 2 of 4 samples.
    # (0.5, 0.6]: 0.6 right: gap 0.4. (0.6, 0.7]: 0.7 right: gap 0.3. ECE = (2 * 0.375 + 0.4 + 0.3) / 4 = 0.3625.
    probabilities = [[0.9, 0.1], [0.15, 0.85], [0.6, 0.4], [0.3, 0.7]]
    labels = [0, 0, 0, 1]
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx(36.25)
    assert maximum_calibration_error(probabilities, labels, bins=10) == pytest.approx(40.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(dtype: type) -> None:
    """In either precision: 1/15 in float32 lies above 1/15 in float64."""
    confidence = (np.arange(1, 16) / 15).astype(dtype)
    for place, value in enumerate(confidence):
        found = bin_confidences(np.array([value]), np.array([True]))
        assert found.count.nonzero()[0] == place


def test_confidences_at_and_beyond_the_ends_are_counted() -> None:
    count = bin_confidences(np.array([0.0, 1.0, 1.0000001]), np.array([True, True, True])).count
    assert count[0] == 1
    assert count[-1] == 2  # a softmax may round to just above 1


def test_equals_the_definition_and_leaves_no_sample_out() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(10, 0.3), 500)
    labels = generator.integers(0, 10, 500)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    total = 0.0
    for b in range(15):
        inside = [i for i in range(500) if b / 15 < confidence[i] <= (b + 1) / 15]
        total += abs(sum(correct[i] for i in inside) - sum(confidence[i] for i in inside)) / 500
    assert expected_calibration_error(probabilities, labels) == pytest.approx(100 * total)
    assert reliability(probabilities, labels).count.sum() == 500


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_of_any_kind_are_accepted(dtype: torch.dtype) -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.5, 0.5]], dtype=dtype, requires_grad=True)
    assert expected_calibration_error(probabilities, torch.tensor([0, 1])) == pytest.approx(37.5)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([[5.0, -3.0]], [0], "logits"),
        ([[np.nan, np.nan]], [0], "from 0 to 1"),
        ([[0.5, 0.5]], [2], "labels go from 2 to 2"),
        ([[0.5, 0.5]], [-1], "labels go from -1"),
        ([[0.5, 0.5], [0.5, 0.5]], [0], r"got \(2, 2\) and \(1,\)"),
        (np.zeros((0, 2)), np.zeros(0, int), "N at least 1"),
    ],
)
def test_what_is_no_prediction_is_refused(probabilities: object, labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        expected_calibration_error(probabilities, labels)
