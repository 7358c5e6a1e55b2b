"""RIDE's networks of experts: shared first blocks, then blocks and a head for each expert (Wang et al., ICLR 2021)."""

from collections.abc import Callable
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config.require import require
from ltexp.errors import SettingError
from ltexp.models.classifier import Classifier, copy_map, fresh_linear
from ltexp.outputs import ModelOutput


def expert_branches(experts: int, blocks: Callable[[], list[nn.Module]]) -> nn.ModuleList:
    """The blocks of each of `experts` experts, which `blocks` makes anew for each.

    Raises:
        ConfigError: for fewer than one.
    """
    require(experts >= 1, "experts", experts, "a whole number of 1 or more, or null")
    return nn.ModuleList(nn.ModuleList(blocks()) for _ in range(experts))


def run_branches(shared: Tensor, branches: nn.ModuleList, maps: bool) -> tuple[Tensor, list[Tensor]]:
    """Features (B, E, D) of the E experts over the shared blocks' map (B, c, h, w), and their maps where asked for.

    A level's map holds those of all experts one after the other, (B, E c_i, h_i, w_i).
    """
    levels: list[list[Tensor]] = []
    features = []
    for branch in branches:
        x, own = shared, []
        for block in cast(nn.ModuleList, branch):
            x = cast(Tensor, block(x))
            own.append(x)
        levels.append(own)
        features.append(x.mean((2, 3)))
    joined = [torch.cat(level, dim=1) for level in zip(*levels, strict=True)] if maps else []
    return torch.stack(features, dim=1), joined


class ExpertHeads(Classifier):
    """Base of the classifiers with a head for each expert; the network's logits are the mean of the heads'.

    Args:
        feature_dim: D, of each expert.
        num_classes: C.
        experts: E, as the backbone's.

    Attributes:
        choice: its name in conf/classifier/.

    Raises:
        ConfigError: without a number of experts.
    """

    choice: ClassVar[str]
    experts: int

    def __init__(self, feature_dim: int, num_classes: int, experts: int | None) -> None:
        super().__init__(feature_dim, num_classes)
        if experts is None or experts < 1:
            raise SettingError("experts", experts, f"1 or more: {self.choice} is for experts, so set backbone.experts")
        self.experts = experts

    def forward(self, features: Tensor) -> Tensor:
        """The mean (B, C) of the experts' logits of features (B, E, D)."""
        return self.expert_logits(features).mean(0)

    def output(self, features: Tensor) -> ModelOutput:
        """The experts' logits beside their mean, of features (B, E, D)."""
        experts = self.expert_logits(features.float())
        return ModelOutput(logits=experts.mean(0), features=features, expert_logits=experts)

    def expert_logits(self, features: Tensor) -> Tensor:
        """Logits (E, B, C) of features (B, E, D)."""
        raise NotImplementedError


class ExpertCosine(ExpertHeads):
    """A cosine head for each expert; the network's logits are the mean of the experts' cosines.

    Args:
        feature_dim: D, of each expert.
        num_classes: C.
        experts: E, as the backbone's.

    Raises:
        ConfigError: without a number of experts.
    """

    kind = "cosine"
    choice = "expert_cosine"
    weight: nn.Parameter

    def __init__(self, feature_dim: int, num_classes: int, experts: int | None = None) -> None:
        super().__init__(feature_dim, num_classes, experts)
        self.weight = nn.Parameter(
            F.normalize(torch.empty(self.experts, num_classes, feature_dim).uniform_(-1, 1), dim=2)
        )

    def expert_logits(self, features: Tensor) -> Tensor:
        """Cosines (E, B, C) in [-1, 1], float32, of features (B, E, D)."""
        with torch.autocast(features.device.type, enabled=False):
            unit = F.normalize(features.float(), dim=2).transpose(0, 1)
            return unit @ F.normalize(self.weight.float(), dim=2).transpose(1, 2)

    @torch.no_grad()
    def start_from(self, source: Classifier) -> None:
        """Continues the heads of the same number of experts; see `Classifier.start_from`."""
        self._check_source(source, ["cosine"])
        self.weight.copy_(cast(ExpertCosine, source).weight)


class ExpertLinear(ExpertHeads):
    """A linear head for each expert; the network's logits are the mean of the experts' (NCL; Li et al., CVPR 2022).

    Args:
        feature_dim: D, of each expert.
        num_classes: C.
        experts: E, as the backbone's.
        bias: whether each head has one.
        init: the way the weights are drawn, see `fresh_linear`.

    Raises:
        ConfigError: without a number of experts.
    """

    choice = "expert_linear"
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        feature_dim: int,
        num_classes: int,
        experts: int | None = None,
        bias: bool = True,
        init: str = "kaiming",
    ) -> None:
        super().__init__(feature_dim, num_classes, experts)
        heads = [fresh_linear(feature_dim, num_classes, bias, init) for _ in range(self.experts)]
        self.weight = nn.Parameter(torch.stack([weight for weight, _ in heads]))
        biases = [own for _, own in heads if own is not None]
        self.register_parameter("bias", nn.Parameter(torch.stack(biases)) if biases else None)

    def expert_logits(self, features: Tensor) -> Tensor:
        """Logits (E, B, C) of features (B, E, D)."""
        logits = features.transpose(0, 1) @ self.weight.transpose(1, 2)
        return logits if self.bias is None else logits + self.bias[:, None]

    @torch.no_grad()
    def start_from(self, source: Classifier) -> None:
        """Continues the heads of the same number of experts; see `Classifier.start_from`."""
        self._check_source(source, ["linear"])
        other = cast(ExpertLinear, source)
        copy_map(self.weight, self.bias, other.weight, other.bias)
