"""A run from end to end: what lies in its folder, what its stages share, and what resuming it gives."""

import importlib
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from choices import names
from clips import beside
from pytorch_lightning.callbacks import Timer
from runs import assert_equal_weights, run_here, weights

from ltexp.config import build as build_module
from ltexp.errors import CheckpointError, ConfigError, TrainingError
from ltexp.run_folder import read_metrics
from ltexp.training.stage import Stage


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


@pytest.fixture(scope="module")
def mislas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small run of the quickstart's method."""
    folder = tmp_path_factory.mktemp("mislas") / "run"
    run_here(folder, "method=mislas", "stage2.epochs=2", "evaluation.figures=true", "evaluation.every=1")
    return folder


def test_a_run_leaves_everything_its_folder_promises(mislas: Path) -> None:
    content = record(mislas)
    assert content["status"] == "finished"
    assert content["selection"] == "last"
    assert (content["method"], content["dataset"], content["backbone"]) == ("mislas", "digits_lt", "resnet8")
    assert content["class_counts"] == [120, 76, 48, 30, 19, 12, 7, 4, 3, 2]  # int(120 * 60^(-c/9))
    assert [stage["name"] for stage in content["stages"]] == ["stage1", "stage2"]
    assert content["metrics"] == content["stages"][1]["metrics"]
    predictions = np.load(mislas / "predictions.npz")
    correct = predictions["logits"].argmax(1) == predictions["labels"]
    assert content["metrics"]["all"] == pytest.approx(100 * correct.mean())
    assert list(predictions["index"]) == list(range(500))
    for path in ("config.yaml", "stage1/checkpoint.pt", "stage1/metrics.csv", "stage2/checkpoint.pt"):
        assert (mislas / path).is_file(), path
    assert list(mislas.glob("*.png"))
    assert not (mislas / "stage1" / "resume.ckpt").exists()


def test_stage_2_leaves_the_convolutions_as_stage_1_left_them_and_moves_the_statistics(mislas: Path) -> None:
    one, two = weights(mislas, "stage1"), weights(mislas, "stage2")
    for name in (name for name in one if name.startswith("backbone")):
        moved = "running" in name or "num_batches" in name
        assert torch.equal(one[name], two[name]) != moved, name


@pytest.mark.parametrize("method", names("method"))
def test_every_method_runs(method: str, tmp_path: Path) -> None:
    run_here(tmp_path / "run", f"method={method}", *beside(method), "stage1.epochs=1")
    metrics = record(tmp_path / "run")["metrics"]
    assert 0 < metrics["all"] <= 100
    assert np.isfinite(metrics["ece"])


def test_methods_with_the_same_stage_1_train_it_once(tmp_path: Path) -> None:
    run_here(tmp_path / "crt", "method=crt", "stage2.epochs=1")
    run_here(tmp_path / "lws", "method=lws", "stage2.epochs=1")
    assert [stage["cached"] for stage in record(tmp_path / "crt")["stages"]] == [False, False]
    assert [stage["cached"] for stage in record(tmp_path / "lws")["stages"]] == [True, False]
    assert_equal_weights(weights(tmp_path / "crt", "stage1"), weights(tmp_path / "lws", "stage1"))


@pytest.mark.parametrize("override", ["seed=1", "stage1.epochs=3", "dataset.subset.seed=1", "backbone=resnet20"])
def test_another_stage_1_is_not_taken_from_the_cache(override: str, tmp_path: Path) -> None:
    run_here(tmp_path / "one", "method=ce", "stage1.epochs=1")
    run_here(tmp_path / "two", "method=ce", "stage1.epochs=1", override)
    assert not record(tmp_path / "two")["stages"][0]["cached"]


def test_a_damaged_cache_entry_is_rebuilt_not_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_here(tmp_path / "one", "method=ce")
    (entry,) = (tmp_path / "stage_cache").glob("*/checkpoint.pt")
    entry.write_bytes(entry.read_bytes()[:-100])
    run_here(tmp_path / "two", "method=ce")
    assert "is damaged" in capsys.readouterr().out
    assert not record(tmp_path / "two")["stages"][0]["cached"]
    assert_equal_weights(weights(tmp_path / "one", "stage1"), weights(tmp_path / "two", "stage1"))
    run_here(tmp_path / "three", "method=ce")
    assert record(tmp_path / "three")["stages"][0]["cached"]


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch, stage_epochs: int) -> None:
    """Lets training of a stage with so many epochs die at its step number `steps` (from 0)."""
    step = Stage.training_step
    seen = {"steps": 0}

    def dying(self: Stage, batch: Any, index: int) -> torch.Tensor:
        if self.config.epochs == stage_epochs:
            if seen["steps"] == steps:
                raise Killed
            seen["steps"] += 1
        return step(self, batch, index)

    monkeypatch.setattr(Stage, "training_step", dying)


