"""The backbones that `conf/backbone/` names: `ltexp.backbones.CifarResNet(32)` takes images (B, 3, H, W) to features.

Each is a `ltexp.models.backbone.Backbone`, a `torch.nn.Module` whose `feature_dim` says how wide its features are.
"""

from typing import Any

from ltexp.models.backbone import Backbone
from ltexp.parts import classes, find

__all__ = ["Backbone"]


def __getattr__(name: str) -> Any:
    return find(__name__, "backbone", name)


def __dir__() -> list[str]:
    return [*__all__, *classes("backbone")]
