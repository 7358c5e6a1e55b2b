"""Each loss against its equation, transcribed over target distributions and probabilities in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from choices import build
from torch import Tensor

from ltexp.losses.label_aware_smoothing import smoothing_factors
from ltexp.outputs import ModelOutput

CIFAR10 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]  # imbalance ratio 100
COUNTS = {
    "sorted": torch.tensor(CIFAR10),
    "unsorted": torch.tensor([83, 5000, 50, 645, 139, 2997, 387, 1077, 232, 1796]),
    "equal": torch.full((10,), 40),
}
Reference = Callable[[Tensor, Tensor, list[int]], Tensor]


def against(targets: list[list[float]], z: Tensor, weights: list[float] | None = None) -> Tensor:
    """-sum_i q_i log p_i of every row, with p the softmax of z by its definition, as a weighted mean."""
    p = z.exp() / z.exp().sum(dim=1, keepdim=True)
    rows = -(torch.tensor(targets, dtype=torch.float64) * p.log()).sum(dim=1)
    w = torch.tensor(weights or [1.0] * len(targets), dtype=torch.float64)
    return (w * rows).sum() / w.sum()


def one_hot(y: Tensor, num_classes: int) -> list[list[float]]:
    return [[1.0 if i == c else 0.0 for i in range(num_classes)] for c in y.tolist()]


def smoothed(y: Tensor, factors: list[float], spread: str) -> list[list[float]]:
    k = len(factors)
    rows = []
    for c in y.tolist():
        off = factors[c] / (k - 1) if spread == "others" else factors[c] / k
        on = 1 - factors[c] if spread == "others" else 1 - factors[c] + factors[c] / k
        rows.append([on if i == c else off for i in range(k)])
    return rows


def cross_entropy(z: Tensor, y: Tensor, n: list[int]) -> Tensor:
    return against(one_hot(y, len(n)), z)


def temperature(z: Tensor, y: Tensor, n: list[int]) -> Tensor:
    return against(one_hot(y, len(n)), 7.5 * z)


def weighted(power: float) -> Reference:
    return lambda z, y, n: against(one_hot(y, len(n)), z, [n[c] ** -power for c in y.tolist()])


def label_smoothing(epsilon: float, spread: str) -> Reference:
    return lambda z, y, n: against(smoothed(y, [epsilon] * len(n), spread), z)


def equation_3(form: str, n: int, largest: int, smallest: int, e1: float, ek: float, p: float = 1.0) -> float:
    if largest == smallest:
        return e1
    ratio = (n - smallest) / (largest - smallest)
    half = math.pi * (n - smallest) / (2 * (largest - smallest))
    return {
        "concave": ek + (e1 - ek) * math.sin(half),
        "linear": ek + (e1 - ek) * ratio,
        "convex": e1 + (e1 - ek) * math.sin(3 * math.pi / 2 + half),
        "power": ek + (e1 - ek) * ratio**p,
    }[form]


def label_aware(form: str, e1: float, ek: float, spread: str = "others", p: float = 1.0) -> Reference:
    def reference(z: Tensor, y: Tensor, n: list[int]) -> Tensor:
        return against(smoothed(y, [equation_3(form, m, max(n), min(n), e1, ek, p) for m in n], spread), z)

    return reference


def balanced_softmax(z: Tensor, y: Tensor, n: list[int]) -> Tensor:
    terms = torch.tensor(n, dtype=torch.float64) * z.exp()
    return -(terms[torch.arange(len(y)), y] / terms.sum(dim=1)).log().mean()


def logit_adjustment(tau: float) -> Reference:
    def reference(z: Tensor, y: Tensor, n: list[int]) -> Tensor:
        shift = [math.log((m / sum(n)) ** tau + 1e-12) for m in n]
        return against(one_hot(y, len(n)), z + torch.tensor(shift, dtype=torch.float64))

    return reference


CASES: list[tuple[str, dict[str, object], Reference]] = [
    ("cross_entropy", {}, cross_entropy),
    ("cross_entropy", {"scale": 7.5}, temperature),
    ("weighted_cross_entropy", {}, weighted(1.0)),
    ("weighted_cross_entropy", {"power": 0.5}, weighted(0.5)),
    ("label_smoothing", {}, label_smoothing(0.1, "all")),
    ("label_smoothing", {"epsilon": 0.3, "spread": "others"}, label_smoothing(0.3, "others")),
    ("label_aware_smoothing", {}, label_aware("concave", 0.4, 0.1)),
    ("label_aware_smoothing", {"spread": "all"}, label_aware("concave", 0.4, 0.1, "all")),
    ("label_aware_smoothing", {"form": "linear", "tail_smoothing": 0.0}, label_aware("linear", 0.4, 0.0)),
    ("label_aware_smoothing", {"form": "convex", "head_smoothing": 0.3}, label_aware("convex", 0.3, 0.1)),
    ("label_aware_smoothing", {"form": "power", "power": 2.0}, label_aware("power", 0.4, 0.1, p=2.0)),
    ("balanced_softmax", {}, balanced_softmax),
    ("logit_adjustment", {}, logit_adjustment(1.0)),
    ("logit_adjustment", {"tau": 1.7}, logit_adjustment(1.7)),
]
NAMES = [f"{name}-{'-'.join(map(str, settings.values()))}" for name, settings, _ in CASES]


def batch(rows: int, num_classes: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(rows)
    z = scale * torch.randn(rows, num_classes, generator=draws)
    return z, torch.randint(num_classes, (rows,), generator=draws)


@pytest.mark.parametrize("order", COUNTS)
@pytest.mark.parametrize(("name", "settings", "reference"), CASES, ids=NAMES)
def test_value_and_gradient(name: str, settings: dict[str, object], reference: Reference, order: str) -> None:
    n = COUNTS[order]
    z, y = batch(33, len(n))
    exact = z.double().requires_grad_()
    expected = reference(exact, y, n.tolist())
    expected.backward()
    measured = z.clone().requires_grad_()
    value = build("loss", name, class_counts=n, **settings)(ModelOutput(logits=measured), y)
    value.backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(measured.grad.double(), exact.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("name", "settings"), [case[:2] for case in CASES], ids=NAMES)
def test_half_precision_logits(name: str, settings: dict[str, object]) -> None:
    """bf16 logits are lifted before any arithmetic, so only their own rounding is lost, under autocast too."""
    n = COUNTS["unsorted"]
    z, y = batch(16, len(n))
    loss = build("loss", name, class_counts=n, **settings)
    half = z.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(ModelOutput(logits=half), y)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(ModelOutput(logits=half.float()), y))


@pytest.mark.parametrize(("name", "settings"), [case[:2] for case in CASES], ids=NAMES)
def test_many_classes_and_large_logits_stay_finite(name: str, settings: dict[str, object]) -> None:
    num_classes = 8142  # iNaturalist 2018: 2 to 1,000 images a class
    n = torch.linspace(1000, 2, num_classes).long()
    z, y = batch(8, num_classes, scale=100.0)
    z = z.bfloat16().requires_grad_()
    value = build("loss", name, class_counts=n, **settings)(ModelOutput(logits=z), y)
    value.backward()
    assert value.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize(("name", "settings"), [case[:2] for case in CASES], ids=NAMES)
def test_moves_to_another_device(name: str, settings: dict[str, object]) -> None:
    """Every tensor a loss needs is a buffer, so `.to` moves all of them."""
    loss = build("loss", name, class_counts=COUNTS["unsorted"], **settings).to("meta")
    value = loss(ModelOutput(logits=torch.empty(4, 10, device="meta")), torch.zeros(4, dtype=torch.long, device="meta"))
    assert value.device.type == "meta"


# Values of the published formulas, worked out apart from this code (CIFAR-10 and CIFAR-100, imbalance ratio 100).
FACTORS_CIFAR10 = [0.3, 0.24141, 0.15784, 0.09605, 0.05631, 0.03202, 0.01732, 0.00847, 0.00314, 0.0]
FACTORS_CIFAR100 = {  # classes 0, 1, 25, 50, 75, 99
    "concave": [0.4, 0.3992, 0.23831, 0.14081, 0.10952, 0.1],
    "linear": [0.4, 0.38606, 0.19152, 0.12606, 0.10606, 0.1],
    "convex": [0.4, 0.37812, 0.13379, 0.10279, 0.10015, 0.1],
}


def test_smoothing_factors_of_cifar10() -> None:
    factors = smoothing_factors(torch.tensor(CIFAR10), 0.3, 0.0, "concave")
    torch.testing.assert_close(factors, torch.tensor(FACTORS_CIFAR10), rtol=0, atol=6e-6)


@pytest.mark.parametrize("form", FACTORS_CIFAR100)
def test_smoothing_factors_of_cifar100(form: str) -> None:
    n = torch.tensor([int(500 * 0.01 ** (c / 99)) for c in range(100)])
    factors = smoothing_factors(n, 0.4, 0.1, form)[[0, 1, 25, 50, 75, 99]]  # type: ignore[arg-type]
    torch.testing.assert_close(factors, torch.tensor(FACTORS_CIFAR100[form]), rtol=0, atol=6e-6)