def test_rows_past_the_last_checkpoint_are_dropped_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("method=ce", "stage1.epochs=5", "trainer.checkpoint_every=2", "stage_cache.enabled=false")
    run_here(tmp_path / "whole", *overrides)
    with monkeypatch.context() as context:
        killed_after(17, context, 5)  # in the fourth epoch of 5 steps: the checkpoint is of the second
        with pytest.raises(Killed):
            run_here(tmp_path / "resumed", *overrides)
    run_here(tmp_path / "resumed", *overrides, "resume=true")
    assert_equal_weights(weights(tmp_path / "whole", "stage1"), weights(tmp_path / "resumed", "stage1"))
    rows = (tmp_path / "resumed" / "stage1" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "1", "2", "3", "4"]


def test_bf16_trains_and_its_logits_are_not_rounded_to_bf16(tmp_path: Path) -> None:
    run_here(tmp_path / "run", "method=ce", "trainer.precision=bf16-mixed")
    logits = torch.from_numpy(np.load(tmp_path / "run" / "predictions.npz")["logits"])
    assert not torch.equal(logits, logits.bfloat16().float())


def test_an_edited_loss_is_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source of what a config names is part of a stage's fingerprint."""
    module = tmp_path / "halved_loss.py"
    source = (
        "from ltexp.losses.cross_entropy import CrossEntropy\n\n\nclass Halved(CrossEntropy):\n"
        "    def per_sample(self, output, target):\n        return super().per_sample(output, target) * FACTOR\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    overrides = ("method=ce", "stage1.epochs=1", "stage1.loss._target_=halved_loss.Halved")
    for name, factor in (("one", "0.5"), ("two", "0.25")):
        module.write_text(source.replace("FACTOR", factor))
        sys.modules.pop("halved_loss", None)
        importlib.invalidate_caches()
        build_module._source.cache_clear()
        run_here(tmp_path / "outputs" / name, *overrides)
        assert not record(tmp_path / "outputs" / name)["stages"][0]["cached"]
    run_here(tmp_path / "outputs" / "three", *overrides)
    assert record(tmp_path / "outputs" / "three")["stages"][0]["cached"]


def test_columns_of_another_evaluation_do_not_come_with_a_cached_stage(tmp_path: Path) -> None:
    run_here(tmp_path / "one", "method=ce", "evaluation.every=1")
    run_here(tmp_path / "two", "method=ce", "evaluation.every=1", "evaluation.many_shot_above=60")
    assert record(tmp_path / "two")["stages"][0]["cached"]
    assert record(tmp_path / "one")["stages"][0]["best_on_test"] is not None
    assert record(tmp_path / "two")["stages"][0]["best_on_test"] is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method=mislas", "classifier@stage2.classifier=tau_normalized"), r"stage2: its classifier is not trained"),
        (("method=ce", "classifier@stage1.classifier=nearest_class_mean"), r"stage1: its classifier is not trained"),
        (("method=ce", "classifier@stage1.classifier=weight_shift"), r"stage1: its classifier continues"),
        (("method=crt", "stage2.init.backbone=nowhere"), r"no checkpoint at .*nowhere"),
        (("method=mislas", "+stage2.lr_factors.clasifier=0.1"), r"did you mean 'classifier'"),
        (("method=mislas", "classifier@stage1.classifier=cosine"), r"cannot continue"),
    ],
)
def test_what_cannot_work_is_refused_before_stage_1_trains(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=message):
        run_here(tmp_path / "run", *overrides)
    assert not (tmp_path / "run" / "stage1").exists()


def test_a_run_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    run_here(tmp_path / "run", "method=mixup", "stage1.epochs=1")
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_a_stage_can_come_from_another_run(mislas: Path, tmp_path: Path) -> None:
    run_here(tmp_path / "tau", "method=tau_norm", f"stage1.checkpoint={mislas}")
    assert_equal_weights(weights(mislas, "stage1"), weights(tmp_path / "tau", "stage1"))
    assert record(tmp_path / "tau")["stages"][0]["cached"]


def test_a_checkpoint_of_another_model_is_refused_in_one_line(mislas: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"backbone .* belongs to a different model"):
        run_here(tmp_path / "run", "method=crt", "backbone=resnet20", f"stage1.checkpoint={mislas}")


@pytest.mark.parametrize("key", ["stage1.checkpoint", "stage2.init.classifier", "stage2.init.backbone"])
def test_tensors_of_another_program_are_refused_before_the_run_begins(key: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"blocks.0.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"not a stage checkpoint|belongs to a different model"):
        run_here(tmp_path / "run", "method=crt", f"{key}={path}")
    assert not (tmp_path / "run" / "record.json").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_a_damaged_checkpoint_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "stage.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is (damaged|empty|a text file)"):
        run_here(tmp_path / "run", "method=crt", f"stage1.checkpoint={path}")


def test_checkpoints_hold_plain_containers_only(mislas: Path) -> None:
    for path in mislas.glob("stage*/checkpoint.pt"):
        torch.load(path, weights_only=True)


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"stage1: the loss is (nan|inf) in epoch 1 .*lower stage1.optimizer.lr"):
        run_here(tmp_path / "run", "method=ce", "stage1.optimizer.lr=1e20")


