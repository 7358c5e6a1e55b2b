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

    Args:
        architecture: one of `ARCHITECTURES`.
        weights: where pretrained weights come from: None for a random start, the name of torchvision weights such as
            "IMAGENET1K_V1" (downloaded once into torch's hub folder), or the path of a file with a `state_dict` in
            torchvision's names, whose classifier is left out.

    Raises:
        ConfigError: for an unknown architecture.
        CheckpointError: for weights that cannot be had or are another network's.
    """

    def __init__(self, architecture: str, weights: str | None = None) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ConfigError(unknown_name("backbone.architecture", architecture, ARCHITECTURES))
        block, layers, groups, width = ARCHITECTURES[architecture]
        # A single output: the classifier is a part of its own, so torchvision's is not kept.
        network = ResNet(block, layers, num_classes=1, groups=groups, width_per_group=width)
        self.feature_dim = int(network.fc.in_features)
        self.map_channels = [self.feature_dim // 8, self.feature_dim // 4, self.feature_dim // 2, self.feature_dim]
        self.conv1, self.bn1, self.maxpool = network.conv1, network.bn1, network.maxpool
        self.layer1, self.layer2, self.layer3 = network.layer1, network.layer2, network.layer3
        self.layer4 = network.layer4
        self.relu = network.relu
        if weights is not None:
            state = _read_weights(architecture, weights)
            load_part(self, state, f"backbone.weights '{weights}' for {architecture}")

    def forward_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (B, D) and the maps of the four stages, at 1/4, 1/8, 1/16 and 1/32 of the image's size."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = cast(Tensor, stage(x))
            maps.append(x)
        return x.mean((2, 3)), maps


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
