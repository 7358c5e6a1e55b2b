"""The model: its output, what learns in each setting, and loading a part from a checkpoint."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.errors import CheckpointError, ConfigError
from ltexp.models.checkpoint import load_part
from ltexp.models.cifar_resnet import CifarResNet
from ltexp.models.classifier import Linear
from ltexp.models.model import BATCH_NORMS, Model
from ltexp.randomness import default_generator, generator

IMAGES = torch.randn(8, 3, 8, 8, generator=generator("images"))
LABELS = torch.arange(8) % 4


@pytest.fixture
def model() -> Model:
    with default_generator("model"):
        return Model(CifarResNet(8), Linear(64, 4))


def group_of(name: str) -> str:
    """Which of the groups below an entry of the state belongs to."""
    if "running" in name or "num_batches" in name:
        return "statistics"
    if ".bn" in name:
        return "affine"
    return "weights" if name.startswith("backbone") else "classifier"


def train_steps(model: Model, steps: int = 2) -> None:
    # An optimizer over all parameters: what is not to learn must not depend on being left out of it.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        loss = F.cross_entropy(model(IMAGES).logits, LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def changed_groups(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The groups that changed; asserts that within a group all entries change or none."""
    changes: dict[str, set[bool]] = {}
    for name, value in before.items():
        changes.setdefault(group_of(name), set()).add(not torch.equal(value, after[name]))
    assert all(len(kinds) == 1 for kinds in changes.values())
    return {group for group, kinds in changes.items() if kinds == {True}}


@pytest.mark.parametrize(
    ("backbone", "classifier", "batch_norm"), list(itertools.product([True, False], [True, False], BATCH_NORMS))
)
def test_exactly_what_is_declared_changes(model: Model, backbone: bool, classifier: bool, batch_norm: str) -> None:
    declared = {"weights"} if backbone else set()
    declared |= {"classifier"} if classifier else set()
    declared |= {"train": {"statistics", "affine"}, "statistics": {"statistics"}, "frozen": set()}[batch_norm]
    model.set_trainable(backbone=backbone, classifier=classifier, batch_norm=batch_norm)
    for _ in range(2):  # evaluation between epochs, as Lightning does
        before = copy.deepcopy(model.state_dict())
        if {"weights", "affine", "classifier"} & declared:
            train_steps(model)
        else:
            model(IMAGES)
        assert changed_groups(before, model.state_dict()) == declared
        before = copy.deepcopy(model.state_dict())
        model.eval()
        model(IMAGES)
        model.train()
        model.eval()
        model.train()
        assert changed_groups(before, model.state_dict()) == set()


@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
def test_batch_norms_normalise_by_the_batch_unless_frozen(model: Model, batch_norm: str) -> None:
    model.set_trainable(backbone=False, batch_norm=batch_norm)
    whole, half = model(IMAGES).features, model(IMAGES[:4]).features
    assert torch.allclose(whole[:4], half, atol=1e-5) == (batch_norm == "frozen")


def test_shifted_statistics_move_from_where_they_are_with_momentum_one_tenth(model: Model) -> None:
    model.backbone.bn1.running_mean.fill_(5.0)
    model.set_trainable(backbone=False, batch_norm="statistics")
    model(IMAGES)
    batch_mean = F.conv2d(IMAGES, model.backbone.conv1.weight, padding=1).mean((0, 2, 3))
    torch.testing.assert_close(model.backbone.bn1.running_mean, 0.9 * torch.full((16,), 5.0) + 0.1 * batch_mean)


@pytest.mark.parametrize("batch_norm", BATCH_NORMS)
def test_a_synchronised_batch_norm_is_governed_too(model: Model, batch_norm: str) -> None:
    model.set_trainable(backbone=False, batch_norm=batch_norm)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for mode in (False, True):
        model.train(mode)
        norms = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
        assert len(norms) == 7
        assert all(norm.training == (mode and batch_norm != "frozen") for norm in norms)
        assert all(norm.weight.requires_grad == (batch_norm == "train") for norm in norms)


def test_a_fixed_backbone_is_in_eval_mode_apart_from_its_batch_norms(model: Model) -> None:
    model.backbone.add_module("dropout", nn.Dropout())
    model.set_trainable(backbone=False, batch_norm="statistics")
    model.train()
    assert not model.backbone.dropout.training
    assert model.backbone.bn1.training
    assert model.classifier.training
    model.set_trainable(backbone=True, batch_norm="frozen")
    assert model.backbone.dropout.training
    assert not model.backbone.bn1.training
    model.eval()
    model.set_trainable(backbone=True, batch_norm="train")
    assert not any(module.training for module in model.modules())


def test_a_backbone_with_nothing_to_learn_runs_without_a_graph(model: Model) -> None:
    assert model(IMAGES).features.requires_grad
    for batch_norm, graph in [("frozen", False), ("statistics", False), ("train", True)]:
        model.set_trainable(backbone=False, batch_norm=batch_norm)
        output = model(IMAGES, {"feature_maps"})
        assert output.features.requires_grad == graph
        assert output.feature_maps[0].requires_grad == graph
        assert output.logits.requires_grad
    with torch.no_grad():
        assert not model(IMAGES).logits.requires_grad
    model.set_trainable(backbone=False, batch_norm="frozen")
    # a step may ask for the gradient of its images
    images = IMAGES.clone().requires_grad_()
    model(images).logits.sum().backward()
    assert images.grad is not None
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_maps_come_on_request_and_change_nothing(model: Model) -> None:
    model.eval()
    plain, full = model(IMAGES), model(IMAGES, {"feature_maps"})
    assert plain.feature_maps is None
    assert [m.shape[1] for m in full.feature_maps] == model.backbone.map_channels
    assert torch.equal(plain.logits, full.logits)
    assert torch.equal(plain.logits, model.classifier(plain.features))


def test_an_unknown_batch_norm_choice_is_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match="did you mean 'statistics'"):
        model.set_trainable(batch_norm="statistic")


def test_parameter_names_begin_with_their_part(model: Model) -> None:
    names = [name for name, _ in model.named_parameters()]
    assert {"classifier.weight", "classifier.bias", "backbone.conv1.weight"} <= set(names)


def test_a_part_loads_from_its_state() -> None:
    source, target = CifarResNet(8), CifarResNet(8)
    load_part(target, source.state_dict(), "the backbone")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())


def test_a_part_of_another_model_is_refused_in_one_line_and_nothing_is_loaded() -> None:
    target = CifarResNet(8)
    before = copy.deepcopy(target.state_dict())
    larger = {name: value + 1 for name, value in CifarResNet(14).state_dict().items()}
    for state, what in [
        (
            larger,
            r"the backbone in x.ckpt belongs to a different model: 36 names unexpected, first 'layer1.1.conv1.weight';",
        ),
        (
            {"conv1.weight": torch.zeros(16, 1, 3, 3)},
            r"names missing, first 'bn1.weight'; 'conv1.weight' has shape "
            r"\(16, 1, 3, 3\) there and \(16, 3, 3, 3\) here",
        ),
        ({**before, "bn1.weight": 3}, "'bn1.weight' is no tensor but int"),
    ]:
        with pytest.raises(CheckpointError, match=what) as caught:
            load_part(target, state, "the backbone in x.ckpt")
        assert "\n" not in str(caught.value)
        assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
