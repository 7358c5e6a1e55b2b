"""Averages of weights: what they are, and that they resume, go over processes and stand beside the last weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, WeightAveraging
from rich.console import Console
from runs import assert_equal_weights, run_here, tiny, weights
from test_distributed_methods import compare
from test_every_method import resume_in_each
from torch.optim.swa_utils import AveragedModel

from ltexp.evaluation.record import read_record
from ltexp.models.checkpoint import load_part
from ltexp.models.cifar_resnet import CifarResNet
from ltexp.models.projection import MomentumContrast
from ltexp.report.__main__ import main as report
from ltexp.report.table import run_table
from ltexp.training.callbacks.whole_numbers import keep_whole_numbers
from ltexp.training.stage import Stage

EMA = ("callbacks=ema", "callbacks.ema.decay=0.8")


def test_the_average_is_the_formulas_and_the_last_weights_are_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    step = Stage.training_step

    def noting(self: Stage, *batch: Any) -> None:
        step(self, *batch)
        seen.append({name: value.detach().clone() for name, value in self.model.classifier.state_dict().items()})

    with monkeypatch.context() as context:
        context.setattr(Stage, "training_step", noting)
        run_here(tmp_path / "averaged", *tiny("ce"), *EMA)
    average = seen[0]
    for state in seen[1:]:
        average = {name: 0.8 * value + 0.2 * state[name] for name, value in average.items()}
    found = weights(tmp_path / "averaged", "stage1")
    torch.testing.assert_close({name: found[f"classifier.{name}"] for name in average}, average)

    run_here(tmp_path / "plain", *tiny("ce"))
    record, plain = (read_record(tmp_path / name) for name in ("averaged", "plain"))
    assert record["stages"][0]["last_weights"] == plain["metrics"]
    assert "last_weights" not in plain["stages"][0]
    state = torch.load(tmp_path / "averaged" / "stage1" / "last_weights.pt", weights_only=True)
    assert_equal_weights(state, weights(tmp_path / "plain", "stage1"))
    console = Console(width=200)
    with console.capture() as capture:
        console.print(run_table(record))
    assert "last weights" in capture.get()
    assert report([str(tmp_path / "averaged"), "posthoc=true", "format=csv"]) == 0
    assert ",stage1_last_weights," in capsys.readouterr().out


def test_class_counts_are_not_averaged(tmp_path: Path) -> None:
    """Rounded down, a mean of 7 and 7 may be 6: the next stage would have other class counts, and other shots."""
    run_here(tmp_path / "run", *tiny("crt"), "callbacks=ema", "callbacks.ema.decay=0.9")
    for stage in ("stage1", "stage2"):
        content = torch.load(tmp_path / "run" / stage / "checkpoint.pt", weights_only=True)
        assert content["class_counts"] == [24, 13, 7, 4]


@pytest.mark.parametrize(
    ("averaging", "expected"),
    [(EMAWeightAveraging(decay=0.9), [0.1, 1.1]), (WeightAveraging(), [0.5, 1.5])],
    ids=["ema", "mean"],
)
def test_integers_and_bools_are_taken_as_they_are(averaging: WeightAveraging, expected: list[float]) -> None:
    keep_whole_numbers(averaging)
    module = torch.nn.Linear(1, 1)
    module.register_buffer("counts", torch.tensor([7, 3]))
    module.register_buffer("rare", torch.tensor([False, True]))
    module.register_buffer("mean", torch.tensor([0.0, 1.0]))
    average = AveragedModel(module, use_buffers=True, **averaging._kwargs)
    average.update_parameters(module)
    module.mean += 1
    module.rare.logical_not_()
    average.update_parameters(module)
    assert average.module.counts.tolist() == [7, 3]
    assert average.module.rare.tolist() == [True, False]
    assert average.module.mean.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("callback", [EMA, ("callbacks=weight_averaging",)])
def test_a_momentum_copy_is_averaged_too(callback: tuple[str, ...], tmp_path: Path) -> None:
    run_here(tmp_path / "run", *tiny("paco"), *callback)
    assert weights(tmp_path / "run", "stage1")["modules.contrast.started"] > 0


def test_a_momentum_copy_of_before_is_loaded(tmp_path: Path) -> None:
    """Its mark was of bools."""
    module = MomentumContrast(CifarResNet(depth=8), feature_dim=64)
    state = module.state_dict() | {"started": torch.tensor(True)}
    load_part(module, state, "the module")
    assert module.started == 1


@pytest.mark.parametrize("callback", [EMA, ("callbacks=weight_averaging",)])
def test_killed_and_resumed_equals_uninterrupted(
    callback: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume_in_each(["stage1"], (*tiny("ce"), *callback), tmp_path, monkeypatch)
    last = [
        torch.load(tmp_path / name / "stage1" / "last_weights.pt", weights_only=True) for name in ("whole", "resumed")
    ]
    assert_equal_weights(*last)


def test_a_stage_from_the_cache_brings_its_last_weights(tmp_path: Path) -> None:
    overrides = (*tiny("ce"), *EMA, "stage_cache.enabled=true")
    for name in ("one", "two"):
        run_here(tmp_path / name, *overrides)
    one, two = (read_record(tmp_path / name)["stages"][0] for name in ("one", "two"))
    assert two["cached"]
    assert one["last_weights"] == two["last_weights"]


@pytest.mark.slow
def test_two_processes_average_to_the_weights_of_one(tmp_path: Path, run_on_ranks: Any) -> None:
    compare(tmp_path, 2, (*tiny("ce", "batch_norm=frozen"), *EMA), run_on_ranks)
    one, two = (
        json.loads((tmp_path / name / "evaluations" / "stage1_last_weights.json").read_text())["metrics"]
        for name in ("one", "several")
    )
    assert one["per_class"] == two["per_class"]
