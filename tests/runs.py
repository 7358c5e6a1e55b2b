"""Runs composed as the command line composes them, inside the test's own process."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from ltexp.config import Config, to_config
from ltexp.config.composer import compose
from ltexp.launching.freeze import freeze

SMALL = (
    "stage1.epochs=2",
    "evaluation.every=0",
    "evaluation.figures=false",
    "trainer.accelerator=cpu",
    "trainer.progress=false",
    "logger=none",
)


def composed(*overrides: str, small: bool = True) -> dict[str, Any]:
    """The frozen config of a command line; small: two epochs of the quickstart's data, silent, without figures."""
    return freeze(compose([*(SMALL if small else ()), *overrides]))


def run_here(folder: Path, *overrides: str) -> Config:
    """Composes a small run and does it in `folder`, in this process; its outputs lie beside the folder."""
    from ltexp.training.run import run

    plain = composed(f"paths.outputs={folder.parent}", *overrides)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain)))
    config = to_config(plain)
    run(config, folder, torch.device("cpu"))
    return config


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    """All tensors of a stage's checkpoint by name."""
    content = torch.load(folder / stage / "checkpoint.pt", weights_only=True)
    return {f"{part}.{name}": value for part in ("backbone", "classifier") for name, value in content[part].items()}


def assert_equal_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    """Equal names and values, bit by bit unless a tolerance is given."""
    assert one.keys() == other.keys()
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
