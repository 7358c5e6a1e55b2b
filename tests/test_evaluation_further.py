"""Further metrics against scikit-learn and by hand, and where a table gets them from."""

import math
from pathlib import Path

import numpy as np
import pytest
from records import record, write
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score, log_loss

from ltexp.errors import DataError
from ltexp.evaluation.further import further_metrics, is_uneven, of_confusion, of_recalls
from ltexp.evaluation.metrics import confusion_matrix
from ltexp.evaluation.record import write_predictions
from ltexp.report.groups import Statistic, group_runs
from ltexp.report.records import find_runs
from ltexp.report.results import results_table

CLASSES, SAMPLES = 5, 400


def predictions() -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    labels = draws.integers(0, CLASSES, SAMPLES)
    return (draws.normal(size=(SAMPLES, CLASSES)) + 2 * np.eye(CLASSES)[labels]).astype(np.float32), labels


def softmax(logits: np.ndarray) -> np.ndarray:
    scores = np.exp(logits.astype(np.float64))
    return np.asarray(scores / scores.sum(1, keepdims=True))


def test_against_scikit_learn() -> None:
    logits, labels = predictions()
    found, predicted, probabilities = further_metrics(logits, labels), logits.argmax(1), softmax(logits)
    assert found["balanced"] == pytest.approx(100 * balanced_accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(100 * f1_score(labels, predicted, average="macro"))
    assert found["nll"] == pytest.approx(log_loss(labels, probabilities))
    # over all classes, unscaled: Brier's own definition
    of_classes = [brier_score_loss(labels == label, probabilities[:, label]) for label in range(CLASSES)]
    assert found["brier"] == pytest.approx(sum(of_classes))
    assert found["macro_f1"] == pytest.approx(of_confusion(confusion_matrix(labels, predicted, CLASSES))["macro_f1"])


def test_the_class_wise_error_is_the_mean_of_each_class_bin_by_bin() -> None:
    logits, labels = predictions()
    probabilities, errors = softmax(logits), []
    for label in range(CLASSES):
        error = 0.0
        for low in range(15):
            inside = (probabilities[:, label] > low / 15) & (probabilities[:, label] <= (low + 1) / 15)
            if inside.any():
                gap = (labels[inside] == label).mean() - probabilities[inside, label].mean()
                error += inside.mean() * abs(gap)
        errors.append(100 * error)
    assert further_metrics(logits, labels)["classwise_ece"] == pytest.approx(np.mean(errors))


def test_means_of_recalls_by_hand() -> None:
    found = of_recalls([80.0, 20.0, None])
    assert found == pytest.approx({"balanced": 50.0, "geometric_mean": 40.0, "harmonic_mean": 32.0, "lowest": 20.0})
    nothing = of_recalls([80.0, 0.0])
    assert (nothing["geometric_mean"], nothing["harmonic_mean"], nothing["lowest"]) == (0.0, 0.0, 0.0)
    assert of_recalls([None]) == {}


def test_certain_and_clueless_predictions_have_known_scores() -> None:
    even = further_metrics(np.zeros((4, 2)), np.array([0, 0, 1, 1]))
    assert (even["nll"], even["brier"]) == pytest.approx((math.log(2), 0.5))
    assert even["classwise_ece"] == pytest.approx(0.0, abs=1e-12)
    wrong = further_metrics(np.array([[0.0, 1000.0]]), np.array([0]))
    assert (wrong["nll"], wrong["brier"], wrong["classwise_ece"]) == pytest.approx((1000.0, 2.0, 100.0))
    with pytest.raises(DataError, match="not finite"):
        further_metrics(np.array([[np.nan, 1.0]]), np.array([0]))


def test_an_uneven_test_set_is_one_whose_classes_differ_by_a_fifth() -> None:
    assert not is_uneven([100, 100, 0])
    assert not is_uneven([100, 119])
    assert is_uneven([100, 120])


def test_old_runs_have_them_from_their_predictions_and_the_table_warns_of_an_uneven_test_set(tmp_path: Path) -> None:
    logits, labels = predictions()
    logits, labels = logits[:, :3][labels < 3], labels[labels < 3]
    keep = np.flatnonzero((labels != 2) | (np.arange(len(labels)) % 2 == 0))
    logits, labels = logits[keep], labels[keep]
    recalls = [100 * float((logits.argmax(1) == labels)[labels == label].mean()) for label in range(3)]
    metrics = record()["metrics"] | {"per_class": recalls}
    for name in ("with", "without"):
        write(tmp_path / name, method=name, config_hash=name, metrics=metrics, confusion=None)
    norms = np.ones(len(labels), np.float32)
    write_predictions(tmp_path / "with" / "predictions.npz", logits, labels, np.arange(len(labels)), norms)
    columns = "balanced,macro_f1,nll,brier,classwise_ece"
    table = results_table(group_runs(find_runs([tmp_path])[0]), columns)
    expected = further_metrics(logits, labels, bins=2)  # as many as of the record's reliability
    found = [cell.mean if isinstance(cell, Statistic) else cell for cell in table.rows[0]]
    assert found == pytest.approx([expected[name] for name in columns.split(",")])
    assert table.rows[1][1:] == [None] * 4  # but for what the record has of each class
    assert any(note.startswith("–: not known without the run's predictions.npz") for note in table.notes)
    counts = np.bincount(labels)
    (warning,) = [note for note in table.notes if note.startswith("warning")]
    assert f"imbalanced, {counts.min()} to {counts.max()} samples a class" in warning
    assert not any("warning" in note for note in results_table(group_runs(find_runs([tmp_path / "without"])[0])).notes)
