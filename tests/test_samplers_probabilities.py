"""Class probabilities of the samplers against their formulas and against numbers worked out apart from this code."""

import math

import pytest
import torch
from choices import build, names
from torch import Tensor

CIFAR10 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]  # imbalance ratio 100
SHUFFLED = [83, 5000, 50, 645, 139, 2997, 387, 1077, 232, 1796]


def probabilities(name: str, n: list[int], epoch: int = 0, max_epochs: int = 1, **settings: object) -> Tensor:
    counts = torch.tensor(n)
    labels = torch.arange(len(n)).repeat_interleave(counts).flip(0)
    sampler = build("sampler", name, labels=labels, class_counts=counts, **settings)
    return sampler.class_probabilities(epoch, max_epochs)


def check(measured: Tensor, weights: list[float]) -> None:
    expected = torch.tensor([w / math.fsum(weights) for w in weights], dtype=torch.float64)
    torch.testing.assert_close(measured, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("n", [CIFAR10, SHUFFLED])
def test_powers_of_the_counts(n: list[int]) -> None:
    check(probabilities("instance_balanced", n), [float(c) for c in n])
    check(probabilities("square_root", n), [math.sqrt(c) for c in n])
    check(probabilities("class_balanced", n), [1.0] * 10)
    check(probabilities("class_aware", n), [1.0] * 10)
    check(probabilities("reversed", n), [max(n) / c for c in n])
    check(probabilities("power", n, exponent=0.8), [c**0.8 for c in n])
    for exponent, name in (
        (1.0, "instance_balanced"),
        (0.5, "square_root"),
        (0.0, "class_balanced"),
        (-1.0, "reversed"),
    ):
        torch.testing.assert_close(probabilities("power", n, exponent=exponent), probabilities(name, n))


@pytest.mark.parametrize("epoch", [0, 1, 45, 89, 90])
def test_progressively_balanced_moves_between_two_samplers(epoch: int) -> None:
    t = epoch / 90
    weights = [(1 - t) * c / 12406 + t / 10 for c in SHUFFLED]
    check(probabilities("progressively_balanced", SHUFFLED, epoch, 90), weights)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_effective_number_weighs_images(beta: float) -> None:
    check(probabilities("effective_number", SHUFFLED, beta=beta), [c * (1 - beta) / (1 - beta**c) for c in SHUFFLED])


@pytest.mark.parametrize(("base", "slope"), [(0.999, 0.0009), (0.9999, 1e-5), (0.9, 0.0)])
def test_class_based_effective_number(base: float, slope: float) -> None:
    weights = []
    for c in SHUFFLED:
        beta = base + slope * math.log(5000 / c) / math.log(5000 / 50)
        weights.append(c * (1 - beta) / (1 - beta**c))
    check(probabilities("class_based_effective_number", SHUFFLED, base=base, slope=slope), weights)


def test_published_shares() -> None:
    """Head and tail of CIFAR-10 at imbalance ratio 100: effective number, and CBEN with its two pairs of constants."""

    def ends(name: str, **settings: object) -> tuple[float, float]:
        p = probabilities(name, CIFAR10, **settings)
        return p[0].item(), p[-1].item()

    assert ends("effective_number") == pytest.approx((0.119, 0.094), abs=5e-4)
    thesis = ends("class_based_effective_number")
    assert thesis == pytest.approx((0.28574, 0.0569), abs=6e-6)
    assert thesis[0] / thesis[1] == pytest.approx(5.02, abs=5e-3)
    assert ends("class_based_effective_number", base=0.9999, slope=1e-5) == pytest.approx((0.1194, 0.09418), abs=6e-6)


@pytest.mark.parametrize("name", names("sampler"))
def test_equal_counts_give_equal_shares(name: str) -> None:
    """Also where a formula would divide 0 by 0."""
    torch.testing.assert_close(probabilities(name, [50] * 10, 3, 10), torch.full((10,), 0.1, dtype=torch.float64))
