"""What the figures show: the right numbers in the right place, and one line where they cannot be drawn."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import record, write

from ltexp.errors import ConfigError, DataError
from ltexp.evaluation.record import write_predictions
from ltexp.evaluation.shots import ShotRule
from ltexp.report.drawing import MOST_PANELS, common, titles
from ltexp.report.figures import accuracy_by_class, confusion, curves, draw, shots
from ltexp.report.records import Run
from ltexp.report.table import duration
from ltexp.run_folder import write_metrics


def run(folder: Path = Path(), **changes: Any) -> Run:
    return Run(folder, record(**changes))


def test_confusion_is_by_row_with_the_most_frequent_class_first() -> None:
    unsorted = run(class_counts=[30, 500, 50], confusion=[[1, 3, 0], [2, 6, 2], [0, 0, 0]])
    order = np.array([1, 2, 0])
    nan = np.nan
    expected = [[60, 20, 20], [nan, nan, nan], [75, 0, 25]]
    np.testing.assert_allclose(confusion._shares(unsorted, order), expected)


def test_confusion_comes_from_the_predictions_when_the_record_has_none(tmp_path: Path) -> None:
    logits = np.array([[2, 1, 0], [0, 3, 1], [0, 3, 1]], dtype=np.float32)  # predicts 0, 1, 1
    write_predictions(tmp_path / "predictions.npz", logits, np.array([0, 0, 1]), np.arange(3), np.ones(3))
    shares = confusion._shares(run(tmp_path, confusion=None), np.arange(3))
    np.testing.assert_allclose(shares, [[50, 50, 0], [0, 100, 0], [np.nan] * 3])


@pytest.mark.parametrize("content", [None, b"", b"no arrays"])
def test_predictions_that_cannot_be_read_have_one_line(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "predictions.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"predictions\.npz") as error:
        draw("confusion", [run(tmp_path, confusion=None)], tmp_path / "out.png")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.png").exists()


def test_the_line_goes_through_the_mean_of_each_class_size() -> None:
    # a step imbalance: two sizes, means 30 and 80
    counts, accuracy = accuracy_by_class._line(np.array([100.0, 10.0, 100.0, 10.0]), np.array([70.0, 20.0, 90.0, 40.0]))
    np.testing.assert_allclose(counts, [10, 100])
    np.testing.assert_allclose(accuracy, [30, 80])


def test_many_class_sizes_are_averaged_in_groups_that_leave_none_out() -> None:
    sizes = np.arange(1.0, 49.0)
    counts, accuracy = accuracy_by_class._line(sizes, sizes)  # groups of four: 1..4 has the mean 2.5
    assert len(counts) == accuracy_by_class.MOST_VERTICES
    np.testing.assert_allclose(accuracy, np.arange(2.5, 48, 4))
    assert counts[0] == pytest.approx(24 ** (1 / 4))  # in the middle of a log axis


def test_the_shading_reads_the_rule_that_records_hold() -> None:
    rule = ShotRule(many_above=200, few_below=30)
    assert ShotRule.from_text(rule.text) == rule
    assert ShotRule.from_text("thirds") is None


def test_seeds_are_averaged_and_absent_classes_left_out(tmp_path: Path) -> None:
    seeds = [run(seed=seed, shot_rule="thirds", class_counts=[500, 0, 30]) for seed in range(3)]
    draw("accuracy_by_class", seeds, tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 0


def test_titles_say_what_differs_and_the_heading_what_does_not() -> None:
    runs = [run(), run(seed=1), run(method="ce", imbalance="step", imbalance_ratio=10)]
    assert titles(runs) == ["crt, ratio 100, seed 0", "crt, ratio 100, seed 1", "ce, step ratio 10, seed 0"]
    assert common(runs) == "cifar10_lt, resnet32"
    assert titles(runs[:1]) == ["crt"]


def test_shots_are_a_row_for_each_experiment_with_the_mean_over_seeds(tmp_path: Path) -> None:
    runs = [run(all=50.0, seed=seed, config_hash="a") for seed in (0, 1)]
    runs[1].record["metrics"] |= {"many": 80.0}
    np.testing.assert_allclose(shots.accuracies(runs), [[50, 60, 40, np.nan], [50, 80, 40, np.nan]])
    runs += [run(method=f"method{number}", all=float(number), config_hash=str(number)) for number in range(12)]
    draw("shots", runs, tmp_path / "out.svg")
    written = re.findall("<!-- (.*) -->", (tmp_path / "out.svg").read_text())
    names = [*(f"method{number}" for number in range(12)), "crt (mean of 2 seeds)"]  # from below
    assert [line for line in written if line in names] == names
    with pytest.raises(ConfigError, match=r"different shot rules .*thirds"):
        draw("shots", [*runs, run(shot_rule="thirds", config_hash="t")], tmp_path / "out.svg")
    with pytest.raises(ConfigError, match="invalid sort=best"):
        draw("shots", runs, tmp_path / "out.svg", sort="best")


def test_what_cannot_be_drawn_has_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.png, \.pdf, \.svg, not '\.jpg'"):
        draw("reliability", [run()], tmp_path / "out.jpg")
    with pytest.raises(ConfigError, match="too many for one figure"):
        draw("reliability", [run()] * (MOST_PANELS + 1), tmp_path / "out.png")
    with pytest.raises(ConfigError, match="8 experiments are too many"):
        draw("accuracy_by_class", [run(config_hash=str(number)) for number in range(8)], tmp_path / "out.png")
    with pytest.raises(ConfigError, match="no finished run"):
        draw("reliability", [], tmp_path / "out.png")
    with pytest.raises(ConfigError, match="did you mean 'confusion'"):
        draw("confusoin", [run()], tmp_path / "out.png")
    with pytest.raises(DataError, match="no bins of confidence"):
        draw("reliability", [run(reliability=None)], tmp_path / "out.png")
    assert list(tmp_path.iterdir()) == []


def test_the_same_run_gives_the_same_file(tmp_path: Path) -> None:
    runs = [Run(write(tmp_path / "run"), record())]
    for ending in ("png", "pdf"):
        for name in ("one", "two"):
            draw("reliability", runs, tmp_path / f"{name}.{ending}")
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (4.21, "4.2 s"),
        (59.97, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (4200, "1 h 10 min"),
    ],
)
def test_durations_carry_over(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def write_run(folder: Path, accuracy: float, **changes: Any) -> Run:
    """A run of two stages of three and two epochs; the first stage is evaluated after its second epoch."""
    rows = [{"epoch": e, "train_loss": 3.0 - e, "test_all": accuracy if e == 1 else None} for e in range(3)]
    stages = [
        {"name": name, "epochs": epochs, "metrics": {**record()["metrics"], "all": accuracy + number}}
        for number, (name, epochs) in enumerate((("stage1", 3), ("stage2", 2)), start=1)
    ]
    write(folder, stages=stages, **changes)
    write_metrics(folder / "stage1" / "metrics.csv", rows)
    write_metrics(folder / "stage2" / "metrics.csv", [{"epoch": e, "train_loss": 0.5} for e in range(2)])
    return Run(folder, record(stages=stages, **changes))


def test_curves_follow_stage_after_stage_and_end_with_the_records_accuracy(tmp_path: Path) -> None:
    found = curves.read_curves(write_run(tmp_path / "run", 40.0))
    assert found.columns["test_all"] == {2: 40.0, 3: 41.0, 5: 42.0}
    assert found.columns["train_loss"] == {1: 3.0, 2: 2.0, 3: 1.0, 4: 0.5, 5: 0.5}
    assert found.ends == (3,)


def test_a_stage_that_was_stopped_ends_where_it_was(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "run", 40.0)
    first, second = whole.record["stages"]
    stopped = Run(whole.folder, whole.record | {"stages": [first | {"epochs": 30, "stopped_after": 3}, second]})
    assert curves.read_curves(stopped) == curves.read_curves(whole)


def test_curves_of_several_experiments_and_seeds_make_one_figure(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{method}{seed}", 40.0 + seed, method=method, config_hash=method, seed=seed)
        for method in ("ls", "dasl")
        for seed in (0, 1)
    ]
    draw("curves", runs, tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 0


def test_curves_without_metrics_by_epoch_have_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs .*/stage\*/metrics\.csv, which are missing or empty"):
        draw("curves", [run(tmp_path)], tmp_path / "out.png")
