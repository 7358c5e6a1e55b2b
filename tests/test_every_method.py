"""What every method of conf/method/ keeps: a run that is stopped and resumed ends as if it had not been."""

from pathlib import Path
from typing import Any

import pytest
from choices import names
from runs import assert_equal_weights, composed, run_here, weights

from ltexp.evaluation.record import read_record
from ltexp.training.callbacks import ResumeCheckpoint

TELLING = ("mislas", "kd", "glag")  # the others run with the slow tests
METHODS = [name if name in TELLING else pytest.param(name, marks=pytest.mark.slow) for name in names("method")]


class StoppedError(Exception):
    """What ends a run in the middle."""


def short(method: str, epochs: int) -> tuple[str, ...]:
    """A few epochs of each stage that the method trains, on a training set that a run sees in a few steps."""
    plain = composed(f"method={method}")
    trained = [name for name in ("stage1", "stage2") if plain[name] and plain[name]["epochs"] > 0]
    lengths = [f"{name}.epochs={epochs}" for name in trained]
    return (f"method={method}", "stage_cache.enabled=false", *lengths)


def trained_stages(folder: Path) -> list[str]:
    return [name for name in ("stage1", "stage2") if (folder / name / "checkpoint.pt").exists()]


@pytest.mark.parametrize("method", METHODS)
def test_stopped_in_each_stage_and_resumed_equals_uninterrupted(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = short(method, epochs=3)
    run_here(tmp_path / "whole", *overrides)
    keep = ResumeCheckpoint.on_train_epoch_end

    def stop_after_the_first_checkpoint(self: ResumeCheckpoint, *arguments: Any) -> None:
        there = self.path.exists()
        keep(self, *arguments)
        if self.path.exists() and not there:
            raise StoppedError

    monkeypatch.setattr(ResumeCheckpoint, "on_train_epoch_end", stop_after_the_first_checkpoint)
    stops = 0
    while True:
        try:
            run_here(tmp_path / "stopped", *overrides, "resume=true")
            break
        except StoppedError:
            stops += 1
    plain = composed(*overrides)
    assert stops == sum(bool(plain[name] and plain[name]["epochs"]) for name in ("stage1", "stage2"))
    assert trained_stages(tmp_path / "stopped") == trained_stages(tmp_path / "whole")
    for stage in trained_stages(tmp_path / "whole"):
        assert_equal_weights(weights(tmp_path / "whole", stage), weights(tmp_path / "stopped", stage))
    assert read_record(tmp_path / "whole")["metrics"] == read_record(tmp_path / "stopped")["metrics"]


def golden_losses(folder: Path, stage: str) -> list[float]:
    rows = (folder / stage / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train_loss")
    return [float(row.split(",")[column]) for row in rows[1:]]


@pytest.mark.parametrize(
    ("method", "stage", "expected"),
    [
        ("ce", "stage1", (2.48573, 1.46985, 1.20309)),
        ("mislas", "stage1", (2.52673, 1.78764, 1.70146)),
        ("mislas", "stage2", (3.36273, 2.43781, 2.32511)),
    ],
)
def test_a_short_real_run_has_the_losses_that_it_had(
    method: str, stage: str, expected: tuple[float, ...], tmp_path: Path
) -> None:
    """Three epochs on digits. A change of what is computed shows here; one that is meant changes these numbers."""
    run_here(tmp_path / "run", *short(method, epochs=3))
    assert golden_losses(tmp_path / "run", stage) == pytest.approx(expected, rel=1e-3)
