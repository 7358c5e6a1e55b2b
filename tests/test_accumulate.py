"""Accumulated gradients: a batch taken in parts makes the step that it makes as a whole; torch.compile beside it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from runs import assert_equal_weights, composed, run_here, weights
from test_distributed_run import run_on_rank
from torch._dynamo.utils import counters

from ltexp.config import TrainerConfig, to_config
from ltexp.errors import ConfigError
from ltexp.run_folder import read_metrics
from ltexp.training.composition import check_composition
from ltexp.training.session import check_numerics
from ltexp.training.stage import rows_of

# without batch statistics, and slow enough that rounding does not grow
FROZEN = ("stage1.batch_norm=frozen", "stage1.optimizer.lr=0.01", "stage_cache.enabled=false", "stage1.epochs=1")
OBJECTIVES = {
    "weights by class": ("method=cb_ce",),
    "weights by class, mixed, clipped": (
        "method=mixup",
        "reweighting@stage1.reweighting=deferred",
        "stage1.reweighting.start=0",
        "trainer.gradient_clip_val=0.5",
    ),
    "noise in the loss, mixed": ("method=gcl", "stage2=null"),
    "draws in the loss": ("method=eql", "stage1.loss.threshold=0.1"),
    "soft labels of the epoch before": ("method=ce", "loss@stage1.loss=online_label_smoothing", "stage1.epochs=2"),
    "experts": ("method=ride_2", "stage1.reweighting.start=0"),
    "an auxiliary network": ("method=dasl", "stage2=null", "module@stage1.modules.auxiliary=single_way"),
}


def losses(folder: Path) -> list[float]:
    return [float(row["train_loss"]) for row in read_metrics(folder / "stage1" / "metrics.csv")]


def test_every_process_has_as_many_parts_and_every_row_is_in_one() -> None:
    for size in range(1, 40):
        for world in (1, 2, 3):
            rows = [max(1, len(range(rank, size, world))) for rank in range(world)]
            for most in (1, 2, 4, 7):
                count = max(1, min(most, size // world))
                parts = [[rows_of(own, number, count) for number in range(count)] for own in rows]
                assert len({len(own) for own in parts}) == 1
                assert len(parts[0]) == max(1, min(most, size // world))
                for own, cut in zip(rows, parts, strict=True):
                    assert [row for part in cut for row in range(own)[part]] == list(range(own))
                    assert all(range(own)[part] for part in cut)


@pytest.mark.parametrize("overrides", OBJECTIVES.values(), ids=OBJECTIVES)
def test_four_parts_train_as_the_whole_batch_does(overrides: tuple[str, ...], tmp_path: Path) -> None:
    if "method=dasl" in overrides:  # whose auxiliary network has batch norms of its own
        overrides = (*overrides, "stage1.modules.auxiliary.trainable=false")
    for parts in (1, 4):  # the last batch of 321 images has 65 rows
        run_here(tmp_path / str(parts), *FROZEN, *overrides, f"trainer.accumulate={parts}")
    one, four = (weights(tmp_path / str(parts), "stage1") for parts in (1, 4))
    assert_equal_weights(one, four, tolerance=2e-5)
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "4"), rel=1e-5)


@pytest.mark.slow
def test_the_comparison_notices_batch_statistics(tmp_path: Path) -> None:
    """The control: where each part is normalised by itself, the weights do differ."""
    overrides = (*FROZEN, "stage1.batch_norm=train", "method=ce")
    for parts in (1, 4):
        run_here(tmp_path / str(parts), *overrides, f"trainer.accumulate={parts}")
    with pytest.raises(AssertionError):
        assert_equal_weights(*(weights(tmp_path / str(parts), "stage1") for parts in (1, 4)), tolerance=2e-5)


@pytest.mark.slow
def test_two_processes_in_parts_train_as_one_with_the_whole_batch(tmp_path: Path, run_on_ranks: Any) -> None:
    overrides = (*FROZEN, *OBJECTIVES["weights by class, mixed, clipped"], "loss@stage1.loss=equalization")
    run_here(tmp_path / "one", *overrides)
    run_on_ranks(run_on_rank, 2, str(tmp_path / "two"), (*overrides, "trainer.devices=2", "trainer.accumulate=3"))
    assert_equal_weights(weights(tmp_path / "one", "stage1"), weights(tmp_path / "two", "stage1"), tolerance=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "backend"),
    [
        ("mislas", "eager"),  # which reads features
        ("dasl", "eager"),  # which reads maps
        pytest.param("crt", "inductor", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")),
    ],
)
def test_a_compiled_backbone_trains_the_same_network(method: str, backend: str, tmp_path: Path) -> None:
    overrides = (f"method={method}", "stage2.epochs=1", "stage_cache.enabled=false", "stage1.optimizer.lr=0.01")
    run_here(tmp_path / "plain", *overrides)
    torch.compiler.reset()
    counters.clear()
    run_here(tmp_path / "compiled", *overrides, "trainer.compile=true", f"trainer.compile_backend={backend}")
    assert counters["stats"]["unique_graphs"] > 0
    for stage in ("stage1", "stage2"):  # by the same names
        one, other = weights(tmp_path / "plain", stage), weights(tmp_path / "compiled", stage)
        assert_equal_weights(one, other, tolerance=1e-4)


def test_values_that_cannot_be_are_answered_at_once() -> None:
    for override, answer in [
        ("trainer.accumulate=0", "at least 1"),
        ("trainer.compile_backend=gcc", "inductor"),
        ("trainer.precision=16-mixed", "needs a GPU"),
    ]:
        with pytest.raises(ConfigError, match=answer):
            composed("method=ce", override)


def test_what_the_device_cannot_compute_with_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match="needs a GPU and torch sees none"):  # trainer.accelerator=auto
        check_numerics(TrainerConfig(precision="16-mixed"), cpu)
    monkeypatch.setenv("PATH", "")
    check_numerics(TrainerConfig(compile=True, compile_backend="aot_eager"), cpu)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"):
        check_numerics(TrainerConfig(compile=True), cpu)


@pytest.mark.parametrize("by", ["norm", "value"])
def test_a_fused_optimizer_clips_in_bf16(by: str, tmp_path: Path) -> None:
    overrides = (
        "method=ce",
        *FROZEN,
        "trainer=bf16",
        "trainer.gradient_clip_val=0.01",
        f"trainer.gradient_clip_algorithm={by}",
    )
    for name, fused in {"plain": False, "fused": True}.items():
        run_here(tmp_path / name, *overrides, f"+stage1.optimizer.fused={fused}")
    one, other = (weights(tmp_path / name, "stage1") for name in ("plain", "fused"))
    assert_equal_weights(one, other, tolerance=1e-3)


def test_a_fused_optimizer_does_not_clip_in_fp16() -> None:
    words = ("method=ce", "trainer.accelerator=auto", "trainer.precision=16-mixed", "trainer.gradient_clip_val=1.0")
    with pytest.raises(ConfigError, match=r"stage1: a fused optimizer undoes fp16's scaling itself, .*fused=false"):
        check_composition(to_config(composed(*words, "+stage1.optimizer.fused=true")))


def test_fp16_undoes_its_scaling_before_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU fp16 comes with a scale of 65,536; here the same Lightning plugin, which the CPU has as well."""
    overrides = (*FROZEN, "method=mixup", "trainer.gradient_clip_val=0.5", "trainer.accumulate=2")
    run_here(tmp_path / "float32", *overrides)
    trainer = pl.Trainer

    def in_half_precision(**settings: Any) -> pl.Trainer:
        return trainer(**{**settings, "precision": None, "plugins": [MixedPrecision("16-mixed", "cpu")]})

    monkeypatch.setattr(pl, "Trainer", in_half_precision)
    run_here(tmp_path / "fp16", *overrides)
    one, other = (weights(tmp_path / name, "stage1") for name in ("float32", "fp16"))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert_equal_weights(one, other, tolerance=3e-3)
    assert losses(tmp_path / "float32") == pytest.approx(losses(tmp_path / "fp16"), rel=1e-2)
