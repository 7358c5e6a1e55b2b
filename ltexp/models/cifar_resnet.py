"""The residual networks for small images: three stages of basic blocks of 16, 32 and 64 channels.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, Sec. 4.2. The shortcuts carry no parameters
(option A), and convolutions start Kaiming-normal, as the long-tail field builds them since LDAM (Cao et al., NeurIPS
2019).
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.errors import ConfigError
from ltexp.models.backbone import Backbone


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

    Parameters without the classifier: ResNet-20 0.27 M, ResNet-32 0.46 M, ResNet-56 0.85 M. Any image size from
    1x1 works: the first convolution keeps the resolution and there is no pooling before the global average.

    Args:
        depth: 8, 20, 32, 44, 56, or another 6n + 2.

    Raises:
        ConfigError: if `depth` is not 6n + 2 for a positive n.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ConfigError(f"backbone.depth is {depth}, but a CIFAR ResNet has 6n + 2 layers: 8, 20, 32, 44, ...")
        blocks = (depth - 2) // 6
        self.feature_dim = 64
        self.map_channels = [16, 32, 64]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (B, 64) and the maps of the three stages, of 16, 32 and 64 channels."""
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3):
            x = cast(Tensor, stage(x))
            maps.append(x)
        return x.mean((2, 3)), maps


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [BasicBlock(channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(in_channels, channels, stride), *rest)
