"""What holds for every loss: refused counts, the balanced limit, many classes under autocast, its classifier."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from choices import LEARNED, context_of, full_output, names
from choices import load as load_choice
from hydra.utils import get_class
from runs import composed, run_here, weights
from torch import Tensor

from ltexp.config import to_config
from ltexp.config.build import build as build_node
from ltexp.errors import ConfigError
from ltexp.outputs import ModelOutput
from ltexp.training.composition import check_composition

EQUAL = torch.full((5,), 40)
COUNTS = torch.tensor([60, 12, 3])
BALANCED = {  # what each loss of class counts is when all counts are equal
    "weighted_cross_entropy": ("cross_entropy", {}),
    "class_balanced": ("cross_entropy", {}),
    "class_balanced_focal": ("focal", {}),
    "balanced_softmax": ("cross_entropy", {}),
    "logit_adjustment": ("cross_entropy", {}),
    "gradual_balanced": ("cross_entropy", {}),
    "vector_scaling": ("cross_entropy", {}),
    "feature_balanced": ("cross_entropy", {}),
    "label_aware_smoothing": ("label_smoothing", {"epsilon": 0.4, "spread": "others"}),
    "ldam": ("cosface", {"margin": 0.5}),
    "key_point": ("cosface", {"margin": 0.5, "scale": 15.0}),
    "gaussian_clouded": ("cross_entropy", {"scale": 30.0}),
    "equalization": ("cross_entropy", {}),  # no class is rare
}


def build(group: str, name: str, **keywords: Any) -> Any:
    """As a run builds it, with its errors as they are."""
    counts = {"class_counts": keywords.pop("class_counts")}
    return build_node({**load_choice(group, name), **keywords}, **counts)


def of_cosines(name: str) -> bool:
    kind = get_class(load_choice("loss", name)._target_)
    return bool(kind.classifier == "cosine" and not kind.needs - {"features"})


COSINE = [name for name in names("loss") if of_cosines(name)]


@pytest.mark.parametrize("name", names("loss"))
def test_a_class_without_images_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no training images for class 1; lower the imbalance ratio") as error:
        build("loss", name, class_counts=torch.tensor([5, 0, 3]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", names("loss"))
def test_a_scale_out_of_range_is_refused(name: str) -> None:
    if "scale" in load_choice("loss", name):
        with pytest.raises(ConfigError, match=r"^invalid scale=-1\.0: expected a number above 0"):
            build("loss", name, class_counts=EQUAL, scale=-1.0)


def reads_anothers_logits(name: str) -> bool:
    needs = get_class(load_choice("loss", name)._target_).needs
    return bool(needs & {"teacher_logits", "auxiliary_logits"}) and "scale" in load_choice("loss", name)


@pytest.mark.parametrize("name", [name for name in names("loss") if reads_anothers_logits(name)])
def test_a_term_compares_cosines_with_anothers_logits_at_the_models_own_scale(name: str) -> None:
    """At the scale of the output it is what it is for the scaled logits; at another it is not."""
    draws, labels = torch.Generator().manual_seed(0), torch.arange(8) % 5
    logits, other = (6 * torch.randn(8, 5, generator=draws) for _ in range(2))
    loss = build("loss", name, class_counts=torch.tensor([400, 200, 150, 30, 10]))
    loss.set_progress(3, 4)
    read = {"teacher_logits": other, "auxiliary_logits": other}
    scaled = loss(ModelOutput(logits=logits, **read), labels)
    torch.testing.assert_close(loss(ModelOutput(logits=logits / 30, logit_scale=30.0, **read), labels), scaled)
    assert not torch.isclose(loss(ModelOutput(logits=logits / 30, **read), labels), scaled, rtol=0.01)


def value_and_gradient(name: str, settings: dict[str, Any], epoch: int) -> tuple[Tensor, Tensor | None]:
    torch.manual_seed(0)
    output, y = full_output(torch.rand(12, 5) * 2 - 1), torch.arange(12) % 5
    leaf = output.logits.requires_grad_()
    others = [output.features, output.expert_logits, output.auxiliary_logits, *output.feature_maps]
    others += [output.extra[name] for name in LEARNED]
    for other in others:
        other.requires_grad_()
    loss = build("loss", name, class_counts=EQUAL, **settings)
    value = loss(output, y, context_of(loss, output, y, epoch))
    value.backward()
    assert all(other.grad is None or other.grad.isfinite().all() for other in others)
    return value.detach(), leaf.grad


@pytest.mark.parametrize("epoch", [0, 9])
@pytest.mark.parametrize("name", names("loss"))
def test_equal_counts_are_the_balanced_limit_and_no_division_by_zero(name: str, epoch: int) -> None:
    value, gradient = value_and_gradient(name, {}, epoch)
    assert value.isfinite()
    assert gradient is None or gradient.isfinite().all()
    if name in BALANCED:
        other, settings = BALANCED[name]
        torch.testing.assert_close((value, gradient), value_and_gradient(other, settings, epoch))


@pytest.mark.parametrize("epoch", [0, 9])
@pytest.mark.parametrize("name", sorted(set(names("loss")) - {"online_label_smoothing"}))  # it keeps (C, C): half a GB
def test_many_classes_under_bf16_autocast_do_not_overflow(name: str, epoch: int) -> None:
    """The size of iNaturalist 2018, logits as large as the loss's classifier gives them, rounded to bfloat16."""
    counts = torch.linspace(1000, 2, 8142).long()[torch.randperm(8142, generator=torch.Generator().manual_seed(0))]
    loss = build("loss", name, class_counts=counts)
    draws = torch.Generator().manual_seed(1)
    size = 1.0 if loss.classifier == "cosine" else 60.0
    output = full_output((size * (2 * torch.rand(4, 8142, generator=draws) - 1)).bfloat16())
    leaf = output.logits.requires_grad_()
    leaves = (output.features, output.expert_logits, output.auxiliary_logits, *output.feature_maps)
    for other in (*leaves, *(output.extra[name] for name in LEARNED)):
        other.requires_grad_()
    labels = torch.tensor([0, 8141, 17, 4000])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(output, labels, context_of(loss, output, labels, epoch))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert leaf.grad is None or leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", COSINE)
