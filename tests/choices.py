"""Builds a config choice as the command line would, for tests that ask for it by name."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

CONF = Path(__file__).parents[1] / "conf"


def names(group: str) -> list[str]:
    """The choices of a config group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def build(group: str, name: str, **keywords: Any) -> Any:
    """conf/<group>/<name>.yaml, instantiated with further keywords."""
    return instantiate(OmegaConf.load(CONF / group / f"{name}.yaml"), **keywords)
