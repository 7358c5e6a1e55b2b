"""RIDE's networks of experts, their heads, and the methods that use them."""

from pathlib import Path

import pytest
import torch
from choices import build
from runs import composed, run_here, weights
from torch import nn
from torch.nn import functional as F

from ltexp.config import to_config
from ltexp.errors import CheckpointError, ConfigError
from ltexp.evaluation.record import read_record
from ltexp.models.cifar_resnet import CifarResNet
from ltexp.models.classifier import Cosine
from ltexp.models.experts import ExpertCosine
from ltexp.models.model import Model
from ltexp.models.torchvision_resnet import TorchvisionResNet
from ltexp.training.composition import check_composition

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("experts", [1, 2, 4])
def test_cifar_experts_share_the_first_stage_alone(experts: int) -> None:
    """Experts of 24 and 48 channels, each a function of stage 1's map: changing one changes its own feature alone."""
    network = CifarResNet(8, experts=experts).eval()
    features, maps = network.forward_maps(IMAGES)
    assert features.shape == (2, experts, 48)
    assert [found.shape[1] for found in maps] == network.map_channels == [16, 24 * experts, 48 * experts]
    torch.testing.assert_close(network(IMAGES), features)
    last = maps[-1].unflatten(1, (experts, 48)).mean((3, 4))
    torch.testing.assert_close(last, features)
    assert network.branches is not None
    with torch.no_grad():
        for parameter in network.branches[-1].parameters():
            parameter.mul_(1.5)
    changed = network(IMAGES) != features
    assert changed[:, -1].any()
    assert not changed[:, :-1].any()


def test_an_experts_blocks_are_an_ordinary_networks_of_its_width() -> None:
    """Parameters by hand for ResNet-8: convolutions without bias, two numbers a batch-norm channel."""
    plain = sum(p.numel() for p in CifarResNet(8).parameters())
    one, three = (sum(p.numel() for p in CifarResNet(8, experts=e).parameters()) for e in (1, 3))
    each = 9 * (16 * 24 + 24 * 24 + 24 * 48 + 48 * 48) + 2 * (24 + 24 + 48 + 48)
    assert three - one == 2 * each
    assert one - each == plain - (9 * (16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 2 * (32 + 32 + 64 + 64))


@pytest.mark.parametrize(("architecture", "width"), [("resnet10", 384), ("resnext50_32x4d", 1536)])
def test_torchvision_experts(architecture: str, width: int) -> None:
    network = TorchvisionResNet(architecture, experts=2).eval()
    features, maps = network.forward_maps(IMAGES)
    assert features.shape == (2, 2, width)
    assert network.feature_dim == width
    assert [found.shape[1] for found in maps] == network.map_channels
    torch.testing.assert_close(maps[-1].unflatten(1, (2, width)).mean((3, 4)), features)


def test_experts_start_as_torchvision_starts() -> None:
    """Kaiming-normal by the number of outgoing weights; experts differ from each other."""
    network = TorchvisionResNet("resnet18", experts=2)
    assert network.branches is not None
    one, other = (dict(branch.named_parameters()) for branch in network.branches)
    weight = one["1.1.conv2.weight"]
    assert float(weight.detach().std()) == pytest.approx((2 / (9 * 384)) ** 0.5, rel=0.02)
    assert not torch.equal(weight, other["1.1.conv2.weight"])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: CifarResNet(8, experts=0), "invalid experts=0: expected a whole number of 1 or more, or null"),
        (
            lambda: TorchvisionResNet("resnet18", weights="IMAGENET1K_V1", experts=2),
            "invalid weights=IMAGENET1K_V1: expected null: pretrained weights cannot start a",
        ),
        (
            lambda: ExpertCosine(4, 3),
            "invalid experts=null: expected 1 or more: expert_cosine is for experts, so set backbone.experts",
        ),
    ],
)
def test_settings_that_cannot_be(make, expected: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=expected):
        make()


