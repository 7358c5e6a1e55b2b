"""What every method must keep, by the names of conf/method/: resuming, processes, and the course of the loss."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from choices import names
from runs import assert_equal_weights, run_here, tiny, trained_stages, weights

from ltexp.config import in_order
from ltexp.data.loader import Batch, EpochSetter
from ltexp.evaluation.record import read_record
from ltexp.run_folder import CONFIDENCE, read_metrics
from ltexp.training.stage import Stage

# of which each keeps something else: statistics of batch norm alone, a network beside the model, soft labels of the
# epoch before, generated features with a confidence by class, noise in the logits, a teacher with several experts
TELLING = ("mislas", "dasl", "ols", "glag", "gcl", "ride_bkd_2")


def every_method(quick: Collection[str], but: Collection[str] = ()) -> list[Any]:
    """All methods as parameters of a test, which is slow but for the quick ones; without those of `but`."""
    tested = (name for name in names("method") if name not in but)
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in tested]


UNTRAINED = ("zero_shot",)  # nothing of it learns: no step of training is taken


class Killed(BaseException):
    """Stands for the end of the process."""


def kill_in(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the second epoch of a stage die in its second step, or in its only one."""
    step = Stage.training_step

    def dying(self: Stage, batch: Batch, number: int) -> None:
        last = int(self.trainer.num_training_batches) - 1
        if (batch.epoch, batch.step) == (1, min(1, last)) and self.trainer.default_root_dir.endswith(stage):
            raise Killed
        step(self, batch, number)

    monkeypatch.setattr(Stage, "training_step", dying)


@pytest.mark.parametrize("method", every_method(TELLING, but=UNTRAINED))
def test_killed_in_each_stage_and_resumed_equals_uninterrupted(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume_in_each(trained_stages(method), tiny(method), tmp_path, monkeypatch)


def resume_in_each(
    stages: Collection[str],
    overrides: Collection[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    project: Path | None = None,
) -> None:
    """Bit-equal weights of every stage and module, equal metrics by epoch, and the same record."""
    run_here(folder / "whole", *overrides, project=project)
    for stage in stages:
        with monkeypatch.context() as context:
            kill_in(stage, context)
            with pytest.raises(Killed):
                run_here(folder / "resumed", *overrides, "resume=true", project=project)
        assert (folder / "resumed" / stage / "resume.ckpt").exists()
    run_here(folder / "resumed", *overrides, "resume=true", project=project)
    for stage in stages_of(folder / "whole"):
        assert_equal_weights(weights(folder / "whole", stage), weights(folder / "resumed", stage))
        assert courses(folder / "whole", stage) == courses(folder / "resumed", stage)
        paths = [folder / name / stage / CONFIDENCE for name in ("whole", "resumed")]
        assert paths[0].exists() == paths[1].exists()
        assert not paths[0].exists() or paths[0].read_text() == paths[1].read_text()
    whole, resumed = (read_record(folder / name)["metrics"] for name in ("whole", "resumed"))
    assert whole == resumed


def test_the_comparison_notices_a_resumed_stage_that_draws_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: where the second epoch draws anew after a resume, the weights do differ."""
    overrides = tiny("ce")
    run_here(tmp_path / "whole", *overrides)
    with monkeypatch.context() as context:
        kill_in("stage1", context)
        with pytest.raises(Killed):
            run_here(tmp_path / "resumed", *overrides)
    monkeypatch.setattr(EpochSetter, "set_epoch", lambda self, epoch: None)
    run_here(tmp_path / "resumed", *overrides, "resume=true")
    with pytest.raises(AssertionError):
        assert_equal_weights(weights(tmp_path / "whole", "stage1"), weights(tmp_path / "resumed", "stage1"))


def stages_of(folder: Path) -> list[str]:
    """The stages that a run has left a checkpoint of."""
    return in_order(path.parent.name for path in folder.glob("*/checkpoint.pt"))


def courses(folder: Path, stage: str) -> list[dict[str, Any]]:
    """The rows of a stage's metrics.csv without what the clock says."""
    rows = read_metrics(folder / stage / "metrics.csv")
    return [{key: value for key, value in row.items() if key not in ("seconds", "images_per_second")} for row in rows]


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
    lengths = [f"{name}.epochs=3" for name in trained_stages(method)]
    run_here(tmp_path / "run", f"method={method}", "stage_cache.enabled=false", *lengths)
    losses = [float(row["train_loss"]) for row in read_metrics(tmp_path / "run" / stage / "metrics.csv")]
    assert losses == pytest.approx(expected, rel=1e-3)
