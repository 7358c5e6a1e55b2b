"""The losses with margins on cosines: CosFace, ArcFace and LDAM against their equations."""

import math
from collections.abc import Callable

import pytest
import torch
from choices import build
from torch import Tensor

from ltexp.errors import ConfigError
from ltexp.losses.base import Loss
from ltexp.losses.margin_softmax import LDAM, ArcFace, CosFace, arcface_cosine, ldam_margins
from ltexp.outputs import ModelOutput

CIFAR10 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]  # imbalance ratio 100
COUNTS = {
    "sorted": torch.tensor(CIFAR10),
    "unsorted": torch.tensor([83, 5000, 50, 645, 139, 2997, 387, 1077, 232, 1796]),
    "equal": torch.full((10,), 40),
}
Target = Callable[[Tensor, int, list[int]], Tensor]


def cosface(margin: float) -> Target:
    return lambda cosine, c, n: cosine - margin


def ldam(largest: float) -> Target:
    return lambda cosine, c, n: cosine - largest * (min(n) / n[c]) ** 0.25


def arcface(margin: float) -> Target:
    def target(cosine: Tensor, c: int, n: list[int]) -> Tensor:
        angle = torch.arccos(cosine)
        return torch.cos(angle + margin) if angle + margin < math.pi else cosine - margin * math.sin(math.pi - margin)

    return target


CASES: list[tuple[str, dict[str, float], float, Target]] = [
    ("cosface", {}, 30.0, cosface(0.35)),
    ("cosface", {"margin": 0.1, "scale": 7.0}, 7.0, cosface(0.1)),
    ("ldam", {}, 30.0, ldam(0.5)),
    ("ldam", {"max_margin": 0.2, "scale": 1.0}, 1.0, ldam(0.2)),
    ("arcface", {}, 30.0, arcface(0.5)),
    ("arcface", {"margin": 1.2, "scale": 1.0}, 1.0, arcface(1.2)),
]
NAMES = [f"{name}-{'-'.join(map(str, settings.values()))}" for name, settings, *_ in CASES]


