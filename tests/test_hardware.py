"""Memory that runs out and arithmetic that a processor lacks are said in a line that helps."""

from pathlib import Path

import pytest
import torch
from runs import composed, run_here, tiny, weights
from torch import Tensor

from ltexp.config import to_config
from ltexp.errors import ConfigError, TrainingError
from ltexp.losses.cross_entropy import CrossEntropy
from ltexp.models.cifar_resnet import CifarResNet
from ltexp.training import run_stage
from ltexp.training.hardware import half_against_single
from ltexp.training.session import check_numerics


class Greedy(CrossEntropy):
    """Asks for more memory than any machine has."""

    def forward(self, *arguments: object, **keywords: object) -> Tensor:
        return torch.empty(2**60)


def test_memory_that_runs_out_names_batch_size_and_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CrossEntropy, "forward", Greedy.forward)
    with pytest.raises(TrainingError, match=r"stage1: the machine's memory .*stage1\.batch_size=16.*accumulate=2"):
        run_here(tmp_path / "run", *tiny("ce", epochs=1))


def test_another_error_of_pytorch_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CrossEntropy, "forward", lambda *_, **__: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        run_here(tmp_path / "run", *tiny("ce", epochs=1))


def test_bf16_on_a_card_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = to_config(composed("trainer.precision=bf16-mixed")).trainer
    check_numerics(trainer, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "An older card")
    with pytest.raises(ConfigError, match=r"trainer\.precision=bf16-mixed: An older card has no bf16 arithmetic"):
        check_numerics(trainer, torch.device("cuda", 0))


def test_timing_a_backbone_leaves_it_and_the_draws_as_they_are() -> None:
    backbone = CifarResNet(depth=8).eval()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    sample, state = torch.rand(1, 3, 32, 32), torch.get_rng_state()
    assert half_against_single(backbone, sample, 4) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert not backbone.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_a_long_stage_in_bf16_says_whether_that_pays_and_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*tiny("ce", epochs=1), "trainer.precision=bf16-mixed"]
    run_here(tmp_path / "silent", *words)
    assert "of the time in fp32" not in capsys.readouterr().out
    monkeypatch.setattr(run_stage, "WORTH_MEASURING", 1)
    run_here(tmp_path / "told", *words)
    assert "stage1  a step in bf16 takes" in capsys.readouterr().out
    silent, told = (weights(tmp_path / name, "stage1") for name in ("silent", "told"))
    assert all(torch.equal(tensor, told[key]) for key, tensor in silent.items())
