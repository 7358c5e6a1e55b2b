"""Auxiliary networks: they read the maps of every block, fuse them over scales and predict the class by themselves.

Dynamic Auxiliary Soft Labels (DaSL, Neural Networks 151, 2022), Sec. 3.2.3 and Fig. 3. Their logits are soft labels for
the classifier, their maps targets of the backbone's attention; after training they are dropped. What the paper leaves
open follows FRSKD (Ji et al., CVPR 2021), whose auxiliary network is the closest relative.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config.require import require
from ltexp.errors import ConfigError
from ltexp.models.module import StageModule


class AuxiliaryNetwork(StageModule):
    """The maps of B blocks to logits and to B maps of the same sizes. A subclass says how levels are fused.

    Every level b is `width` * c_b channels wide. `laterals` (the paper's Conv_L1) bring the blocks' maps there.

    Args:
        map_channels: c_b, the channels of each block's map, from the finest block to the coarsest.
        num_classes: C.
        width: default 2 (FRSKD).

    Raises:
        ConfigError: no maps, or a width below 1.
    """

    reads = ("feature_maps",)
    gives = ("auxiliary_logits", "auxiliary_maps")

    def __init__(self, map_channels: Sequence[int], num_classes: int, width: int = 2) -> None:
        super().__init__()
        if not map_channels:
            raise ConfigError("an auxiliary network reads feature maps, and this backbone offers none")
        require(width >= 1, "width", width, "a whole number of 1 or more")
        self.widths = [width * channels for channels in map_channels]
        self.laterals = nn.ModuleList(pointwise(c, w) for c, w in zip(map_channels, self.widths, strict=True))
        self.head = nn.Linear(self.widths[-1], num_classes)

    def check(self, *inputs: Any) -> None:
        """Refuses maps of a single place: there is nothing to attend to."""
        (maps,) = inputs
        sizes = ["x".join(str(side) for side in m.shape[2:]) for m in maps]
        if any(m.ndim != 4 or m[0, 0].numel() == 1 for m in maps):
            raise ConfigError(
                "an auxiliary network attends to places in a map, and the backbone's maps of this dataset are "
                f"{', '.join(sizes)}: choose a backbone with larger maps"
            )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, C) and fused maps (B, width * c_b, h_b, w_b) of the blocks' maps (B, c_b, h_b, w_b)."""
        fused = self.fuse([lateral(m) for lateral, m in zip(self.laterals, maps, strict=True)])
        pooled = fused[-1].mean((2, 3))
        with torch.autocast(pooled.device.type, enabled=False):
            logits = self.head(pooled.float())
        return logits, fused

    def fuse(self, levels: list[Tensor]) -> list[Tensor]:
        """The supervised maps, level by level, of the laterals' `levels`."""
        raise NotImplementedError


class SingleWay(AuxiliaryNetwork):
    """One path, from fine to coarse, of plain sums: L2_b = Conv(L1_b + Resize(L2_{b-1})) (Fig. 3a)."""

    def __init__(self, map_channels: Sequence[int], num_classes: int, width: int = 2) -> None:
        super().__init__(map_channels, num_classes, width)
        self.first = separable(self.widths[0])
        self.up = Path(self.widths, inputs=[2] * (len(self.widths) - 1), weighted=False)
        initialise(self)

    def fuse(self, levels: list[Tensor]) -> list[Tensor]:
        return cast(list[Tensor], self.up(self.first(levels[0]), [[level] for level in levels[1:]]))


class TwoWay(AuxiliaryNetwork):
    """A path down from coarse to fine, then one up again (Fig. 3b), of plain sums.

    L2_b = Conv(L1_b + Resize(L2_{b+1})) and L3_b = Conv(L2_b + Resize(L3_{b-1})). A level without a neighbour to fuse
    with is passed on: the coarsest L2 is L1, the finest L3 is L2 (FRSKD).
    """

    weighted = False

    def __init__(self, map_channels: Sequence[int], num_classes: int, width: int = 2) -> None:
        super().__init__(map_channels, num_classes, width)
        count = len(self.widths) - 1
        self.down = Path(self.widths[::-1], inputs=[2] * count, weighted=self.weighted)
        self.up = Path(self.widths, inputs=self._inputs_up(count), weighted=self.weighted)
        initialise(self)

    def _inputs_up(self, count: int) -> list[int]:
        return [2] * count

    def _beside(self, level: Tensor, downward: Tensor, coarsest: bool) -> list[Tensor]:
        return [downward]

    def fuse(self, levels: list[Tensor]) -> list[Tensor]:
        down = self.down(levels[-1], [[level] for level in levels[-2::-1]])[::-1]
        last = len(levels) - 1
        beside = [self._beside(levels[b], down[b], b == last) for b in range(1, len(levels))]
        return cast(list[Tensor], self.up(down[0], beside))


class ComplexTwoWay(TwoWay):
    """`TwoWay` with cross-scale skips from L1 to L3 and learnable non-negative fusion weights (Fig. 3c, Eqs. 13-14).

    L2_b = Conv(w_1 L1_b + w_2 Resize(L2_{b+1})) and L3_b = Conv(w_1 L1_b + w_2 L2_b + w_3 Resize(L3_{b-1})), the
    weights of a fusion summing to one. The coarsest L3, whose L2 is L1, fuses two inputs (FRSKD).
    """

    weighted = True

    def _inputs_up(self, count: int) -> list[int]:
        return [3] * (count - 1) + [2] * min(count, 1)

    def _beside(self, level: Tensor, downward: Tensor, coarsest: bool) -> list[Tensor]:
        return [level] if coarsest else [level, downward]


class Path(nn.Module):
    """Fuses level after level with the one before it, brought to the next level's width and size.

    Args:
        widths: channels of the levels in the order of the path.
        inputs: how many maps each level but the first fuses.
        weighted: whether fusions learn their weights; False: plain sums.
    """

    def __init__(self, widths: Sequence[int], inputs: Sequence[int], weighted: bool) -> None:
        super().__init__()
        self.resizes = nn.ModuleList(pointwise(before, after) for before, after in pairwise(widths))
        self.convolutions = nn.ModuleList(separable(width) for width in widths[1:])
        self.fusions = nn.ModuleList(WeightedSum(count) for count in inputs) if weighted else None

    def forward(self, first: Tensor, others: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """The path's levels: `first`, then each of `others` (the maps of one level) fused with the level before."""
        path = [first]
        for number, maps in enumerate(others):
            size = maps[0].shape[2:]
            resize, convolution = self.resizes[number], self.convolutions[number]
            if size[0] > path[-1].shape[2]:
                # Repeating pixels after the 1x1 convolution is the same as before it, and a quarter of the work.
                arriving = F.interpolate(resize(path[-1]), size=size, mode="nearest")
            else:
                arriving = resize(shrink(path[-1], size))
            together = [*maps, arriving]
            fused = self.fusions[number](together) if self.fusions is not None else sum(together[1:], together[0])
            path.append(convolution(fused))
        return path


class WeightedSum(nn.Module):
    """A convex combination of maps: one learnable weight each, 1 at first, kept non-negative and normalised (FRSKD)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """sum of relu(w_i) / (sum of relu(w) + 1e-6) * maps[i]."""
        weight = F.relu(self.weight)
        weight = (weight / (weight.sum() + 1e-6)).to(maps[0].dtype)
        return cast(Tensor, sum(w * m for w, m in zip(weight, maps, strict=True)))


def pointwise(channels: int, width: int) -> nn.Sequential:
    """1x1 convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def separable(width: int) -> nn.Sequential:
    """Two depthwise-separable 3x3 convolutions, each with batch norm and ReLU."""
    depthwise = [nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False) for _ in range(2)]
    return nn.Sequential(depthwise[0], *pointwise(width, width), depthwise[1], *pointwise(width, width))


def shrink(x: Tensor, size: torch.Size) -> Tensor:
    """`x` max-pooled to `size`: 3x3 with stride 2 where that halves it."""
    if x.shape[2:] == size:
        return x
    halved = F.max_pool2d(x, 3, stride=2, padding=1)
    return halved if halved.shape[2:] == size else F.adaptive_max_pool2d(x, list(size))


def initialise(network: nn.Module) -> None:
    """Kaiming-normal convolutions, as the field's CIFAR code starts the backbone's."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
