"""Accuracy by shot and class against hand-counted predictions; predictions of several processes put together."""

import numpy as np
import pytest
import torch

from ltexp.errors import DataError
from ltexp.evaluation.metrics import confusion_matrix, measure, merge_predictions
from ltexp.evaluation.shots import ShotRule

COUNTS = [5, 500, 20, 100, 101]  # few, many, medium, medium, many: not in order of frequency


def logits_for(predictions: list[int], classes: int = 5) -> np.ndarray:
    return 4.0 * np.eye(classes, dtype=np.float32)[predictions]


def test_shots_come_from_counts_and_their_bounds_are_exact() -> None:
    groups = {name: mask.nonzero()[0].tolist() for name, mask in ShotRule().groups(COUNTS).items()}
    assert groups == {"many": [1, 4], "medium": [2, 3], "few": [0]}
    assert ShotRule().text == "many > 100 >= medium >= 20 > few"
    assert ShotRule.from_text(ShotRule(50, 7).text) == ShotRule(50, 7)
    assert ShotRule.from_text("thirds") is None


def test_measure_by_hand() -> None:
    # class 0: 1 of 2; 1: 3 of 3; 2: none tested; 3: 0 of 1; 4: 1 of 2
    labels = [0, 0, 1, 1, 1, 3, 4, 4]
    metrics, details = measure(logits_for([0, 1, 1, 1, 1, 0, 4, 0]), np.array(labels), COUNTS, ShotRule())
    assert metrics["per_class"] == [50.0, 100.0, None, 0.0, 50.0]
    assert metrics["all"] == 100 * 5 / 8  # over samples
    assert (metrics["many"], metrics["medium"], metrics["few"]) == (75.0, 0.0, 50.0)  # means over classes
    assert details["confusion"][0] == [1, 1, 0, 0, 0]
    assert details["confusion"][4] == [1, 0, 0, 0, 1]
    confidence = np.exp(4) / (np.exp(4) + 4)
    assert metrics["ece"] == pytest.approx(100 * abs(5 / 8 - confidence))


def test_an_empty_group_has_no_accuracy() -> None:
    metrics, _ = measure(logits_for([0, 1], 2), np.array([0, 1]), [500, 500], ShotRule())
    assert (metrics["medium"], metrics["few"]) == (None, None)


def test_the_scale_of_a_cosine_loss_sharpens_confidence_alone() -> None:
    logits, labels = logits_for([0, 1, 1], 2) / 4, np.array([0, 1, 0])
    plain, _ = measure(logits, labels, [50, 50], ShotRule())
    scaled, _ = measure(logits, labels, [50, 50], ShotRule(), logit_scale=30.0)
    assert scaled["all"] == plain["all"]
    assert scaled["ece"] == pytest.approx(100 / 3, abs=1e-6)  # certain of everything, right in two of three


def test_tensors_give_what_arrays_give() -> None:
    logits, labels = logits_for([0, 1, 0], 2), np.array([0, 1, 1])
    with_tensors = measure(torch.from_numpy(logits), torch.from_numpy(labels), torch.tensor([9, 200]), ShotRule())
    assert with_tensors == measure(logits, labels, np.array([9, 200]), ShotRule())


def test_a_large_confusion_matrix_stays_out_of_the_record() -> None:
    _, details = measure(np.zeros((1, 257), np.float32), np.array([0]), np.ones(257, int), ShotRule())
    assert details["confusion"] is None
    assert confusion_matrix([1, 1, 0], [0, 1, 0], 2).tolist() == [[1, 0], [1, 1]]


def test_predictions_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(DataError, match=r"logits of 1 of 2 samples are not finite"):
        measure(np.array([[0.0, np.nan], [1, 0]]), np.array([0, 1]), [1, 1], ShotRule())
    with pytest.raises(DataError, match=r"class_counts has 3 classes, the logits have 2"):
        measure(np.zeros((1, 2)), np.array([0]), [1, 1, 1], ShotRule())


def part(*index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.array(index), np.array(index, np.float32)[:, None], np.array(index) % 2


def test_processes_put_together_count_padded_duplicates_once() -> None:
    index, logits, labels = merge_predictions([part(0, 2, 4), part(1, 3, 0)], size=5)
    assert index.tolist() == [0, 1, 2, 3, 4]
    assert logits[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert labels.tolist() == [0, 1, 0, 1, 0]


def test_a_missing_sample_is_never_averaged_away() -> None:
    with pytest.raises(RuntimeError, match=r"2 of 3 samples; missing \[1\]"):
        merge_predictions([part(0), part(2)])
    with pytest.raises(RuntimeError, match=r"missing \[2\]"):
        merge_predictions([part(0, 1)], size=3)
    with pytest.raises(DataError, match="nothing to evaluate"):
        merge_predictions([])