def batch(rows: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """Cosines over the whole of (-1, 1), so that ArcFace's fallback is used too, and targets."""
    draws = torch.Generator().manual_seed(rows)
    cosines = 1.98 * torch.rand(rows, num_classes, generator=draws) - 0.99
    return cosines, torch.randint(num_classes, (rows,), generator=draws)


@pytest.mark.parametrize("order", COUNTS)
@pytest.mark.parametrize(("name", "settings", "scale", "of_target"), CASES, ids=NAMES)
def test_value_and_gradient(name: str, settings: dict[str, float], scale: float, of_target: Target, order: str) -> None:
    """-log of the softmax by its definition, sample by sample in float64."""
    n = COUNTS[order].tolist()
    cosines, y = batch(33, len(n))
    exact = cosines.double().requires_grad_()
    rows = []
    for row, c in zip(exact, y.tolist(), strict=True):
        own = (scale * of_target(row[c], c, n)).exp()
        rows.append(-(own / (own + sum((scale * row[j]).exp() for j in range(len(n)) if j != c))).log())
    expected = torch.stack(rows).mean()
    expected.backward()
    measured = cosines.clone().requires_grad_()
    value = build("loss", name, class_counts=COUNTS[order], **settings)(ModelOutput(logits=measured), y)
    value.backward()
    torch.testing.assert_close(value, expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(measured.grad, exact.grad.float(), rtol=2e-4, atol=1e-6)
    assert torch.equal(measured.detach(), cosines)  # the margin did not change the model's output


def test_ldam_margins_of_cifar10() -> None:
    expected = [0.1581, 0.1797, 0.2042, 0.2321, 0.2638, 0.2998, 0.3407, 0.3872, 0.4405, 0.5]
    torch.testing.assert_close(ldam_margins(COUNTS["sorted"], 0.5), torch.tensor(expected), rtol=0, atol=6e-5)


def test_ldam_with_equal_counts_has_one_margin() -> None:
    assert ldam_margins(COUNTS["equal"], 0.3).tolist() == pytest.approx([0.3] * 10)


def test_arcface_falls_where_the_angle_grows() -> None:
    """Past pi - m the cosine of the turned angle would rise again; the fallback keeps on falling."""
    cosines = torch.cos(torch.linspace(0, math.pi, 1000)).requires_grad_()
    turned = arcface_cosine(cosines, 0.5)
    assert (turned.diff() < 1e-6).all()
    turned.sum().backward()
    assert cosines.grad is not None
    assert cosines.grad.isfinite().all()


@pytest.mark.parametrize("name", ["cosface", "ldam", "arcface"])
@pytest.mark.parametrize("order", COUNTS)
def test_without_a_margin_is_the_cosine_softmax(name: str, order: str) -> None:
    cosines, y = batch(16, 10)
    margin = {"max_margin" if name == "ldam" else "margin": 0.0}
    plain = build("loss", "cross_entropy", class_counts=COUNTS[order], scale=30.0)
    expected = plain(ModelOutput(logits=cosines), y)
    value = build("loss", name, class_counts=COUNTS[order], **margin)(ModelOutput(logits=cosines), y)
    torch.testing.assert_close(value, expected)


def test_ldam_with_equal_counts_is_cosface() -> None:
    cosines, y = batch(16, 10)
    output = ModelOutput(logits=cosines)
    one = build("loss", "ldam", class_counts=COUNTS["equal"], max_margin=0.4)(output, y)
    torch.testing.assert_close(one, build("loss", "cosface", class_counts=COUNTS["sorted"], margin=0.4)(output, y))


@pytest.mark.parametrize("name", ["cosface", "ldam", "arcface"])
def test_half_precision_and_many_classes_stay_finite(name: str) -> None:
    """Cosines rounded to bfloat16, some exactly 1 and -1, with iNaturalist 2018's number of classes."""
    n = torch.linspace(1000, 2, 8142).long()
    cosines, y = batch(8, 8142)
    cosines[0, y[0]], cosines[1, y[1]] = 1.0, -1.0
    half = cosines.bfloat16().requires_grad_()
    loss = build("loss", name, class_counts=n)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(ModelOutput(logits=half), y)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert half.grad is not None
    assert half.grad.isfinite().all()
    torch.testing.assert_close(value, loss(ModelOutput(logits=half.detach().float()), y))


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (CosFace, {"margin": -0.1}, "invalid margin=-0.1: expected a number of 0 or more and below 2"),
        (CosFace, {"scale": 0.0}, "invalid scale=0.0: expected a number above 0"),
        (ArcFace, {"margin": 3.2}, "invalid margin=3.2: expected a number of 0 or more and below 3.142"),
        (LDAM, {"max_margin": 2.0}, "invalid max_margin=2.0: expected a number of 0 or more and below 2"),
        (LDAM, {"max_margin": math.nan}, "invalid max_margin=nan: expected a number of 0 or more and below 2"),
    ],
)
def test_settings_out_of_range(loss: type[Loss], settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loss(class_counts=COUNTS["sorted"], **settings)


@pytest.mark.parametrize("loss", [CosFace, ArcFace, LDAM])
def test_refuses_a_class_without_images(loss: type[Loss]) -> None:
    with pytest.raises(ConfigError, match="no training images for class 1"):
        loss(class_counts=torch.tensor([5, 0, 3]))


@pytest.mark.parametrize("name", ["cosface", "ldam", "arcface"])
def test_moves_to_another_device(name: str) -> None:
    loss = build("loss", name, class_counts=COUNTS["unsorted"]).to("meta")
    value = loss(ModelOutput(logits=torch.empty(4, 10, device="meta")), torch.zeros(4, dtype=torch.long, device="meta"))
    assert value.device.type == "meta"
