"""Factors on learning rate and weight decay: which parameter has which, and that they act by the optimizer's rule."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import TINY, composed, run_here, tiny, weights
from torch import nn

from ltexp.config import StageConfig, to_config
from ltexp.config.identity import digest, stage_identity
from ltexp.errors import ConfigError
from ltexp.models.cifar_resnet import CifarResNet
from ltexp.models.classifier import Linear
from ltexp.models.memory import CentroidMemory
from ltexp.models.model import Model
from ltexp.training.groups import check_factors, check_names, parameter_groups

MODEL = Model(CifarResNet(8), Linear(64, 4))


def stage(*words: str) -> StageConfig:
    return to_config(composed("method=ce", "stage1.optimizer.lr=0.1", *words)).stages["stage1"]


def settings_of(*words: str) -> dict[str, tuple[float, float | None]]:
    """(learning rate, weight decay) of each parameter by its name; None: the optimizer's."""
    names = {p: f"{part}.{own}" for part, module in MODEL.parts().items() for own, p in module.named_parameters()}
    groups = parameter_groups(MODEL, stage(*words))
    return {names[p]: (group["lr"], group.get("weight_decay")) for group in groups for p in group["params"]}


def test_without_factors_there_is_one_group_of_the_optimizers_own_settings() -> None:
    assert set(settings_of().values()) == {(0.1, None)}


def test_the_longest_name_counts_and_one_dimension_times_that() -> None:
    found = settings_of(
        "stage1.optimizer.weight_decay=0.01",
        "+stage1.weight_decay_factors={one_dimensional: 0.5, backbone: 2, backbone.layer2: 4, classifier.bias: 10}",
        "+stage1.lr_factors.classifier=3",
    )
    assert found["backbone.conv1.weight"] == (0.1, pytest.approx(0.02))
    assert found["backbone.layer2.0.conv1.weight"] == (0.1, pytest.approx(0.04))
    assert found["backbone.layer2.0.bn1.weight"] == (0.1, pytest.approx(0.02))
    assert found["classifier.weight"] == (pytest.approx(0.3), pytest.approx(0.01))
    assert found["classifier.bias"] == (pytest.approx(0.3), pytest.approx(0.05))


def test_a_step_decays_by_its_factor() -> None:
    """SGD without a gradient: w - lr · wd · factor · w."""
    config = stage(
        "stage1.optimizer.weight_decay=0.01", "+stage1.weight_decay_factors={one_dimensional: 0, classifier: 7}"
    )
    before = {name: p.detach().clone() for name, p in MODEL.named_parameters()}
    for parameter in MODEL.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.SGD(parameter_groups(MODEL, config), weight_decay=0.01).step()
    for name, parameter in MODEL.named_parameters():
        factor = 0 if parameter.ndim == 1 else 7 if name.startswith("classifier") else 1
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.1 * 0.01 * factor))


def grouped(model: Model) -> list[nn.Parameter]:
    return [parameter for group in parameter_groups(model, stage()) for parameter in group["params"]]


def test_frozen_parameters_are_in_no_group() -> None:
    model = Model(CifarResNet(8), Linear(64, 4))
    model.set_trainable(backbone=False, batch_norm="frozen")
    assert grouped(model) == list(model.classifier.parameters())


def test_a_parameter_of_two_parts_is_in_one_group() -> None:
    model = Model(CifarResNet(8), Linear(64, 4))
    model.backbone.head = model.classifier
    assert len(grouped(model)) == len(set(grouped(model))) == len(list(model.parameters()))


def test_a_run_trains_with_them_and_resumes(tmp_path: Path) -> None:
    """Without decay of the biases and norms other weights are learned."""
    run_here(tmp_path / "plain", *tiny("ce"))
    run_here(tmp_path / "spared", *tiny("ce"), "+stage1.weight_decay_factors.one_dimensional=0")
    one, other = (weights(tmp_path / name, "stage1") for name in ("plain", "spared"))
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_the_new_key_leaves_the_hashes_of_earlier_records_alone() -> None:
    plain = stage_identity(stage())
    assert "weight_decay_factors" not in plain
    assert digest(stage_identity(stage("+stage1.weight_decay_factors.backbone=2"))) != digest(plain)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (
            "+stage1.lr_factors.backbone.layr3=0.1",
            r"^unknown parameter in stage1\.lr_factors 'backbone\.layr3': did",
        ),
        ("+stage1.weight_decay_factors.backbone.layr3=0", r"stage1\.weight_decay_factors .*'backbone\.layer3'\?$"),
        ("+stage1.weight_decay_factors.clasifier=0", r"did you mean 'classifier'"),
        ("+stage1.lr_factors.backbone=-1", r"stage1\.lr_factors\.backbone=-1: expected a number of 0 or more"),
        ("+stage1.lr_factors.backbone=fast", r"stage1\.lr_factors\.backbone=fast: expected a number of 0 or more"),
        ("+stage1.weight_decay_factors.backbone=null", r"expected a number of 0 or more"),
    ],
)
def test_factors_without_effect_are_refused(tmp_path: Path, word: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        run_here(tmp_path / "run", "method=ce", *TINY, word)


def test_an_optimizer_without_weight_decay_has_no_factors_on_it() -> None:
    config = replace(stage("+stage1.weight_decay_factors.backbone=0"), optimizer={"_target_": "torch.optim.Rprop"})
    with pytest.raises(ConfigError, match=r"stage1\.weight_decay_factors: torch\.optim\.Rprop has no weight decay"):
        check_factors("stage1", config, MODEL.classifier)


def test_names_within_a_module_are_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown parameter in stage1\.lr_factors 'modules\.auxiliary\.xx'"):
        run_here(tmp_path / "run", "method=dasl", *TINY, "+stage1.lr_factors.modules.auxiliary.xx=0.1")


def test_a_part_that_settings_leave_out_may_be_named_as_a_method_file_does() -> None:
    model = Model(CifarResNet(8), Linear(64, 4), {"memory": CentroidMemory(64, 4, attention=False)})
    for own, known in (("attention", True), ("attentoin", False)):
        config = replace(stage(), lr_factors={"modules": {"memory": {own: 0.1}}})
        with nullcontext() if known else pytest.raises(ConfigError, match=r"did you mean 'modules\.memory\.attention'"):
            check_names("stage1", config, lambda: model)
