"""The residual networks for small images: three stages of basic blocks of 16, 32 and 64 channels.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, Sec. 4.2. The shortcuts carry no parameters
(option A), and convolutions start Kaiming-normal, as the long-tail field builds them since LDAM (Cao et al., NeurIPS
2019).
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config.require import is_whole, require
from ltexp.models.backbone import Backbone
from ltexp.models.branches import last_blocks, require_branches, run_last_blocks
from ltexp.models.experts import expert_branches, run_branches


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with batch norm, added to the input; ReLU in between and after the addition.

    Where the block halves the resolution, the input is subsampled and padded with zero channels on both sides.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (channels - in_channels) // 2
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, h, w) to (B, channels, ceil(h / stride), ceil(w / stride))."""
        shortcut = x
        if self.stride > 1:
            shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += shortcut
        return F.relu(out, inplace=True)


class CifarResNet(Backbone):
    """CIFAR ResNet of `depth` layers, 6n + 2 with n blocks a stage; features are 64 wide and not negative.

    With experts it is RIDE's network (Wang et al., ICLR 2021): the first convolution and stage 1 are shared, and each
    of E experts has stages 2 and 3 of its own, of 24 and 48 channels; features are (B, E, 48).

    With K branches it is BBN's network (Zhou et al., CVPR 2020): all but the last block is shared, and of that there
    are K; features are (B, 64 K). ResNet-32 with two has 0.54 M parameters.

    Parameters without the classifier: ResNet-20 0.27 M, ResNet-32 0.46 M, ResNet-56 0.85 M. Any image size from
    1x1 works: the first convolution keeps the resolution and there is no pooling before the global average.

    Args:
        depth: 8, 20, 32, 44, 56, or another 6n + 2.
        experts: E, or None for an ordinary network.
        branches: K. Default 1, an ordinary network.
        width: channels of the first stage; the others have twice and four times as many. Default 16. With 64 it is the
            wide network of GLMC's code (Du et al., CVPR 2023), of 16 times the parameters.
        shared_blocks: 1: experts share stage 1, as RIDE's. 0: they are whole networks of the full width that share
            nothing (NCL; Li et al., CVPR 2022); features are (B, E, 64).

    Raises:
        ConfigError: if `depth` is not 6n + 2 for a positive n, for fewer than one expert or branch, branches of
            experts, or another width or number of shared blocks.
    """

    def __init__(
        self, depth: int, experts: int | None = None, branches: int = 1, width: int = 16, shared_blocks: int = 1
    ) -> None:
        super().__init__()
        require_branches(branches, experts)
        require(depth >= 8 and depth % 6 == 2, "depth", depth, "6n + 2 layers of a CIFAR ResNet: 8, 20, 32, 44, ...")
        require(is_whole(width, 1), "width", width, "a whole number of 1 or more: channels of the first stage")
        require(shared_blocks in (0, 1), "shared_blocks", shared_blocks, "1, or 0 for experts that share nothing")
        blocks, self.apart = (depth - 2) // 6, experts is not None and shared_blocks == 0
        widths = (2 * width, 4 * width) if experts is None or self.apart else (width * 3 // 2, width * 3)
        self.feature_dim = widths[1]
        self.map_channels = [each * (experts or 1) for each in (width, *widths)]
        self.branches: nn.ModuleList | None = None
        self.last_blocks: nn.ModuleList | None = None
        if self.apart:
            self.branches = expert_branches(experts or 1, lambda: _whole_network(width, widths, blocks))
        else:
            self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.layer1 = _stage(width, width, blocks, stride=1)
            if experts is None:
                self.layer2, self.layer3 = _last_stages(width, widths, blocks)
            else:
                self.map_channels[0] = width
                self.branches = expert_branches(experts, lambda: _last_stages(width, widths, blocks))
        if branches > 1:
            self.layer3 = nn.Sequential(*list(self.layer3.children())[:-1])
            last = (widths[1], widths[1], 1) if blocks > 1 else (*widths, 2)
            self.last_blocks = last_blocks(branches, lambda: BasicBlock(*last))
            self.num_branches, self.feature_dim = branches, widths[1] * branches
            self.map_channels[-1] = widths[1] * branches
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 64 K), or (B, E, 48) with experts, of images (B, 3, H, W)."""
        return self._features(images, maps=False)[0]

    def forward_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features and the maps of the three stages; those of the experts lie one after the other in a map."""
        return self._features(images, maps=True)

    def forward_branch(self, images: Tensor, branch: int) -> tuple[Tensor, list[Tensor]]:
        """Through the trunk and the last block number `branch`; see `Backbone.forward_branch`."""
        return self._features(images, maps=False, branch=branch)

    def _features(self, images: Tensor, maps: bool, branch: int | None = None) -> tuple[Tensor, list[Tensor]]:
        if self.apart:
            return run_branches(images, cast(nn.ModuleList, self.branches), maps)
        x = self.layer1(F.relu(self.bn1(self.conv1(images)), inplace=True))
        found = [x]
        if self.branches is not None:
            features, further = run_branches(x, self.branches, maps)
            return features, found + further
        for stage in (self.layer2, self.layer3):
            x = cast(Tensor, stage(x))
            found.append(x)
        if self.last_blocks is None:
            return x.mean((2, 3)), found
        features, found[-1] = run_last_blocks(x, self.last_blocks, branch)
        return features, found


def _last_stages(width: int, widths: tuple[int, int], blocks: int) -> list[nn.Module]:
    return [_stage(width, widths[0], blocks, stride=2), _stage(widths[0], widths[1], blocks, stride=2)]


def _whole_network(width: int, widths: tuple[int, int], blocks: int) -> list[nn.Module]:
    """The three stages, the first of them after the first convolution."""
    stem = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return [nn.Sequential(*stem, _stage(width, width, blocks, stride=1)), *_last_stages(width, widths, blocks)]


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(in_channels, channels, stride), *rest)
