"""The auxiliary networks: shapes and gradients over any backbone, fusion as Eqs. 13-14 print it, and their cost."""

import pytest
import torch
from choices import load, names
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.errors import ConfigError
from ltexp.models.auxiliary import ComplexTwoWay, Path, SingleWay, TwoWay, WeightedSum
from ltexp.models.cifar_resnet import CifarResNet
from ltexp.models.module import build_module
from ltexp.models.torchvision_resnet import TorchvisionResNet

NETWORKS = [name for name in names("module") if name.endswith("way")]
BACKBONES = {
    "three blocks": (lambda: CifarResNet(8), 32),
    "four blocks": (lambda: TorchvisionResNet("resnet10"), 64),
    "four blocks, bottlenecks": (lambda: TorchvisionResNet("resnext50_32x4d"), 64),
}


def test_the_three_networks_of_the_paper_are_there() -> None:
    assert NETWORKS == ["complex_two_way", "single_way", "two_way"]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_and_gradients_over_a_backbone(name: str, backbone: str) -> None:
    make, side = BACKBONES[backbone]
    model = make()
    network = build_module(load("module", name), map_channels=model.map_channels, num_classes=5)
    _, maps = model.forward_maps(torch.randn(2, 3, side, side))
    logits, fused = network(maps)
    assert logits.shape == (2, 5)
    assert [m.shape for m in fused] == [(2, 2 * m.shape[1], *m.shape[2:]) for m in maps]
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    for parameter in (*network.parameters(), *(p for p in model.parameters())):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sides", [[9], [9, 5], [7, 7, 4, 2], [16, 4, 2]])
def test_blocks_may_have_any_number_and_odd_or_equal_sizes(name: str, sides: list[int]) -> None:
    network = build_module(load("module", name), map_channels=[3] * len(sides), num_classes=4, width=1)
    logits, fused = network([torch.randn(2, 3, side, side) for side in sides])
    assert logits.shape == (2, 4)
    assert [m.shape[-1] for m in fused] == sides


def plain(network: nn.Module) -> None:
    """Leaves out convolutions, norms and ReLUs, so that a level is the sum that it fuses."""
    for path in (module for module in network.modules() if isinstance(module, Path)):
        path.resizes = nn.ModuleList(nn.Identity() for _ in path.resizes)
        path.convolutions = nn.ModuleList(nn.Identity() for _ in path.convolutions)


def levels() -> list[Tensor]:
    """Constant maps of 1, 10 and 100: resizing leaves them, so that sums show what was fused."""
    return [torch.full((1, 1, 8 // 2**b, 8 // 2**b), float(10**b)) for b in range(3)]


def values(maps: list[Tensor]) -> list[float]:
    assert all((m == m.flatten()[0]).all() for m in maps)
    return [m.flatten()[0].item() for m in maps]


def test_single_way_adds_up_from_fine_to_coarse() -> None:
    network = SingleWay([1, 1, 1], 2, width=1)
    plain(network)
    network.first = nn.Identity()
    assert values(network.fuse(levels())) == [1, 11, 111]


def test_two_way_adds_down_and_then_up() -> None:
    network = TwoWay([1, 1, 1], 2, width=1)
    plain(network)
    # down: L2 = 111, 110, 100; up: L3_1 = L2_1, L3_2 = L2_2 + L3_1, L3_3 = L1_3 + L3_2
    assert values(network.fuse(levels())) == [111, 221, 321]


def test_complex_two_way_weighs_as_equations_13_and_14() -> None:
    network = ComplexTwoWay([1, 1, 1], 2, width=1)
    plain(network)
    with torch.no_grad():
        network.down.fusions[0].weight.copy_(torch.tensor([1.0, 3.0]))  # L2_2 of L1_2 and L2_3
        network.down.fusions[1].weight.copy_(torch.tensor([2.0, 2.0]))  # L2_1 of L1_1 and L2_2
        network.up.fusions[0].weight.copy_(torch.tensor([2.0, 1.0, 1.0]))  # L3_2 of L1_2, L2_2 and L3_1
        network.up.fusions[1].weight.copy_(torch.tensor([1.0, -5.0]))  # L3_3 of L1_3 and L3_2; negative counts as 0
    two = (10 + 3 * 100) / 4
    one = (1 + two) / 2
    middle = (2 * 10 + two + one) / 4
    assert values(network.fuse(levels())) == pytest.approx([one, middle, 100], rel=1e-5)


def test_fusion_weights_learn_from_one_and_sum_to_one() -> None:
    fusion = WeightedSum(3)
    maps = [torch.full((1, 1, 2, 2), value) for value in (3.0, 6.0, 9.0)]
    torch.testing.assert_close(fusion(maps), torch.full((1, 1, 2, 2), 6.0))
    fusion(maps).sum().backward()
    # d/dw_i of sum(w m) / sum(w) = (m_i - mean) / 3, over four pixels
    torch.testing.assert_close(fusion.weight.grad, torch.tensor([-4.0, 0.0, 4.0]), rtol=1e-4, atol=1e-4)


def test_repeating_pixels_after_the_convolution_is_the_same_as_before_it() -> None:
    """The networks enlarge after the 1x1 convolution, batch norm and ReLU; FRSKD before them."""
    path = Path([4, 3], inputs=[2], weighted=False)
    path.convolutions[0] = nn.Identity()
    coarse, fine = torch.randn(2, 4, 3, 3), torch.randn(2, 3, 6, 6)
    enlarged = F.interpolate(coarse, scale_factor=2, mode="nearest")
    expected = fine + path.resizes[0](enlarged)
    torch.testing.assert_close(path(coarse, [[fine]])[1], expected, rtol=1e-4, atol=1e-5)


def test_complex_two_way_adds_weights_alone_to_two_way() -> None:
    def size(network: nn.Module) -> int:
        return sum(parameter.numel() for parameter in network.parameters())

    channels = CifarResNet(32).map_channels
    single, two, complex_ = (kind(channels, 100) for kind in (SingleWay, TwoWay, ComplexTwoWay))
    assert size(complex_) - size(two) == 2 + 2 + 3 + 2
    assert size(single) < size(two)


@pytest.mark.parametrize("kind", [SingleWay, TwoWay, ComplexTwoWay])
def test_what_cannot_be_built_has_one_line(kind: type) -> None:
    with pytest.raises(ConfigError, match="this backbone offers none"):
        kind([], 3)
    with pytest.raises(ConfigError, match="invalid width=0: expected a whole number of 1 or more"):
        kind([4, 8], 3, width=0)