def test_a_loss_of_cosines_on_a_linear_classifier_is_refused_before_data_is_read(name: str) -> None:
    config = to_config(composed("method=ce", f"loss@stage1.loss={name}", "dataset=cifar10_lt", "paths.data=nowhere"))
    hint = r"needs a cosine classifier and this one is linear: add classifier@stage1\.classifier=cosine"
    with pytest.raises(ConfigError, match=f"stage1: .*{hint}") as error:
        check_composition(config)
    assert "\n" not in str(error.value)


def test_the_cosine_losses_are_those_of_the_readme() -> None:
    assert {"arcface", "cosface", "ldam", "key_point", "gaussian_clouded"} <= set(COSINE)


@pytest.mark.parametrize("loss", ["feature_balanced", "key_point", "gradual_balanced"])
@pytest.mark.parametrize("epochs", ["null", "0", "-1"])
def test_a_curriculum_without_an_epoch_count_is_refused(loss: str, epochs: str) -> None:
    with pytest.raises(ConfigError, match=r"^(invalid )?stage1\.epochs") as error:
        to_config(composed("method=ce", f"loss@stage1.loss={loss}", f"stage1.epochs={epochs}"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["kps", "fbl", "gcl"])
def test_balanced_data_trains(method: str, tmp_path: Path) -> None:
    """CBEN's constants included: equal counts have one effective number."""
    run_here(tmp_path / "run", f"method={method}", "dataset.imbalance=balanced", "stage1.epochs=1")
    assert all(value.isfinite().all() for value in weights(tmp_path / "run", "stage1").values())


WRONG_LOGITS = {
    "int64 (3, 3)": torch.zeros(3, 3, dtype=torch.int64),
    "float32 (3, 1)": torch.zeros(3, 1),
    "float32 (3, 5)": torch.zeros(3, 5),
    "float32 (3,)": torch.zeros(3),
    "float32 (2, 3, 3)": torch.zeros(2, 3, 3),
    "a list": [[0.0] * 3] * 3,
}
WRONG_LABELS = {
    "a list": [0, 1, 2],
    "a ndarray": np.arange(3),
    "float32 (3,)": torch.zeros(3),
    "bool (3,)": torch.zeros(3, dtype=torch.bool),
    "int64 (3, 1)": torch.zeros(3, 1, dtype=torch.int64),
    "int64 (2,)": torch.zeros(2, dtype=torch.int64),
    "float32 (3, 3)": torch.eye(3),
}


@pytest.mark.parametrize("name", names("loss"))
def test_logits_and_labels_that_do_not_go_together_are_one_line(name: str) -> None:
    """Three samples of three classes, so that what may be broadcast or taken for a mask is."""
    loss, output = build("loss", name, class_counts=COUNTS), full_output(torch.zeros(3, 3))
    context, own = context_of(loss, output, torch.arange(3)), type(loss).__name__
    for given, logits in WRONG_LOGITS.items():
        message = (
            rf"^{own}: logits of (torch\.)?{re.escape(given)}: expected a float tensor \(B, 3\), a column for each"
        )
        with pytest.raises(ConfigError, match=message):
            loss(replace(output, logits=logits), torch.arange(3), context)
    for given, labels in WRONG_LABELS.items():
        message = (
            rf"^{own}: labels of (torch\.)?{re.escape(given)}: expected an integer tensor \(3,\), one for each row"
        )
        with pytest.raises(ConfigError, match=message):
            loss(output, labels, context)
    with pytest.raises(ConfigError, match=rf"^{own}: output of a ndarray: expected logits"):
        loss(np.zeros((3, 3)), torch.arange(3), context)
    for part in loss.needs & {"expert_logits", "teacher_logits", "auxiliary_logits"}:
        with pytest.raises(ConfigError, match=rf"^{own}: {part} of .*\(3, 1\): expected the last two .* \(3, 3\)"):
            loss(replace(output, **{part: torch.zeros(3, 1)}), torch.arange(3), context)


@pytest.mark.parametrize("name", names("loss"))
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_labels_of_any_integer_type_are_the_same(name: str, dtype: torch.dtype) -> None:
    output = full_output(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    labels = torch.tensor([2, 0, 1])
    values = []
    for given in (labels, labels.to(dtype)):
        loss = build("loss", name, class_counts=COUNTS)
        values.append(loss(output, given, context_of(loss, output, labels)))
    torch.testing.assert_close(values[1], values[0], rtol=0, atol=0)
