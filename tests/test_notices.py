"""Settings without effect are said before a run begins; those that have one are not."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from choices import names
from clips import beside
from runs import composed

from ltexp.config import to_config
from ltexp.training.notices import settings_without_effect

LONG = torch.tensor([500, 100, 20, 5])
EQUAL = torch.tensor([50, 50, 50, 50])


def notices(*overrides: str, counts: torch.Tensor = LONG, imbalance: str = "longtail") -> list[str]:
    """What is said of a run on classes of so many images."""
    session: Any = SimpleNamespace(
        config=to_config(composed(*overrides, small=False)),
        data=SimpleNamespace(imbalance=imbalance),
        for_stage=lambda stage: SimpleNamespace(class_counts=counts),
    )
    return settings_without_effect(session)


@pytest.mark.slow
@pytest.mark.parametrize("method", names("method"))
def test_nothing_is_said_of_a_method_as_its_paper_trains_it(method: str) -> None:
    # EQL has no rare class among so few; at CIFAR's ratio 100 it has
    counts = torch.tensor([500, 100, 20, 5, 2]) if method == "eql" else LONG
    assert notices(f"method={method}", "dataset=cifar100_lt", *beside(method), counts=counts) == []


@pytest.mark.parametrize(
    ("overrides", "counts", "said"),
    [
        (
            ["method=ce", "stage1.epochs=3", "stage1.schedule.warmup_epochs=5", "stage1.schedule.milestones=[0.5]"],
            LONG,
            "stage1.schedule.warmup_epochs=5 is longer than its 3 epochs: the rate is never full",
        ),
        (
            ["method=ce", "stage1.epochs=8", "stage1.schedule.warmup_epochs=0", "stage1.schedule.milestones=[0.5,0.9]"],
            LONG,
            "stage1.schedule.milestones: there is no drop at 0.9 of its 8 epochs",
        ),
        (
            ["method=ldam", "loss@stage1.loss=balanced_softmax"],
            LONG,
            "stage1.loss.scale=1 leaves a cosine classifier's logits within -1 and 1, a flat softmax: 30 or so is "
            "usual",
        ),
        (
            ["method=lift"],
            LONG,
            "stage1.classifier starts from class means of an untrained network, which learns from scratch: add a "
            "network with weights and a fine_tuning, such as backbone=timm backbone.weights=FILE "
            "fine_tuning=adaptformer",
        ),
        (
            ["method=ce", "stage1.trainable.backbone=false", "stage1.trainable.classifier=false"],
            LONG,
            "stage1.trainable: neither backbone nor classifier learns; only the batch norms change in its epochs",
        ),
        (
            ["method=eql"],
            torch.tensor([50, 40]),
            "stage1.loss: Equalization is the same as cross-entropy here (50 to 40 images of a class)",
        ),
        (
            ["method=bsce"],
            EQUAL,
            "stage1.loss: BalancedSoftmax is the same as cross-entropy here (50 to 50 images of a class)",
        ),
        (["method=ce_drw"], EQUAL, "stage1.reweighting has no effect: all classes have the same weight"),
        (
            [
                *("method=ce", "+loss@stage1.terms.aux.loss=label_smoothing", "+stage1.terms.aux.weight=0"),
                "stage1.terms.aux.loss.epsilon=0.3",
            ],
            LONG,
            "stage1.terms.aux has weight 0: loss@stage1.terms.aux.loss, stage1.terms.aux.loss.epsilon has no effect",
        ),
        (
            ["method=ce", "trainer.compile_backend=eager"],
            LONG,
            "trainer.compile_backend has no effect without trainer.compile=true",
        ),
    ],
)
def test_what_has_no_effect_is_said(overrides: list[str], counts: torch.Tensor, said: str) -> None:
    assert notices("dataset=cifar100_lt", *overrides, counts=counts) == [said]


def test_a_ratio_of_balanced_data_is_said() -> None:
    typed = ("method=ce", "dataset=cifar100_lt", "dataset.imbalance=balanced", "dataset.imbalance_ratio=50")
    (line,) = notices(*typed, counts=LONG, imbalance="balanced")
    assert line == "dataset.imbalance_ratio has no effect with dataset.imbalance=balanced"
