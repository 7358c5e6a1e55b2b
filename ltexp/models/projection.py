"""Modules of contrastive learning: projection heads, prototypes of classes, and a momentum copy of the network."""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config.require import is_whole, require
from ltexp.models.backbone import Backbone
from ltexp.models.model import Model
from ltexp.models.module import StageModule


def projection(width_in: int, hidden: Sequence[int], width: int, batch_norm: bool) -> nn.Sequential:
    """Linear layers of the `hidden` widths with ReLU (and batch norm before it), and a last one of `width`.

    Raises:
        ConfigError: for a width that is no whole number of 1 or more.
    """
    for key, value in (*(("hidden", value) for value in hidden), ("width", width)):
        require(is_whole(value, 1), key, value, "a whole number of 1 or more")
    layers: list[nn.Module] = []
    for size in hidden:
        layers.append(nn.Linear(width_in, size))
        if batch_norm:
            layers.append(nn.BatchNorm1d(size))
        layers.append(nn.ReLU())
        width_in = size
    return nn.Sequential(*layers, nn.Linear(width_in, width))


class ProjectionHead(StageModule):
    """Features of all views (V, B, D) to unit rows (V, B, width), each batch of a view with those of the others.

    Args:
        feature_dim: D.
        width: of a projection. Default 128 (Khosla et al., NeurIPS 2020).
        hidden: widths of the hidden layers. Default: one, as wide as the features (the same).
        batch_norm: whether batch norm follows each hidden layer. Default false (the same).

    Raises:
        ConfigError: for a width below 1.
    """

    reads = ("view_features",)
    gives = ("projections",)

    def __init__(
        self, feature_dim: int, width: int = 128, hidden: Sequence[int] | None = None, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.layers = projection(feature_dim, [feature_dim] if hidden is None else hidden, width, batch_norm)

    def forward(self, view_features: Tensor) -> Tensor:
        """(V, B, width), float32."""
        with torch.autocast(view_features.device.type, enabled=False):
            rows: Tensor = self.layers(view_features.float().flatten(0, -2))
            return F.normalize(rows, dim=-1).view(*view_features.shape[:-1], -1)


class Siamese(StageModule):
    """Features of all views (V, B, D) to projections and, of these, predictions, (V, B, width) each; two linear layers.

    SimSiam's heads (Chen and He, CVPR 2021) without batch norm and ReLU, as GLMC has them.

    Args:
        feature_dim: D.
        width: default 128 (GLMC).

    Raises:
        ConfigError: for a width below 1.
    """

    reads = ("view_features",)
    gives = ("projections", "predictions")

    def __init__(self, feature_dim: int, width: int = 128) -> None:
        super().__init__()
        require(is_whole(width, 1), "width", width, "a whole number of 1 or more")
        self.project, self.predict = nn.Linear(feature_dim, width), nn.Linear(width, width)

    def forward(self, view_features: Tensor) -> tuple[Tensor, Tensor]:
        """(projections, predictions), float32."""
        with torch.autocast(view_features.device.type, enabled=False):
            projections: Tensor = self.project(view_features.float())
            return projections, self.predict(projections)


class BalancedHead(StageModule):
    """A second linear classifier over all views, whose answer is the model's (GLMC; Du et al., CVPR 2023).

    It gives `balanced_logits` (V, B, C) and in the place of the classifier's `logits` those of the first view.

    Args:
        feature_dim: D.
        num_classes: C.
    """

    reads = ("view_features",)
    gives = ("balanced_logits", "logits")

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_dim, num_classes)

    def forward(self, view_features: Tensor) -> tuple[Tensor, Tensor]:
        """(logits of all views, those of the first), float32."""
        with torch.autocast(view_features.device.type, enabled=False):
            logits: Tensor = self.linear(view_features.float())
            return logits, logits[0]


class ClassPrototypes(StageModule):
    """The classifier's rows (C, D) through a network of their own to unit rows (C, width): BCL's class centres.

    Zhu et al., CVPR 2022, Sec. 3.3. The gradient reaches the classifier's weight as well.

    Args:
        feature_dim: D.
        width: as the projections'. Default 128 (BCL on CIFAR).
        hidden: widths of the hidden layers. Default: one of 512 (the same).
        batch_norm: default true (the same).

    Raises:
        ConfigError: for a width below 1.
    """

    reads = ("class_vectors",)
    gives = ("prototypes",)

    def __init__(
        self, feature_dim: int, width: int = 128, hidden: Sequence[int] = (512,), batch_norm: bool = True
    ) -> None:
        super().__init__()
        self.layers = projection(feature_dim, hidden, width, batch_norm)

    def forward(self, class_vectors: Tensor) -> Tensor:
        """(C, width), float32."""
        with torch.autocast(class_vectors.device.type, enabled=False):
            return F.normalize(cast(Tensor, self.layers(class_vectors.float())), dim=-1)


class MomentumContrast(StageModule):
    """A projection head of the first view, and a momentum copy of backbone and head for the keys of the second.

    He et al., CVPR 2020. After each step the copy's parameters move to the trained ones by 1 - momentum; its batch
    norms keep statistics of their own. Anything that learns is the head; the copy has no gradient.

    Args:
        backbone: the stage's, which the copy is of.
        feature_dim: D.
        width: of a projection. Default 128 (PaCo's large sets; 32 on CIFAR).
        hidden: widths of the head's hidden layers. Default: one, as wide as the features (PaCo).
        batch_norm: default true (the same).
        momentum: default 0.999 (the same).

    Raises:
        ConfigError: for a width below 1, or a momentum out of [0, 1).
    """

    reads = ("features", "view_inputs")
    gives = ("projections", "keys")
    started: Tensor

    def __init__(
        self,
        backbone: Backbone,
        feature_dim: int,
        width: int = 128,
        hidden: Sequence[int] | None = None,
        batch_norm: bool = True,
        momentum: float = 0.999,
    ) -> None:
        super().__init__()
        require(0 <= momentum < 1, "momentum", momentum, "a number of 0 or more and below 1")
        self.momentum = momentum
        self.head = projection(feature_dim, [feature_dim] if hidden is None else hidden, width, batch_norm)
        self.key_backbone = copy.deepcopy(backbone).requires_grad_(False)
        self.key_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("started", torch.zeros(()))  # 0 or 1, a number: averages of weights subtract buffers
        self._started = False

    def forward(self, features: Tensor, view_inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Unit projections (1, B, width) of features (B, D), and unit keys (B, width) of the last view's images."""
        with torch.no_grad():
            keys: Tensor = self.key_head(self.key_backbone(view_inputs[-1]))
        rows: Tensor = self.head(features)
        return F.normalize(rows, dim=-1)[None], F.normalize(keys.float(), dim=-1)

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """The copy follows; in its first step, wherever the network started from, it becomes the network."""
        if not self._started:
            self._started = bool(self.started)  # read once: reading it makes the host wait for the device
        copies: list[Tensor] = [*self.key_backbone.parameters(), *self.key_head.parameters()]
        trained: list[Tensor] = [*cast(Model, model).backbone.parameters(), *self.head.parameters()]
        torch._foreach_lerp_(copies, trained, 1 - self.momentum if self._started else 1.0)
        self.started.fill_(1.0)
        self._started = True
