"""Backbones: the field's CIFAR networks and torchvision's, their features, maps and pretrained weights."""

import copy
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.errors import CheckpointError, ConfigError
from ltexp.models.backbone import Backbone
from ltexp.models.cifar_resnet import BasicBlock, CifarResNet
from ltexp.models.torchvision_resnet import TorchvisionResNet
from ltexp.randomness import default_generator, generator

CONFIGS = sorted((Path(__file__).parent.parent / "conf" / "backbone").glob("*.yaml"))
# He et al., CVPR 2016, Table 6 print 0.27 M, 0.46 M, 0.66 M and 0.85 M; these are the exact counts with option A
# shortcuts, counted by hand: 3x3 convolutions without bias, two affine parameters a batch-norm channel.
PARAMETERS = {8: 74_640, 20: 269_072, 32: 463_504, 44: 657_936, 56: 852_368}


def images(size: int, count: int = 4) -> Tensor:
    return torch.randn(count, 3, size, size, generator=generator("images", size))


def settled(network: nn.Module) -> nn.Module:
    """The network in eval mode with running statistics that are not the initial zeros and ones."""
    draws = generator("statistics")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=draws).mul_(0.1)
            module.running_var.uniform_(0.5, 1.5, generator=draws)
    return network.eval()


OF_THE_DATA: dict[str, Any] = {"vocabulary": ["<padding>", "<unknown>", "word"]}  # what a text dataset hands over


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_and_holds_every_keyword(path: Path) -> None:
    config = OmegaConf.load(path)
    for chosen, library in (("timm", "timm"), ("clip_vit", "open_clip")):
        if path.stem == chosen:
            pytest.importorskip(library)
    keywords = set(inspect.signature(get_class(config._target_)).parameters)
    assert set(config) == keywords - set(OF_THE_DATA) | {"_target_"}
    with torch.device("meta"):
        given = {key: value for key, value in OF_THE_DATA.items() if key in keywords}
        backbone = instantiate(config, **given).eval()
        read = torch.empty(2, 3, 64, 64) if backbone.reads == "images" else torch.zeros(2, 8, dtype=torch.long)
        features, maps = backbone.forward_maps(read)
    assert isinstance(backbone, Backbone)
    experts = (3,) if path.stem == "resnet32_independent" else ()
    assert features.shape == (2, *experts, backbone.feature_dim)
    assert [m.shape[1] for m in maps] == backbone.map_channels


@pytest.mark.parametrize(("depth", "count"), PARAMETERS.items())
def test_cifar_networks_have_the_papers_size(depth: int, count: int) -> None:
    assert sum(p.numel() for p in CifarResNet(depth).parameters()) == count


@pytest.mark.parametrize(("size", "sides"), [(8, [8, 4, 2]), (32, [32, 16, 8]), (9, [9, 5, 3])])
def test_cifar_features_are_the_average_of_the_last_map(size: int, sides: list[int]) -> None:
    network = CifarResNet(8).eval()
    features, maps = network.forward_maps(images(size))
    assert [m.shape for m in maps] == [(4, c, s, s) for c, s in zip([16, 32, 64], sides, strict=True)]
    torch.testing.assert_close(features, maps[-1].flatten(2).mean(2))
    assert (features >= 0).all()
    assert torch.equal(features, network(images(size)))


def test_option_a_takes_every_second_pixel_and_pads_channels_on_both_sides() -> None:
    block = BasicBlock(16, 32, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 16, 6, 6, generator=generator("block"))
    expected = torch.zeros(2, 32, 3, 3)
    for row in range(3):
        for column in range(3):
            expected[:, 8:24, row, column] = x[:, :, 2 * row, 2 * column]
    assert torch.equal(block(x), expected)


