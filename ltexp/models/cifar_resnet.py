"""The residual networks for small images: three stages of basic blocks of 16, 32 and 64 channels.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, Sec. 4.2. The shortcuts carry no parameters
(option A), and convolutions start Kaiming-normal, as the long-tail field builds them since LDAM (Cao et al., NeurIPS
2019).
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config.require import require
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

    Raises:
        ConfigError: if `depth` is not 6n + 2 for a positive n, for fewer than one expert or branch, or branches of
            experts.
    """

    def __init__(self, depth: int, experts: int | None = None, branches: int = 1) -> None:
        super().__init__()
        require_branches(branches, experts)
        require(depth >= 8 and depth % 6 == 2, "depth", depth, "6n + 2 layers of a CIFAR ResNet: 8, 20, 32, 44, ...")
        blocks = (depth - 2) // 6
        widths = (32, 64) if experts is None else (24, 48)
        self.feature_dim = widths[1]
        self.map_channels = [16, *(width * (experts or 1) for width in widths)]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.branches: nn.ModuleList | None = None
        self.last_blocks: nn.ModuleList | None = None
        if experts is None:
            self.layer2, self.layer3 = _last_stages(widths, blocks)
        else:
            self.branches = expert_branches(experts, lambda: _last_stages(widths, blocks))
        if branches > 1:
            self.layer3 = nn.Sequential(*list(self.layer3.children())[:-1])
            last = (64, 64, 1) if blocks > 1 else (32, 64, 2)
            self.last_blocks = last_blocks(branches, lambda: BasicBlock(*last))
            self.num_branches, self.feature_dim = branches, 64 * branches
            self.map_channels[-1] = 64 * branches
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


def _last_stages(widths: tuple[int, int], blocks: int) -> list[nn.Module]:
    return [_stage(16, widths[0], blocks, stride=2), _stage(widths[0], widths[1], blocks, stride=2)]


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(in_channels, channels, stride), *rest)