def test_heads_are_cosines_of_each_expert_and_their_mean() -> None:
    head = ExpertCosine(5, 3, experts=2)
    features = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(1))
    for expert in range(2):
        own = Cosine(5, 3)
        own.weight = nn.Parameter(head.weight[expert])
        torch.testing.assert_close(head.expert_logits(features)[expert], own(features[:, expert]))
    torch.testing.assert_close(head(features), head.expert_logits(features).mean(0))
    torch.testing.assert_close(F.normalize(head.weight, dim=2), head.weight)  # rows start with norm 1


def test_the_model_hands_over_the_experts() -> None:
    model = Model(CifarResNet(8, experts=3), ExpertCosine(48, 5, experts=3)).eval()
    output = model(IMAGES)
    assert output.expert_logits.shape == (3, 2, 5)
    torch.testing.assert_close(output.logits, output.expert_logits.mean(0))


def test_heads_continue_those_of_as_many_experts_only() -> None:
    head, source = (ExpertCosine(5, 3, experts=2) for _ in range(2))
    head.start_from(source)
    assert torch.equal(head.weight, source.weight)
    for other in (ExpertCosine(5, 3, experts=3), Cosine(5, 3)):
        with pytest.raises(CheckpointError, match="experts"):
            head.start_from(other)
        with pytest.raises(CheckpointError, match="experts"):
            other.start_from(head)
    for name in ("tau_normalized", "nearest_class_mean", "logit_adjusted", "learnable_weight_scaling", "weight_shift"):
        classifier = build("classifier", name, feature_dim=5, num_classes=3)
        with pytest.raises(CheckpointError, match="experts"):
            classifier.start_from(head)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("method=ce", "backbone.experts=2"), "stage1.classifier.experts=2"),
        (("method=ride_3", "backbone.experts=2", "stage1.classifier.experts=3"), "stage1.classifier.experts=2"),
        (("method=ride_3", "backbone.experts=null"), "invalid stage1.classifier.experts=null: expected 1 or more"),
        (
            ("method=ride_3", "loss@stage1.loss=feature_balanced", "reweighting@stage1.reweighting=none"),
            "experts have several",
        ),
        (("method=ldam", "loss@stage1.loss=ride"), "set backbone.experts"),
    ],
)
def test_experts_that_do_not_fit_are_refused(overrides: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        check_composition(to_config(composed(*overrides)))


@pytest.mark.parametrize(("method", "experts"), [("ride_2", 2), ("ride_3", 4)])
def test_ride_trains(method: str, experts: int, tmp_path: Path) -> None:
    run_here(tmp_path / "run", f"method={method}", f"backbone.experts={experts}")
    state = weights(tmp_path / "run", "stage1")
    assert state["classifier.weight"].shape == (experts, 10, 48)
    assert len(read_record(tmp_path / "run")["metrics"]["per_class"]) == 10


def test_ride_bkd_has_a_teacher_without_re_balancing_and_a_student_of_its_structure(tmp_path: Path) -> None:
    config = run_here(tmp_path / "run", "method=ride_bkd_2", "stage1.epochs=1")
    assert config.stage2 is not None
    for stage in (config.stage1, config.stage2):
        assert stage.reweighting["_target_"].endswith("NoReweighting")
        assert (stage.loss["max_margin"], stage.loss["rarity"]) == (0.0, 0.0)
    term = config.stage2.terms["distillation"]
    assert (term.weight, term.loss["scale"], config.stage2.teacher) == (2, None, "stage1")
    teacher, student = (weights(tmp_path / "run", stage) for stage in ("stage1", "stage2"))
    assert {name: value.shape for name, value in teacher.items()} == {
        name: value.shape for name, value in student.items()
    }
    three = composed("method=ride_bkd_3")
    assert three["stage2"]["terms"]["distillation"]["weight"] == three["backbone"]["experts"] == 3
