"""torchvision's residual networks as backbones: four blocks of maps, and the features that the classifier reads."""

from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ltexp.config.require import require, require_choice
from ltexp.models.backbone import Backbone
from ltexp.models.branches import last_blocks, require_branches, run_last_blocks
from ltexp.models.checkpoint import load_part
from ltexp.models.experts import expert_branches, run_branches
from ltexp.models.pretrained import read_weights

# Block class, blocks a stage, groups, width of a group. ResNet-10 is the long-tail field's own (Liu et al., CVPR 2019).
ARCHITECTURES: dict[str, tuple[type[nn.Module], list[int], int, int]] = {
    "resnet10": (BasicBlock, [1, 1, 1, 1], 1, 64),
    "resnet18": (BasicBlock, [2, 2, 2, 2], 1, 64),
    "resnet34": (BasicBlock, [3, 4, 6, 3], 1, 64),
    "resnet50": (Bottleneck, [3, 4, 6, 3], 1, 64),
    "resnet101": (Bottleneck, [3, 4, 23, 3], 1, 64),
    "resnet152": (Bottleneck, [3, 8, 36, 3], 1, 64),
    "resnext50_32x4d": (Bottleneck, [3, 4, 6, 3], 32, 4),
}


class TorchvisionResNet(Backbone):
    """A ResNet or ResNeXt for images of about 224x224, with torchvision's layers, names and initialisation.

    He et al., CVPR 2016; Xie et al., "Aggregated Residual Transformations", CVPR 2017. Features are 512 wide with
    basic blocks (ResNet-10, 18, 34) and 2048 with bottlenecks.

    With experts it is RIDE's network (Wang et al., ICLR 2021): the first two stages are shared, and each of E experts
    has stages 3 and 4 of its own, of three quarters of the width; features are (B, E, 384) or (B, E, 1536).

    With K branches it is BBN's network (Zhou et al., CVPR 2020): all but the last block of stage 4 is shared, and of
    that there are K; features are K times as wide. Each starts as the weights have the one.

    With a frozen trunk only the last block of stage 4 can learn. What lies before it stays as the weights have it: in
    eval mode, without a graph, whatever a stage trains.

    Args:
        architecture: one of `ARCHITECTURES`.
        weights: where pretrained weights come from: None for a random start, the name of torchvision weights such as
            "IMAGENET1K_V1" (downloaded once into torch's hub folder), or the path of a file with a `state_dict` in
            torchvision's names, plain or as a self-supervised pre-training prefixes them; its classifier is left out.
        frozen_trunk: whether everything before the last block of stage 4 is frozen. Default false.
        fresh_last_block: whether the last block of stage 4 starts at random in spite of the weights; its convolutions
            as torch's layers do by themselves (uniform, deviation 1 / sqrt(3 fan-in)), not as torchvision starts a
            whole network (normal, deviation sqrt(2 / fan-out)). Default false.
        experts: E, or None for an ordinary network.
        branches: K. Default 1, an ordinary network.
        small_images: whether the network begins with a 3x3 convolution of stride 1 and no pooling, as the codes for
            CIFAR have it. Default false.

    Raises:
        ConfigError: for an unknown architecture, fewer than one expert or branch, branches of experts, or pretrained
            weights or a frozen trunk for experts, whose width no pretrained network has.
        CheckpointError: for weights that cannot be had or are another network's.
    """

    def __init__(
        self,
        architecture: str,
        weights: str | None = None,
        frozen_trunk: bool = False,
        fresh_last_block: bool = False,
        experts: int | None = None,
        branches: int = 1,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        require_branches(branches, experts)
        require_choice("architecture", architecture, tuple(ARCHITECTURES))
        block, layers, groups, width = ARCHITECTURES[architecture]
        require(
            experts is None or weights is None,
            "weights",
            weights,
            "null: pretrained weights cannot start a network of experts",
        )
        require(not (experts and frozen_trunk), "frozen_trunk", frozen_trunk, "false with experts")
        require(not (experts and fresh_last_block), "fresh_last_block", fresh_last_block, "false with experts")
        # A single output: the classifier is a part of its own, so torchvision's is not kept.
        network = ResNet(block, layers, num_classes=1, groups=groups, width_per_group=width)
        self.feature_dim = int(network.fc.in_features)
        self.conv1, self.bn1, self.maxpool = network.conv1, network.bn1, network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        if small_images:
            self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.maxpool = nn.Identity()
        self.relu = network.relu
        shared = self.feature_dim // 4
        self.branches: nn.ModuleList | None = None
        if experts is None:
            self.layer3, self.layer4 = network.layer3, network.layer4
        else:
            self.branches = expert_branches(experts, lambda: _expert_stages(network, layers, shared))
            self.feature_dim = self.feature_dim * 3 // 4
        joined = self.feature_dim * (experts or 1)
        self.map_channels = [shared // 2, shared, joined // 2, joined]
        self.frozen_trunk = frozen_trunk
        if weights is not None:
            state = read_weights(architecture, weights, self.state_dict().keys())
            if fresh_last_block:
                last = f"layer4.{layers[3] - 1}."
                for module in self.layer4[-1].modules():
                    if isinstance(module, nn.Conv2d):
                        module.reset_parameters()
                state |= {name: value for name, value in self.state_dict().items() if name.startswith(last)}
            load_part(self, state, f"backbone.weights '{weights}' for {architecture}")
        self.last_blocks: nn.ModuleList | None = None
        if branches > 1:
            *before, last = self.layer4
            self.layer4 = nn.Sequential(*before)
            self.last_blocks = last_blocks(branches, lambda: _like(last, weights is None, fresh_last_block))
            self.num_branches, self.feature_dim = branches, self.feature_dim * branches
            self.map_channels[-1] = self.feature_dim

    def frozen_parts(self) -> list[nn.Module]:
        """The trunk, if it is frozen."""
        if not self.frozen_trunk:
            return []
        return [self.conv1, self.bn1, self.layer1, self.layer2, self.layer3, *self._shared()]

    def _shared(self) -> list[nn.Module]:
        """The blocks of stage 4 before the last."""
        blocks = list(self.layer4)
        return blocks if self.last_blocks is not None else blocks[:-1]

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D), of K branches (B, K D), of E experts (B, E, D), of images (B, 3, H, W)."""
        return self._features(images, maps=False)[0]

    def forward_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features and the maps of the four stages, at 1/4, 1/8, 1/16 and 1/32 of the image's size.

        Those of the experts lie one after the other in a map.
        """
        return self._features(images, maps=True)

    def forward_branch(self, images: Tensor, branch: int) -> tuple[Tensor, list[Tensor]]:
        """Through the trunk and the last block number `branch`; see `Backbone.forward_branch`."""
        return self._features(images, maps=False, branch=branch)

    def _features(self, images: Tensor, maps: bool, branch: int | None = None) -> tuple[Tensor, list[Tensor]]:
        if self.branches is not None:
            first = self._stem(images)
            x = cast(Tensor, self.layer2(first))
            features, further = run_branches(x, self.branches, maps)
            return features, [first, x, *further]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_trunk):
            found = [self._stem(images)]
            for stage in (self.layer2, self.layer3):
                found.append(cast(Tensor, stage(found[-1])))
            x = found[-1]
            for block in self._shared():
                x = cast(Tensor, block(x))
        if self.last_blocks is not None:
            features, x = run_last_blocks(x, self.last_blocks, branch)
            return features, [*found, x]
        x = cast(Tensor, self.layer4[-1](x))
        return x.mean((2, 3)), [*found, x]

    def _stem(self, images: Tensor) -> Tensor:
        """The map of stage 1."""
        return cast(Tensor, self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images))))))


def _like(block: nn.Module, random: bool, fresh: bool) -> nn.Module:
    """A block as `block` is; its convolutions drawn anew in a network without weights, or of which it is not a part."""
    copy = deepcopy(block)
    for module in copy.modules():
        if isinstance(module, nn.Conv2d):
            if random:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif fresh:
                module.reset_parameters()
    return copy


def _expert_stages(network: ResNet, layers: list[int], shared: int) -> list[nn.Module]:
    """Stages 3 and 4 of one expert, by torchvision's own construction and initialisation, over `shared` channels."""
    network.inplanes = shared
    block = type(network.layer1[0])
    stages = [
        network._make_layer(block, width, blocks, stride=2) for width, blocks in ((192, layers[2]), (384, layers[3]))
    ]
    for stage in stages:
        for module in stage.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return list(stages)
