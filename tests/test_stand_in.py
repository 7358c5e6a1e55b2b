"""On a device with a memory of its own (`stand_in.py`) runs, resumed ones, evaluations and answers are the CPU's."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import run_here, tiny, trained_stages, weights
from stand_in import stand_in
from test_every_method import UNTRAINED, Killed, every_method, kill_in
from torch.utils._pytree import tree_flatten

import ltexp
from ltexp import evaluate

# of which each has something else on the device: mixing and two stages, features and a score by class, teachers
TELLING = ("mislas", "glag", "bkd")


def near(one: Any, other: Any) -> None:
    """Equal, but for what other kernels of the same operation round otherwise."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def metrics_in(path: Path) -> list[Any]:
    """The numbers of a record or an evaluation, in order."""
    return tree_flatten(json.loads(path.read_text())["metrics"])[0]


@pytest.mark.parametrize("method", every_method(TELLING))
def test_each_method_is_as_on_the_cpu(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is a run that is killed there and resumed."""
    run_here(tmp_path / "cpu", *tiny(method))
    with stand_in(monkeypatch) as device:
        if method not in UNTRAINED:
            with monkeypatch.context() as context:
                kill_in(trained_stages(method)[-1], context)
                with pytest.raises(Killed):
                    run_here(tmp_path / "device", *tiny(method), device=device.type)
        run_here(tmp_path / "device", *tiny(method), "resume=true", device=device.type)
    for stage in trained_stages(method):
        near(weights(tmp_path / "device", stage), weights(tmp_path / "cpu", stage))
    found, expected = (metrics_in(tmp_path / name / "record.json") for name in ("device", "cpu"))
    assert found == pytest.approx(expected, abs=0.1)


EVALUATIONS = {
    "ce": (
        ("classifier=tau_normalized", "tau=range(0,1.5,0.5)"),
        ("classifier=nearest_class_mean",),
        ("classifier=logit_adjusted", "tau=1"),
        ("temperature=true", "features=true"),
        ("gradients=true", "batch_norm=true"),
        ("shift=forward5,uniform",),
        ("crops=4",),
    ),
    "sade": (("shift=forward5", "adapt=true"),),
}


@pytest.mark.parametrize("method", EVALUATIONS)
def test_evaluations_are_as_on_the_cpu(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_here(tmp_path / "cpu", *tiny(method, epochs=1), "dataset.validation.fraction=0.25")
    shutil.copytree(tmp_path / "cpu", tmp_path / "device")
    for words in EVALUATIONS[method]:
        assert evaluate.evaluate(*evaluate.parse([str(tmp_path / "cpu"), *words])) == 0
        with stand_in(monkeypatch):
            assert evaluate.evaluate(*evaluate.parse([str(tmp_path / "device"), *words])) == 0
    made = sorted((tmp_path / "cpu" / "evaluations").glob("*.json"))
    assert len(made) >= len(EVALUATIONS[method])
    for path in made:
        found = metrics_in(tmp_path / "device" / "evaluations" / path.name)
        assert found == pytest.approx(metrics_in(path), abs=0.1)
    for path in (tmp_path / "cpu").glob("features.npz"):
        with np.load(path) as one, np.load(tmp_path / "device" / path.name) as other:
            for key in (key for key in one.files if one[key].dtype.kind == "f"):
                np.testing.assert_allclose(other[key], one[key], rtol=1e-4, atol=1e-5)


def test_a_loaded_model_answers_as_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_here(tmp_path / "run", *tiny("mislas", epochs=1))
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16), dtype=np.uint8)
    expected = ltexp.load(tmp_path / "run", accelerator="cpu").predict(images).logits
    with stand_in(monkeypatch):
        given = ltexp.load(tmp_path / "run").predict(images).logits
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)


def test_what_a_gpu_refuses_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: values of both devices in one operation, numpy, a mask of the host; what a GPU does works."""
    with stand_in(monkeypatch) as device:
        there, here = torch.arange(4.0).to(device), torch.arange(4.0)
        for wrong in (lambda: there + here, lambda: torch.stack([here, there]), lambda: here[there.long()]):
            with pytest.raises(RuntimeError, match="two devices"):
                wrong()
        with pytest.raises(TypeError, match="copied to the host"):
            there.numpy()
        assert there.device == device
        assert there.sum().item() == 6
        assert there[torch.tensor([1, 2])].tolist() == [1, 2]
        assert torch.tensor([2.0], device=device).add_(there[:1] * 2 + 1).cpu().numpy() == 3
        assert torch.equal(here.copy_(there), there.cpu())
