"""torchvision's residual networks as backbones: four blocks of maps, and the features that the classifier reads."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ltexp.errors import CheckpointError, ConfigError
from ltexp.models.backbone import Backbone
from ltexp.models.checkpoint import load_part
from ltexp.models.experts import expert_branches, run_branches
from ltexp.names import unknown_name

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

    Args:
        architecture: one of `ARCHITECTURES`.
        weights: where pretrained weights come from: None for a random start, the name of torchvision weights such as
            "IMAGENET1K_V1" (downloaded once into torch's hub folder), or the path of a file with a `state_dict` in
            torchvision's names, whose classifier is left out.
        experts: E, or None for an ordinary network.

    Raises:
        ConfigError: for an unknown architecture, fewer than one expert, or pretrained weights for experts, whose width
            no pretrained network has.
        CheckpointError: for weights that cannot be had or are another network's.
    """

    def __init__(self, architecture: str, weights: str | None = None, experts: int | None = None) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ConfigError(unknown_name("backbone.architecture", architecture, ARCHITECTURES))
        block, layers, groups, width = ARCHITECTURES[architecture]
        if experts is not None and weights is not None:
            raise ConfigError("backbone.weights cannot start a network of experts: set weights or experts to null")
        # A single output: the classifier is a part of its own, so torchvision's is not kept.
        network = ResNet(block, layers, num_classes=1, groups=groups, width_per_group=width)
        self.feature_dim = int(network.fc.in_features)
        self.conv1, self.bn1, self.maxpool = network.conv1, network.bn1, network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
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
        if weights is not None:
            state = _read_weights(architecture, weights)
            load_part(self, state, f"backbone.weights '{weights}' for {architecture}")

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D), or (B, E, D) with experts, of images (B, 3, H, W)."""
        return self._features(images, maps=False)[0]

    def forward_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features and the maps of the four stages, at 1/4, 1/8, 1/16 and 1/32 of the image's size.

        Those of the experts lie one after the other in a map.
        """
        return self._features(images, maps=True)

    def _features(self, images: Tensor, maps: bool) -> tuple[Tensor, list[Tensor]]:
        first = cast(Tensor, self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images))))))
        x = cast(Tensor, self.layer2(first))
        found = [first, x]
        if self.branches is not None:
            features, further = run_branches(x, self.branches, maps)
            return features, found + further
        for stage in (self.layer3, self.layer4):
            x = cast(Tensor, stage(x))
            found.append(x)
        return x.mean((2, 3)), found


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


def _read_weights(architecture: str, weights: str) -> dict[str, Any]:
    """The backbone's part of the named torchvision weights, or of the file of that path."""
    if weights in (named := _torchvision_weights(architecture)):
        try:
            state = named[weights].get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"backbone.weights '{weights}' could not be downloaded: {error}") from None
    elif Path(weights).is_file():
        state = _read_file(Path(weights))
    else:
        names = ", ".join(named) or f"torchvision has none for {architecture}"
        raise CheckpointError(f"backbone.weights '{weights}' is no file and no torchvision weights ({names})")
    return {name: value for name, value in state.items() if not str(name).startswith("fc.")}


def _torchvision_weights(architecture: str) -> Mapping[str, Any]:
    if architecture not in torchvision.models.list_models(module=torchvision.models):
        return {}
    return cast(Mapping[str, Any], torchvision.models.get_model_weights(architecture).__members__)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        raise CheckpointError(f"backbone.weights '{path}' is damaged or no checkpoint of plain tensors") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"backbone.weights '{path}' holds no state_dict")
    # DataParallel puts "module." before every name.
    return {str(name).removeprefix("module."): value for name, value in state.items()}
