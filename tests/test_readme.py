"""What the README says is so: its code runs, its tables name what there is."""

import re
from pathlib import Path

import pytest
import torch
from choices import CONF
from omegaconf import OmegaConf
from runs import composed, run_here

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The README's loss and sampler as a user's own modules on the Python path."""
    loss, sampler = PYTHON
    (tmp_path / "my_loss.py").write_text(loss)
    (tmp_path / "cube_root.py").write_text(sampler)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_readmes_loss_and_sampler_train(own_modules: Path) -> None:
    run_here(
        own_modules / "run",
        "method=ce",
        "stage1.epochs=1",
        "stage1.loss._target_=my_loss.MyLoss",
        "~stage1.loss.scale",
        "+stage1.loss.temperature=4.0",
        "stage1.sampler._target_=cube_root.CubeRoot",
    )
    assert (own_modules / "run" / "predictions.npz").exists()


def test_the_readmes_sampler_draws_as_it_says(own_modules: Path) -> None:
    from cube_root import CubeRoot

    labels = torch.repeat_interleave(torch.arange(2), torch.tensor([8, 1]))
    sampler = CubeRoot(labels, torch.tensor([8, 1]))
    assert sampler.class_probabilities(0, 1).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_the_readmes_method_composes(tmp_path: Path) -> None:
    (method,) = (text for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "@package" in text)
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "my_method.yaml").write_text(method)
    plain = composed("method=my_method", f"hydra.searchpath=[file://{tmp_path}]", small=False)
    assert plain["stage1"]["loss"]["_target_"].endswith("BalancedSoftmax")
    assert plain["stage2"]["epochs"] == 20


def test_the_readme_is_short_and_complete() -> None:
    assert len(README.splitlines()) < 250
    assert not re.findall(r"^[A-Z]+_(?:TABLE|NOTES)$", README, re.MULTILINE)


def test_config_files_start_with_what_they_are() -> None:
    for path in CONF.rglob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if line != "# @package _global_"]
        assert lines[0].startswith("# "), path
        OmegaConf.load(path)
