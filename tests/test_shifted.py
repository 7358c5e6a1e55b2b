"""Test sets with other class shares: their counts, expected accuracy, corrections for a known or estimated prior."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from records import record, write, write_measured
from rich.console import Console
from runs import composed

from ltexp import losses
from ltexp.analysis.learned_prior import learned_prior
from ltexp.config import to_config
from ltexp.errors import SettingError
from ltexp.evaluation.further import further_metrics
from ltexp.evaluation.shifted import SHIFTS, Predicted, Shift, shifted_accuracy, shifted_recalls
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.models.posthoc import LogitAdjusted, NearestClassMean
from ltexp.outputs import ModelOutput
from ltexp.report.__main__ import main
from ltexp.report.groups import group_runs
from ltexp.report.records import find_runs
from ltexp.report.shifted import shifted_table
from ltexp.report.terminal import Grid

EQUAL = np.full(4, 0.25)


def test_counts_are_the_published_ones() -> None:
    """Of LADE's and SADE's lists: CIFAR-10 forward at 50, and how many images each list of CIFAR-100 has."""
    trained = np.arange(10, 0, -1)
    forward = Shift("forward", 50).counts(trained, np.full(10, 1000))
    assert forward.tolist() == [1000, 647, 419, 271, 175, 113, 73, 47, 30, 20]
    assert Shift("backward", 50).counts(trained, np.full(10, 1000)).tolist() == forward.tolist()[::-1]
    sizes = [Shift("forward", r).counts(np.arange(100, 0, -1), np.full(100, 100)).sum() for r in (2, 5, 10, 25, 50)]
    assert sizes == [7166, 4932, 3876, 2956, 2486]


def test_classes_are_ordered_by_training_frequency_and_absent_ones_left_out() -> None:
    found = Shift("forward", 4).counts([5, 90, 90, 7, 30], [8, 8, 8, 0, 16])
    assert found.tolist() == [2, 8, 5, 0, 3]  # 8 4^(-k/3) is 8, 5.04, 3.17, 2
    assert Shift("uniform").shares([5, 90, 7], [8, 0, 8]).tolist() == [0.5, 0, 0.5]
    assert Shift("forward", 49).counts([3, 2, 1], [98, 98, 98]).tolist() == [98, 14, 2]  # 98 (1/49) is below 2 by 2e-16
    unrounded = Shift("backward", 100).shares([9, 5, 1], [3, 3, 3])  # a list of whole images has none of class 0
    assert unrounded.tolist() == pytest.approx([0.01 / 1.11, 0.1 / 1.11, 1 / 1.11])


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_reads_its_own_name(shift: Shift) -> None:
    assert Shift.from_text(shift.name) == shift


@pytest.mark.parametrize("text", ["forward", "forward0.5", "sideways50", "50", "uniform2", "forward-2", ""])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"invalid shift=.*: expected uniform, or forward or backward with a ratio"):
        Shift.from_text(text)


def test_a_hand_worked_case() -> None:
    """Three classes with recalls 1, 1/2 and 0, and 4 images each: shares of forward 4 are 4/7, 2/7 and 1/7."""
    labels = np.repeat([0, 1, 2], 4)
    logits = np.zeros((12, 3), dtype=np.float32)
    logits[np.arange(12), [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1]] = 5
    predicted = Predicted(logits, labels, np.full(3, 1 / 3))
    recalls = predicted.recalls()
    assert recalls == [100, 50, 0]
    for direction, expected in (("forward", 500 / 7), ("backward", 200 / 7)):
        shares = Shift(direction, 4).shares([9, 3, 1], predicted.test_counts)
        assert shifted_accuracy(recalls, shares) == pytest.approx(expected)


def predictions(prior: np.ndarray[Any, Any], seed: int = 0, per_class: int = 4000) -> Predicted:
    """A calibrated classifier of four overlapping classes in the plane: the posterior for training shares `prior`."""
    draws, means = np.random.default_rng(seed), np.array([[0, 0], [1.5, 0], [0, 1.5], [1.5, 1.5]])
    labels = np.repeat(np.arange(4), per_class)
    points = means[labels] + draws.normal(size=(len(labels), 2))
    distances = ((points[:, None] - means) ** 2).sum(axis=2)
    return Predicted((np.log(prior) - distances / 2 + 3).astype(np.float32), labels, prior)


def test_uniform_is_balanced_accuracy_and_a_known_equal_prior_changes_nothing() -> None:
    predicted = predictions(EQUAL)
    keep = np.random.default_rng(1).random(len(predicted.labels)) < np.array([0.9, 0.5, 0.3, 0.1])[predicted.labels]
    predicted = Predicted(predicted.logits[keep], predicted.labels[keep], EQUAL)
    uniform = Shift("uniform").shares([40, 30, 20, 10], predicted.test_counts)
    balanced = further_metrics(predicted.logits, predicted.labels)["balanced"]
    assert shifted_accuracy(predicted.recalls(), uniform) == pytest.approx(balanced)
    assert predicted.recalls(uniform) == predicted.recalls()


def test_a_known_prior_takes_the_place_of_the_learned_one() -> None:
    """The same images scored for other training shares: corrected for a prior, both give the same predictions."""
    prior = np.array([0.7, 0.2, 0.06, 0.04])
    skewed, equal = predictions(prior), predictions(EQUAL)
    assert skewed.recalls() != equal.recalls()
    for shift in SHIFTS:
        q = shift.shares([4, 3, 2, 1], skewed.test_counts)
        assert skewed.recalls(q) == pytest.approx(equal.recalls(q), abs=0.1)
    assert skewed.recalls(prior) == pytest.approx(skewed.recalls())


@pytest.mark.parametrize("learned", [EQUAL, np.array([0.7, 0.2, 0.06, 0.04])])
def test_em_recovers_the_prior_of_a_calibrated_classifier(learned: np.ndarray[Any, Any]) -> None:
    predicted = predictions(learned)
    shares = [shift.shares([4, 3, 2, 1], predicted.test_counts) for shift in SHIFTS]
    for found, q in zip(predicted.estimated(shares), shares, strict=True):
        assert found.sum() == pytest.approx(1, abs=1e-4)
        np.testing.assert_allclose(found, q, atol=0.02)


def test_em_is_that_of_the_images_themselves() -> None:
    """By the formula, image by image, on a set in which each image stands as often as the shares say."""
    predicted = predictions(np.array([0.4, 0.3, 0.2, 0.1]), per_class=40)
    q = Shift("backward", 5).shares([4, 3, 2, 1], predicted.test_counts)
    counts = Shift("backward", 5).counts([4, 3, 2, 1], predicted.test_counts)
    assert counts.tolist() == [8, 13, 23, 40]
    rows = np.repeat(np.arange(160), counts.astype(int)[predicted.labels])  # 40 of each class, counts times each
    p = np.exp(predicted.logits[rows].astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    found = predicted.learned_prior
    for _ in range(100):
        weighed = p * found / predicted.learned_prior
        found = (weighed / weighed.sum(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(predicted.estimated([q])[0], found, atol=1e-5)


def test_knowing_the_prior_helps_and_its_estimate_nearly_as_much() -> None:
    predicted = predictions(EQUAL)
    found = shifted_recalls(predicted, [4, 3, 2, 1])
    for number, shift in enumerate(SHIFTS):
        q = shift.shares([4, 3, 2, 1], predicted.test_counts)
        unknown, known, estimated = (shifted_accuracy(found[prior][number], q) for prior in found)
        assert known >= unknown - 0.2
        assert estimated == pytest.approx(known, abs=0.5)
        if shift.ratio >= 25:
            assert known > unknown + 5


COUNTS = torch.tensor([60, 6, 25, 9])
LOSSES: dict[str, Callable[[], Loss]] = {
    "cross_entropy": lambda: losses.CrossEntropy(COUNTS),
    "focal at 0": lambda: losses.Focal(COUNTS, gamma=0.0),
    "weighted_cross_entropy": lambda: losses.WeightedCrossEntropy(COUNTS),
    "class_balanced": lambda: losses.ClassBalanced(COUNTS, beta=0.9),
    "class_balanced_bce": lambda: losses.ClassBalancedBce(COUNTS, beta=0.9),
    "cumulative_heads": lambda: losses.CumulativeHeads(COUNTS, exponent=0.8),
    "balanced_softmax": lambda: losses.BalancedSoftmax(COUNTS),
    "logit_adjustment": lambda: losses.LogitAdjustment(COUNTS, tau=0.5),
    "lade": lambda: losses.LADE(COUNTS, alpha=0.0),
    "vector_scaling": lambda: losses.VectorScaling(COUNTS, gamma=0.0, tau=1.3),
    "gradual_balanced": lambda: losses.GradualBalanced(COUNTS, s=0.5),
    "skill_diverse": lambda: losses.SkillDiverse(COUNTS, scale=1.0),
    "nested_collaborative": lambda: losses.NestedCollaborative(COUNTS, hardest=1.0, weight=0.0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_loss_learns_of_the_class_shares(name: str) -> None:
    """Trained without any features, logits learn the class shares alone: those that the loss says."""
    loss, labels = LOSSES[name](), torch.repeat_interleave(torch.arange(4), COUNTS)
    experts = torch.zeros(3, 1, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([experts], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")
    context = BatchContext(epoch=1, max_epochs=1)  # at the very end

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        each = experts.expand(3, len(labels), 4)
        views = each.mean(0, keepdim=True)
        extra = {"view_logits": views, "balanced_logits": views}
        found = loss(ModelOutput(logits=views[0], expert_logits=each, extra=extra), labels, context)
        found.backward()
        return found

    optimizer.step(closure)  # type: ignore[arg-type]
    shares = loss.learned_prior(COUNTS / COUNTS.sum())
    assert shares.sum().item() == pytest.approx(1)
    torch.testing.assert_close(experts.detach().mean(0)[0].softmax(0), shares.double(), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("method=ce",), [60, 6, 25, 9]),
        (("method=bsce",), [1, 1, 1, 1]),
        (("method=crt",), [1, 1, 1, 1]),
        (("method=glag",), [1, 1, 1, 1]),  # generated features give each class as many as the largest has
        (("method=glag", "features@stage2.features=extracted"), [60, 6, 25, 9]),
        (("method=ce", "sampler@stage1.sampler=square_root"), [60**0.5, 6**0.5, 5, 3]),
        (("method=ce_drw", "stage1.reweighting.beta=0"), [60, 6, 25, 9]),
        (("method=ce_drw", "stage1.reweighting.start=1", "stage1.epochs=2"), [1, 1, 1, 1]),  # nearly 1 / n
    ],
)
def test_what_a_run_learned_follows_from_sampler_loss_and_reweighting(
    words: tuple[str, ...], expected: list[float]
) -> None:
    config = to_config(composed(*words))
    found = learned_prior(config, list(config.stages)[-1], COUNTS, None)
    np.testing.assert_allclose(found, np.asarray(expected) / sum(expected), atol=1e-3)


def test_classifiers_without_training_say_what_they_leave_of_the_prior() -> None:
    config = to_config(composed("method=la_posthoc"))
    adjusted = LogitAdjusted(2, 4, tau=1.0)
    adjusted.set_class_counts(COUNTS)
    np.testing.assert_allclose(learned_prior(config, "stage2", COUNTS, adjusted), EQUAL, atol=1e-6)
    np.testing.assert_allclose(learned_prior(config, "stage1", COUNTS, NearestClassMean(2, 4)), EQUAL)


def runs_with_config(folder: Path) -> Path:
    """Two seeds of one experiment and another method, whose config.yaml is a composed one of three classes."""
    from omegaconf import OmegaConf

    for name, method, seed in (("a", "ce", 0), ("b", "ce", 1), ("c", "bsce", 0)):
        write_measured(write(folder / name, method=method, seed=seed, config_hash=method))
        (folder / name / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(composed(f"method={method}"))))
    return folder


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_a_window_and_names_every_figure(width: int, tmp_path: Path) -> None:
    runs, _ = find_runs([runs_with_config(tmp_path)])
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(Grid(shifted_table(group_runs(runs))))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert all(shift.short in text for shift in SHIFTS)
    assert text.count(" ± ") >= 3 * len(SHIFTS)  # the two seeds, under three priors


@pytest.mark.parametrize(
    ("ending", "start"),
    [
        ("md", "| method | test prior | F50"),
        ("csv", "method,"),
        ("tex", "% needs"),
        pytest.param("html", "<!", marks=pytest.mark.slow),
    ],
)
def test_the_table_in_every_format(ending: str, start: str, tmp_path: Path) -> None:
    out = tmp_path / f"table.{ending}"
    assert main([str(runs_with_config(tmp_path / "runs")), "test_shift=true", f"out={out}"]) == 0
    assert out.read_text().startswith(start)
    assert "worst" in out.read_text()


def test_a_run_without_predictions_has_its_unknown_prior_alone(tmp_path: Path) -> None:
    runs, _ = find_runs([write(tmp_path)])
    table = shifted_table(group_runs(runs))
    unknown, known, estimated = table.rows
    place = [column.name for column in table.columns].index("U")
    # recalls of 60 and 40 percent, of 10 test images each, which is fewer than the ratio of 50
    assert [unknown[place].mean, unknown[place - 5].mean] == pytest.approx([50, (60 + 40 / 50) / (1 + 1 / 50)])  # type: ignore[union-attr]
    assert known[place] is estimated[place] is None
    assert any("predictions.npz" in note for note in table.notes)


def test_a_run_that_learned_equal_shares_is_itself_where_a_known_prior_is_uniform(tmp_path: Path) -> None:
    folder = runs_with_config(tmp_path) / "c"
    logits, labels = np.random.default_rng(3).normal(size=(60, 3)).astype(np.float32), np.repeat([0, 1, 2], 20)
    np.savez(folder / "predictions.npz", logits=logits, labels=labels)
    hits = [int((logits[labels == label].argmax(axis=1) == label).sum()) for label in range(3)]
    metrics = record()["metrics"] | {"per_class": [5.0 * hit for hit in hits]}
    write(folder, method="bsce", metrics=metrics, confusion=None)
    table = shifted_table(group_runs(find_runs([folder])[0]))
    place = [column.name for column in table.columns].index("U")
    assert table.rows[0][place] == table.rows[1][place]
    assert table.rows[0][place].mean == pytest.approx(100 * sum(hits) / 60)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["test_shift=yes"], "invalid test_shift=yes: expected true | false"),
        (["test_shift=true", "stages=true"], "test_shift=true and stages= exclude each other"),
        (["test_shift=true", "sort=all"], "test_shift=true and sort= exclude each other"),
        (["test_shift=true", "figure=test_shift"], "figure=test_shift and test_shift= exclude each other"),
        (["figure=test_shift", "prior=knwon"], "did you mean 'known'?"),
    ],
)
def test_a_wrong_command_line_has_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write(tmp_path)), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_figure_needs_predictions_for_a_known_prior(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(write(tmp_path / "run")), "figure=test_shift", f"out={tmp_path / 'x.png'}"]
    assert main([*words, "prior=known"]) == 1
    assert "only prior=unknown can be drawn" in capsys.readouterr().err
    assert main(words) == 0