def test_cifar_resnet_equals_its_definition_written_out() -> None:
    network = settled(CifarResNet(20))
    state = network.state_dict()

    def conv_bn(x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        mean, var = state[f"{bn}.running_mean"], state[f"{bn}.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return x * state[f"{bn}.weight"][:, None, None] + state[f"{bn}.bias"][:, None, None]

    x = conv_bn(images(32), "conv1", "bn1").clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(3):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = conv_bn(x, f"{name}.conv1", f"{name}.bn1", stride).clamp(min=0)
            if stride == 2:
                zeros = torch.zeros(4, x.shape[1] // 2, x.shape[2] // 2, x.shape[3] // 2)
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
            x = (conv_bn(inner, f"{name}.conv2", f"{name}.bn2") + x).clamp(min=0)
    torch.testing.assert_close(network(images(32)), x.mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)


def test_cifar_convolutions_start_kaiming_normal_by_fan_in() -> None:
    with default_generator("test"):
        network = CifarResNet(32)
    for convolution in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
        expected = math.sqrt(2 / (convolution.in_channels * 9))
        tolerance = 4 / math.sqrt(2 * convolution.weight.numel())  # four standard errors of a standard deviation
        assert convolution.weight.std().item() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("depth", [2, 18, 33])
def test_a_depth_that_is_not_six_n_plus_two_is_refused(depth: int) -> None:
    with pytest.raises(ConfigError, match="6n"):
        CifarResNet(depth)


@pytest.mark.parametrize("build", [lambda: CifarResNet(8), lambda: TorchvisionResNet("resnet10")])
def test_bf16_autocast_and_channels_last_keep_layout_and_meaning(build: type[Backbone]) -> None:
    network = settled(build())
    expected = network(images(32))
    network = network.to(memory_format=torch.channels_last)
    batch = images(32).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        features, maps = network.forward_maps(batch)
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    assert all(m.dtype is torch.bfloat16 for m in maps)
    relative = (features.float() - expected).norm() / expected.norm()
    assert relative < 0.03
    features.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("way", ["forward", "forward_maps"])
def test_a_copy_of_a_compiled_network_runs_on_its_own_weights(way: str) -> None:
    network = settled(CifarResNet(8))
    network.compile(backend="eager")
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
    alone = settled(CifarResNet(8))
    alone.load_state_dict(copied.state_dict())
    inputs = images(8)
    results = [getattr(each, way)(inputs) for each in (copied, alone, network)]
    own, wanted, original = (result if way == "forward" else result[0] for result in results)
    torch.testing.assert_close(own, wanted)
    assert not torch.allclose(own, original)


@pytest.mark.parametrize(
    ("architecture", "channels"),
    [("resnet18", [64, 128, 256, 512]), ("resnet50", [256, 512, 1024, 2048]), ("resnext50_32x4d", None)],
)
def test_torchvision_features_equal_torchvisions_own(architecture: str, channels: list[int] | None) -> None:
    reference = settled(torchvision.models.get_model(architecture, weights=None))
    reference.fc = nn.Identity()
    backbone = TorchvisionResNet(architecture)
    assert backbone.state_dict().keys() == reference.state_dict().keys()
    backbone.load_state_dict(reference.state_dict())
    backbone.eval()
    with torch.no_grad():
        features, maps = backbone.forward_maps(images(64, 2))
        torch.testing.assert_close(features, reference(images(64, 2)))
    assert backbone.map_channels == (channels or [256, 512, 1024, 2048])
    assert [m.shape[2] for m in maps] == [16, 8, 4, 2]


def test_resnet10_is_resnet18_with_the_first_block_of_each_stage() -> None:
    full = TorchvisionResNet("resnet18").state_dict()
    first = {k: v.shape for k, v in full.items() if not k.startswith(tuple(f"layer{i}.1." for i in range(1, 5)))}
    assert {k: v.shape for k, v in TorchvisionResNet("resnet10").state_dict().items()} == first


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'resnext50_32x4d'"):
        TorchvisionResNet("resnext50_32x4")


def test_pretrained_weights_come_from_a_torchvision_checkpoint_file(tmp_path: Path) -> None:
    reference = torchvision.models.resnet18(weights=None)
    state = {f"module.{k}": v for k, v in reference.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "r18.pth")
    backbone = TorchvisionResNet("resnet18", weights=str(tmp_path / "r18.pth"))
    assert all(torch.equal(v, reference.state_dict()[k]) for k, v in backbone.state_dict().items())


def test_unusable_weights_are_answered_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04 half a file")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(CifarResNet(8).state_dict(), tmp_path / "cifar.pth")
    for weights, reason in [
        ("IMAGENET1K_V9", "no torchvision weights .IMAGENET1K_V1, DEFAULT"),
        (str(tmp_path / "damaged.pth"), "damaged"),
        (str(tmp_path / "list.pth"), "no state_dict"),
        (str(tmp_path / "cifar.pth"), "belongs to a different model"),
    ]:
        with pytest.raises(CheckpointError, match=reason) as caught:
            TorchvisionResNet("resnet18", weights=weights)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="torchvision has none for resnet10"):
        TorchvisionResNet("resnet10", weights="IMAGENET1K_V1")


def test_named_torchvision_weights_are_fetched_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = torchvision.models.resnet18(weights=None).state_dict()
    asked = []

    def fetch(self: object, **kwargs: object) -> dict[str, Tensor]:
        asked.append((str(self), kwargs["weights_only"]))
        return dict(reference)

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fetch)
    TorchvisionResNet("resnet18")
    assert not asked
    backbone = TorchvisionResNet("resnet18", weights="IMAGENET1K_V1")
    assert asked == [("ResNet18_Weights.IMAGENET1K_V1", True)]
    assert torch.equal(backbone.conv1.weight, reference["conv1.weight"])


def test_a_failed_download_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(self: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fetch)
    with pytest.raises(CheckpointError, match="could not be downloaded: no route"):
        TorchvisionResNet("resnet18", weights="DEFAULT")