def test_a_cosine_classifier_learns_when_the_loss_has_a_scale(tmp_path: Path) -> None:
    run_here(tmp_path / "run", "method=ce", "classifier@stage1.classifier=cosine", "stage1.loss.scale=16")
    assert np.abs(np.load(tmp_path / "run" / "predictions.npz")["logits"]).max() > 1  # the scale is in the predictions


def test_a_fresh_classifier_cannot_stay_untrained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learns nothing in 0 epochs"):
        run_here(tmp_path / "run", "method=crt", "stage2.epochs=0")
    frozen = [
        f"stage1.{key}" for key in ("trainable.backbone=false", "trainable.classifier=false", "batch_norm=frozen")
    ]
    with pytest.raises(ConfigError, match=r"set stage1.trainable.classifier=true \(and stage1.epochs of 1 or more\)$"):
        run_here(tmp_path / "run", "method=ce", *frozen)


def test_a_validation_split_is_measured_beside_the_test_split(tmp_path: Path) -> None:
    run_here(tmp_path / "run", "method=ce", "dataset.validation.fraction=0.2", "evaluation.every=1")
    content = record(tmp_path / "run")
    assert content["class_counts"][0] == 120 - 24
    assert set(content["stages"][0]["best_on_validation"]) == {"balanced", "epoch"}


def test_a_deleted_stage_2_is_redone_from_the_stage_1_in_the_folder(mislas: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(mislas, copy)
    shutil.rmtree(copy / "stage2")
    overrides = ("method=mislas", "stage2.epochs=2", "evaluation.every=1", "stage_cache.enabled=false", "resume=true")
    run_here(copy, *overrides)
    assert_equal_weights(weights(mislas, "stage2"), weights(copy, "stage2"))


def test_a_stage_that_time_ends_says_so_in_table_record_and_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = itertools.count()  # before training, and after each step

    def look(_: Timer, trainer: Any) -> None:
        trainer.should_stop = next(looks) == 9

    monkeypatch.setattr(Timer, "_check_time_remaining", look)
    run_here(tmp_path / "run", "method=ce", "stage1.epochs=4", "trainer.max_time=00:00:00:09", "evaluation.every=1")
    content = record(tmp_path / "run")
    (stage,) = content["stages"]
    assert (stage["epochs"], stage["stopped_after"], stage["stopped_by"]) == (4, 1, "trainer.max_time")
    assert content["partial"] == {"trainer.max_time": "00:00:00:09"}
    first, second = read_metrics(tmp_path / "run" / "stage1" / "metrics.csv")
    assert (first["steps_left"], second["steps_left"]) == ("", "1")  # of the 5 steps of an epoch
    assert float(second["train_loss"]) > 0.5 * float(first["train_loss"])  # a mean over the steps that were taken
    said = capsys.readouterr().out
    assert "\nstage1 stopped by trainer.max_time after 1 of 4 epochs\n" in said


def test_a_stage_that_time_ends_is_shared_by_no_other_run_nor_is_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = itertools.count()

    def look(_: Timer, trainer: Any) -> None:
        trainer.should_stop = next(looks) == 9  # in the first run's stage 1 alone

    monkeypatch.setattr(Timer, "_check_time_remaining", look)
    for name in ("cut", "whole"):
        run_here(tmp_path / name, "method=crt", "stage2.epochs=1", "trainer.max_time=00:01:00:00")
    run_here(tmp_path / "unlimited", "method=crt", "stage2.epochs=1")
    cut, whole, unlimited = (record(tmp_path / name)["stages"] for name in ("cut", "whole", "unlimited"))
    assert ["stopped_after" in stage for stage in (*cut, *whole)] == [True, False, False, False]
    assert [stage["cached"] for stage in (*whole, *unlimited)] == [False, False, True, True]


def test_a_run_within_its_time_has_the_record_of_any_other(tmp_path: Path) -> None:
    run_here(tmp_path / "run", "method=ce", "trainer.max_time=00:01:00:00")
    content = record(tmp_path / "run")
    assert not {"partial", "tested"} & content.keys()
    assert not {"stopped_after", "stopped_by"} & content["stages"][0].keys()


def test_no_time_at_all_is_no_training_and_is_said(tmp_path: Path) -> None:
    run_here(tmp_path / "run", "method=ce", "trainer.max_time=00:00:00:00")
    assert record(tmp_path / "run")["stages"][0]["stopped_after"] == 0


def test_a_part_of_the_test_images_and_a_callback_that_stops_are_in_the_record(tmp_path: Path) -> None:
    stop = ("callbacks=early_stopping", "callbacks.early_stopping.monitor=test_all", "evaluation.every=1")
    stop += ("callbacks.early_stopping.mode=min", "callbacks.early_stopping.patience=1", "stage1.epochs=9")
    run_here(tmp_path / "run", "method=ce", *stop, "trainer.limit_test_batches=0.5")
    content = record(tmp_path / "run")
    (stage,) = content["stages"]
    assert 2 <= stage["stopped_after"] < 9
    assert stage["stopped_by"] == "callbacks.early_stopping"
    assert content["tested"]["of"] == 500
    assert 0 < content["tested"]["images"] < 500
