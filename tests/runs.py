"""Runs composed as the command line composes them, inside the test's own process."""

import sys
from pathlib import Path
from typing import Any

import torch
from clips import beside
from omegaconf import OmegaConf

from ltexp.config import Config, in_order, names_stage, to_config
from ltexp.config.composer import compose
from ltexp.config.path import reading_config_dirs
from ltexp.launching.freeze import freeze

SMALL = (
    "stage1.epochs=2",
    "evaluation.every=0",
    "evaluation.figures=false",
    "trainer.accelerator=cpu",
    "trainer.progress=false",
    "logger=none",
)

TINY = (
    "dataset.num_classes=4",
    "dataset.max_per_class=24",
    "dataset.imbalance_ratio=6",  # 24, 13, 7 and 4 images
    "evaluation.many_shot_above=15",
    "evaluation.few_shot_below=8",
    "stage_cache.enabled=false",
)


def composed(*overrides: str, small: bool = True, project: Path | None = None) -> dict[str, Any]:
    """The frozen config of a command line.

    Args:
        small: two epochs of the quickstart's data, silent, without figures.
        project: a folder outside ltexp whose modules go on the Python path, with `conf/` as --config-dir names it.
    """
    if project is not None and str(project) not in sys.path:
        sys.path.append(str(project))
    with reading_config_dirs([] if project is None else [project / "conf"]):
        return freeze(compose([*(SMALL if small else ()), *overrides]))


def tiny(method: str, *keys: str, epochs: int = 2, project: Path | None = None) -> tuple[str, ...]:
    """A run of `method` on 48 digits of 4 classes, in batches of 16.

    Args:
        keys: set on each stage that the method trains, such as `batch_norm=frozen`.
        epochs: of each of these stages.
        project: see `composed`.
    """
    stages = composed(f"method={method}", project=project)
    overrides = [f"method={method}", *TINY, *beside(method, classes=4)]
    for name in trained_stages(method, project):
        overrides += [f"{name}.{key}" for key in (f"epochs={epochs}", "batch_size=16", *keys)]
        if "tail_at_most" in stages[name]["features"]:  # of the 24 and 13 of the head features are generated
            overrides.append(f"{name}.features.tail_at_most=8")
        sized = (module for module, node in stages[name]["modules"].items() if "side" in node)
        overrides += [f"{name}.modules.{module}.side=2" for module in sized]  # of the last map of digits
    return tuple(overrides)


def trained_stages(method: str, project: Path | None = None) -> list[str]:
    """The stages that the method gives epochs."""
    stages = composed(f"method={method}", project=project)
    names = in_order(name for name in stages if names_stage(name))
    return [name for name in names if stages[name] and stages[name]["epochs"] > 0]


def run_here(folder: Path, *overrides: str, project: Path | None = None, device: str = "cpu") -> Config:
    """Composes a small run and does it in `folder`, in this process; its outputs lie beside the folder."""
    from ltexp.training.run import run

    plain = composed(f"paths.outputs={folder.parent}", *overrides, project=project)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain)))
    config = to_config(plain)
    run(config, folder, torch.device(device, 0) if device == "cuda" else torch.device(device))
    return config


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    """All tensors of a stage's checkpoint by name."""
    content = torch.load(folder / stage / "checkpoint.pt", weights_only=True)
    parts = {part: content[part] for part in ("backbone", "classifier")}
    parts |= {f"modules.{name}": module["state"] for name, module in content.get("modules", {}).items()}
    return {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}


def assert_equal_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    """Equal names and values, bit by bit unless a tolerance is given."""
    assert one.keys() == other.keys()
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
