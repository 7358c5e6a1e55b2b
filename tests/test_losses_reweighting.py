"""Re-weighted and adjusted losses against their equations, and the deferred schedules of weights and samplers."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from choices import build, full_output, names
from runs import assert_equal_weights, composed, run_here, weights
from torch import Tensor

from ltexp.config import Term, to_config
from ltexp.config.build import build as build_node
from ltexp.data.deferred import Deferred
from ltexp.data.loader import Batch
from ltexp.distributed import rank, world_size
from ltexp.errors import ConfigError
from ltexp.losses.base import Loss
from ltexp.losses.class_balanced import ClassBalanced, ClassBalancedFocal
from ltexp.losses.context import BatchContext
from ltexp.losses.equalization import Equalization
from ltexp.losses.focal import Focal
from ltexp.losses.lade import LADE
from ltexp.losses.reweighting import DeferredReweighting, Reweighted, effective_number_weights
from ltexp.losses.vector_scaling import VectorScaling
from ltexp.models.model import Model
from ltexp.outputs import ModelOutput
from ltexp.training.composition import check_composition
from ltexp.training.objective import Objective
from ltexp.training.session import Session
from ltexp.training.stage import Stage

CIFAR10 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]  # imbalance ratio 100
CIFAR100 = [int(500 * 0.01 ** (c / 99)) for c in range(100)]
COUNTS = {
    "sorted": torch.tensor(CIFAR10),
    "unsorted": torch.tensor([83, 5000, 50, 645, 139, 2997, 387, 1077, 232, 1796]),
    "equal": torch.full((10,), 40),
}
Reference = Callable[[Tensor, Tensor, list[int]], Tensor]


def vector(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def effective(n: list[int], beta: float) -> list[float]:
    """w_c = (1 - β) / (1 - β^n_c), scaled to sum to C."""
    raw = [(1 - beta) / (1 - beta**m) for m in n]
    return [w * len(n) / sum(raw) for w in raw]


def target_probability(z: Tensor, y: Tensor) -> Tensor:
    return (z.exp() / z.exp().sum(dim=1, keepdim=True))[torch.arange(len(y)), y]


def binary_terms(z: Tensor, y: Tensor, gamma: float, bias: float) -> Tensor:
    """-(1 - p_t)^γ log p_t over all classes, summed, one sample after the other."""
    rows = []
    for i, c in enumerate(y.tolist()):
        p = 1 / (1 + (-(z[i] + bias)).exp())
        p_t = torch.stack([p[j] if j == c else 1 - p[j] for j in range(len(p))])
        rows.append(-((1 - p_t) ** gamma * p_t.log()).sum())
    return torch.stack(rows)


def focal(gamma: float) -> Reference:
    def reference(z: Tensor, y: Tensor, n: list[int]) -> Tensor:
        p = target_probability(z, y)
        return (-((1 - p) ** gamma) * p.log()).mean()

    return reference


def sigmoid_focal(gamma: float, prior: bool = True) -> Reference:
    return lambda z, y, n: binary_terms(z, y, gamma, -math.log(len(n) - 1) if prior else 0.0).mean()


def class_balanced(beta: float, divide_by: str) -> Reference:
    def reference(z: Tensor, y: Tensor, n: list[int]) -> Tensor:
        w = vector(effective(n, beta))[y]
        return -(w * target_probability(z, y).log()).sum() / (w.sum() if divide_by == "weights" else len(y))

    return reference


def class_balanced_sigmoid(beta: float, gamma: float) -> Reference:
    def reference(z: Tensor, y: Tensor, n: list[int]) -> Tensor:
        return (vector(effective(n, beta))[y] * binary_terms(z, y, gamma, -math.log(len(n) - 1))).mean()

    return reference


def class_balanced_focal(beta: float, gamma: float, probability: str) -> Reference:
    def reference(z: Tensor, y: Tensor, n: list[int]) -> Tensor:
        w, p = vector(effective(n, beta))[y], target_probability(z, y)
        shown = p if probability == "plain" else p**w  # exp(-w * -log p)
        return (-w * (1 - shown) ** gamma * p.log()).mean()

    return reference


def vector_scaling(gamma: float, tau: float) -> Reference:
    def reference(z: Tensor, y: Tensor, n: list[int]) -> Tensor:
        delta = vector([(max(n) / m) ** gamma for m in n])
        iota = vector([tau * math.log(m / sum(n)) for m in n])
        return -target_probability(z / delta + iota, y).log().mean()

    return reference


def lade(alpha: float, penalty: float) -> Reference:
    """Class by class as in the authors' description."""

    def reference(z: Tensor, y: Tensor, n: list[int]) -> Tensor:
        pi = [m / sum(n) for m in n]
        total = -target_probability(z + vector([math.log(p + 1e-9) for p in pi]), y).log().mean()
        for c, p in enumerate(pi):
            own = z[y == c, c]
            mean_own = own.mean() if len(own) else torch.zeros((), dtype=torch.float64)
            log_mean = (z[:, c] - math.log(p) - math.log(len(n))).exp().mean().log()
            total = total - alpha * p * (mean_own - log_mean - penalty * log_mean**2)
        return total

    return reference


CASES: list[tuple[str, dict[str, Any], Reference]] = [
    ("focal", {}, focal(1.0)),
    ("focal", {"gamma": 2.0}, focal(2.0)),
    ("focal", {"gamma": 0.5}, focal(0.5)),
    ("focal", {"gamma": 0.0}, focal(0.0)),
    ("focal", {"form": "sigmoid", "gamma": 0.5}, sigmoid_focal(0.5)),
    ("focal", {"form": "sigmoid", "gamma": 2.0, "prior_bias": False}, sigmoid_focal(2.0, prior=False)),
    ("class_balanced", {}, class_balanced(0.9999, "weights")),
    ("class_balanced", {"beta": 0.99, "divide_by": "batch"}, class_balanced(0.99, "batch")),
    ("class_balanced", {"form": "sigmoid"}, class_balanced_sigmoid(0.9999, 0.0)),
    ("class_balanced_focal", {}, class_balanced_focal(0.9999, 1.0, "plain")),
    ("class_balanced_focal", {"gamma": 2.0, "probability": "weighted"}, class_balanced_focal(0.9999, 2.0, "weighted")),
    ("class_balanced_focal", {"form": "sigmoid", "beta": 0.999}, class_balanced_sigmoid(0.999, 1.0)),
    ("vector_scaling", {}, vector_scaling(0.3, 1.0)),
    ("vector_scaling", {"gamma": 0.2, "tau": 1.2}, vector_scaling(0.2, 1.2)),
    ("vector_scaling", {"tau": 0.0}, vector_scaling(0.3, 0.0)),
    ("lade", {}, lade(0.1, 0.1)),
    ("lade", {"alpha": 0.05, "penalty": 0.5}, lade(0.05, 0.5)),
]
NAMES = [f"{name}-{'-'.join(map(str, settings.values()))}" for name, settings, _ in CASES]
PLAIN = [(name, settings) for name, settings, _ in CASES] + [("equalization", {})]


def batch(rows: int, num_classes: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(rows)
    z = scale * torch.randn(rows, num_classes, generator=draws)
    return z, torch.randint(num_classes, (rows,), generator=draws)


def value_and_gradient(loss: Callable[[ModelOutput, Tensor], Tensor], z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    leaf = z.clone().requires_grad_()
    value = loss(ModelOutput(logits=leaf), y)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def assert_equal_losses(first: Loss, second: Loss) -> None:
    z, y = batch(32, first.num_classes)
    torch.testing.assert_close(value_and_gradient(first, z, y), value_and_gradient(second, z, y))


@pytest.mark.parametrize("rows", [5, 33])  # of 5 rows most classes have none
@pytest.mark.parametrize("order", COUNTS)
@pytest.mark.parametrize(("name", "settings", "reference"), CASES, ids=NAMES)
def test_value_and_gradient(name: str, settings: dict[str, Any], reference: Reference, order: str, rows: int) -> None:
    n = COUNTS[order]
    z, y = batch(rows, len(n))
    exact = z.double().requires_grad_()
    expected = reference(exact, y, n.tolist())
    expected.backward()
    value, gradient = value_and_gradient(build("loss", name, class_counts=n, **settings), z, y)
    torch.testing.assert_close(value.double(), expected.detach(), rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "settings"), PLAIN)
def test_half_precision_logits(name: str, settings: dict[str, Any]) -> None:
    n = COUNTS["unsorted"]
    z, y = batch(16, len(n))
    loss, again = (build("loss", name, class_counts=n, **settings) for _ in range(2))
    half = z.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(ModelOutput(logits=half), y)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, again(ModelOutput(logits=half.float()), y))


@pytest.mark.parametrize(("name", "settings"), PLAIN)
def test_many_classes_and_large_logits_stay_finite(name: str, settings: dict[str, Any]) -> None:
    n = torch.linspace(1000, 2, 8142).long()  # iNaturalist 2018: 2 to 1,000 images a class
    z, y = batch(8, len(n), scale=100.0)
    z[0, y[0]] = 1e4  # a sample that is recognised beyond doubt: 1 - p = 0
    value, gradient = value_and_gradient(build("loss", name, class_counts=n, **settings), z.bfloat16(), y)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("order", ["sorted", "unsorted"])
@pytest.mark.parametrize(
    ("name", "settings", "other", "other_settings"),
    [
        ("focal", {"gamma": 0.0}, "cross_entropy", {}),
        ("class_balanced", {"beta": 0.0}, "cross_entropy", {}),
        ("class_balanced", {"beta": 1 - 1e-9}, "weighted_cross_entropy", {}),
        ("class_balanced_focal", {"beta": 0.0}, "focal", {}),
        ("class_balanced_focal", {"gamma": 0.0, "form": "sigmoid"}, "class_balanced", {"form": "sigmoid"}),
        ("equalization", {"gamma": 0.0, "threshold": 1.0}, "cross_entropy", {}),
        ("equalization", {"threshold": 0.0}, "cross_entropy", {}),
        ("vector_scaling", {"gamma": 0.0, "tau": 1.2}, "logit_adjustment", {"tau": 1.2}),
        ("vector_scaling", {"gamma": 0.0, "tau": 0.0}, "cross_entropy", {}),
        ("lade", {"alpha": 0.0}, "balanced_softmax", {}),
    ],
)
def test_limits(name: str, settings: dict[str, Any], other: str, other_settings: dict[str, Any], order: str) -> None:
    n = COUNTS[order]
    one = build("loss", name, class_counts=n, **settings)
    assert_equal_losses(one, build("loss", other, class_counts=n, **other_settings))


@pytest.mark.parametrize("name", ["class_balanced", "vector_scaling"])
def test_equal_counts_are_cross_entropy(name: str) -> None:
    n = COUNTS["equal"]
    assert_equal_losses(build("loss", name, class_counts=n), build("loss", "cross_entropy", class_counts=n))


def test_published_weights() -> None:
    """Effective-number weights at β = 0.9999 of CIFAR-10 and CIFAR-100, imbalance ratio 100."""
    ten = [0.05061, 0.0769, 0.12113, 0.19504, 0.31881, 0.52459, 0.86835, 1.44263, 2.40922, 3.99272]
    measured = effective_number_weights(torch.tensor(CIFAR10), 0.9999)
    torch.testing.assert_close(measured, torch.tensor(ten), rtol=0, atol=6e-6)
    hundred = effective_number_weights(torch.tensor(CIFAR100), 0.9999)
    torch.testing.assert_close(hundred[[0, 50, 99]], torch.tensor([0.04488, 0.45706, 4.37831]), rtol=0, atol=6e-6)


def test_published_vector_scaling() -> None:
    loss = VectorScaling(torch.tensor(CIFAR10), gamma=0.2, tau=1.2)
    ends = [0, -1]
    torch.testing.assert_close(1 / loss.multiplier[ends], torch.tensor([1.0, 2.51189]), rtol=0, atol=6e-6)
    torch.testing.assert_close(loss.offset[ends], torch.tensor([-1.09049, -6.6167]), rtol=0, atol=6e-5)


@pytest.mark.parametrize(
    ("n_max", "classes", "ratio", "rare"),
    [
        *[(5000, 10, 10, 0), (5000, 10, 50, 0), (5000, 10, 100, 1), (5000, 10, 200, 2)],
        *[(500, 100, 10, 29), (500, 100, 50, 47), (500, 100, 100, 52), (500, 100, 200, 56)],
    ],
)
def test_published_rare_classes(n_max: int, classes: int, ratio: int, rare: int) -> None:
    n = torch.tensor([int(n_max * (1 / ratio) ** (c / (classes - 1))) for c in range(classes)])
    assert Equalization(n).rare.sum() == rare


@pytest.mark.parametrize("division", ["weights", "batch"])
@pytest.mark.parametrize(("name", "factor"), [("lade", "alpha"), ("ride", "diversity")])
def test_a_summand_that_is_not_weighted_by_class_is_the_same_under_every_division(
    name: str, factor: str, division: str
) -> None:
    counts, labels = COUNTS["sorted"], torch.tensor([9, 9, 8, 0, 5])
    output = full_output(torch.randn((5, 10), generator=torch.Generator().manual_seed(2)).tanh())

    def summand(divide_by: str | None) -> Tensor:
        values = []
        for value in (0.3, 0.0):
            loss = build("loss", name, class_counts=counts, **{factor: value})
            context = BatchContext()
            if divide_by is not None:
                reweighted = Reweighted(loss, DeferredReweighting(0, divide_by=divide_by))
                context = reweighted.weighted(context, reweighted.weights_in(0, 1))
            values.append(loss(output, labels, context))
        return values[0] - values[1]

    torch.testing.assert_close(summand(division), summand(None), rtol=1e-4, atol=1e-4)


BAD = [
    (Focal, {"gamma": -1.0}, "invalid gamma=-1.0: expected a number of 0 or more"),
    (Focal, {"form": "sigmoit"}, r"invalid form=sigmoit: expected softmax \| sigmoid; did you mean 'sigmoid'\?"),
    (Focal, {"probability": "true"}, r"invalid probability=true: expected plain \| weighted"),
    (
        Focal,
        {"form": "sigmoid", "probability": "weighted"},
        "invalid probability=weighted: expected plain, since form=sigmoid has no other",
    ),
    (ClassBalanced, {"beta": 1.0}, "invalid beta=1.0: expected a number of 0 or more and below 1"),
    (
        ClassBalanced,
        {"divide_by": "weight"},
        r"invalid divide_by=weight: expected weights \| batch; did you mean 'weights'\?",
    ),
    (ClassBalancedFocal, {"beta": -0.1}, "invalid beta=-0.1: expected a number of 0 or more and below 1"),
    (Equalization, {"gamma": 1.1}, "invalid gamma=1.1: expected a number from 0 to 1"),
    (Equalization, {"threshold": -1.0}, "invalid threshold=-1.0: expected a number of 0 or more"),
    (VectorScaling, {"gamma": -0.1}, "invalid gamma=-0.1: expected a number of 0 or more"),
    (VectorScaling, {"tau": -0.1}, "invalid tau=-0.1: expected a number of 0 or more"),
    (LADE, {"alpha": -0.1}, "invalid alpha=-0.1: expected a number of 0 or more"),
    (LADE, {"penalty": -0.1}, "invalid penalty=-0.1: expected a number of 0 or more"),
    *(
        (loss, {"scale": 0.0}, "invalid scale=0.0: expected a number above 0")
        for loss in (Focal, ClassBalanced, Equalization, VectorScaling, LADE)
    ),
]


@pytest.mark.parametrize(("loss", "settings", "message"), BAD)
def test_settings_out_of_range(loss: type, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loss(class_counts=COUNTS["sorted"], **settings)
    with pytest.raises(ConfigError, match="no training images for class 1"):
        loss(class_counts=torch.tensor([5, 0, 3]))


# --- the draws of the equalization loss


def equalization(**settings: Any) -> Equalization:
    return Equalization(COUNTS["unsorted"], threshold=0.1, **settings)  # 7 of 10 classes are rare


def test_equalization_with_gamma_1_leaves_out_every_rare_class() -> None:
    n = COUNTS["unsorted"]
    z, y = batch(33, 10)
    rare = [m / 12406 < 0.1 for m in n.tolist()]
    assert sum(rare) == 7
    kept = torch.tensor([[not rare[k] or k == c for k in range(10)] for c in y.tolist()])
    exact = z.double().requires_grad_()
    expected = (-exact[torch.arange(33), y] + (kept * exact.exp()).sum(dim=1).log()).mean()
    expected.backward()
    value, gradient = value_and_gradient(equalization(gamma=1.0), z, y)
    torch.testing.assert_close(value.double(), expected.detach())
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-4, atol=1e-7)


def dropped(loss: Equalization, rows: int = 4000, context: BatchContext | None = None) -> Tensor:
    """Which entries of the denominator got no gradient."""
    logits = torch.zeros(rows, 10, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(ModelOutput(logits=logits), torch.arange(rows) % 10, context), logits)
    return gradient == 0


def test_equalization_drops_each_rare_entry_with_probability_gamma() -> None:
    drops = dropped(equalization(gamma=0.9))
    rows = torch.arange(len(drops))
    rare = torch.tensor([m / 12406 < 0.1 for m in COUNTS["unsorted"].tolist()])
    others = rare.repeat(len(drops), 1)
    others[rows, rows % 10] = False
    assert not drops[~others].any()
    assert drops[others].float().mean().item() == pytest.approx(0.9, abs=0.01)
    by_class = [drops[others[:, c], c].float().mean().item() for c in range(10) if rare[c]]
    assert by_class == pytest.approx([0.9] * 7, abs=0.03)
    assert len(drops[:100].unique(dim=0)) > 20  # an entry's own, not a class's


def test_equalization_draws_by_seed_epoch_step_and_call() -> None:
    seen = {}
    for seed, epoch, step in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)]:
        loss, context = equalization(), BatchContext(seed, epoch, 10, step)
        torch.manual_seed(len(seen))
        first, second = dropped(loss, 50, context), dropped(loss, 50, replace(context, call=1))
        assert torch.equal(dropped(loss, 50, context), first)
        seen[seed, epoch, step] = [first, second]
    flat = [tuple(drops.flatten().tolist()) for pair in seen.values() for drops in pair]
    assert len(set(flat)) == len(flat)


def share_of_gradient(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """This process's rows through the loss: its part of the value and of the gradient of all rows."""
    total, world = len(y), world_size()
    mine = torch.arange(total)[rank() :: world]
    share = len(mine) * world / total
    mine = mine if len(mine) else torch.tensor([total - 1])
    loss = equalization()
    whole = z.clone().requires_grad_()
    value = share * loss(ModelOutput(logits=whole[mine]), y[mine], BatchContext(share=share))
    value.backward()
    assert whole.grad is not None
    return value.detach() / world, whole.grad / world


@pytest.mark.parametrize("rows", [8, 7, 1])
def test_equalization_on_two_processes_is_that_of_one(run_on_ranks: Any, rows: int) -> None:
    z, y = batch(rows, 10)
    one, gradient = share_of_gradient(z, y)
    parts = run_on_ranks(share_of_gradient, 2, z, y)
    torch.testing.assert_close(sum(value for value, _ in parts), one)
    torch.testing.assert_close(sum(part for _, part in parts), gradient)


# --- deferred re-weighting

WEIGHTED = [
    name for name in names("loss") if build("loss", name, class_counts=COUNTS["sorted"]).class_weights is not None
]


def stage(loss: str, *overrides: str) -> Any:
    return to_config(
        composed("method=ce", f"loss@stage1.loss={loss}", "reweighting@stage1.reweighting=deferred", *overrides)
    ).stage1


def objective(loss: str, *overrides: str) -> Objective:
    return Objective(stage(loss, *overrides), COUNTS["unsorted"])


def own(loss: str) -> Loss:
    built: Loss = build("loss", loss, class_counts=COUNTS["unsorted"])
    return built


def weighs_nothing(name: str) -> bool:
    return name not in WEIGHTED and build("loss", name, class_counts=COUNTS["sorted"]).takes_class_weights


@pytest.mark.parametrize("loss", [name for name in names("loss") if weighs_nothing(name)])
def test_deferred_weights_hold_from_the_start_on_and_not_before(loss: str) -> None:
    """Any loss that weighs nothing itself: plain up to epoch 159 of 200, weighted from 160, plain if asked again."""
    z, y = batch(33, 10, scale=0.3)
    output = full_output(z)
    deferred, plain, weighted = objective(loss), own(loss), own(loss)
    weighted.class_weights = torch.tensor(effective(COUNTS["unsorted"].tolist(), 0.9999))
    for epoch in (0, 159, 160, 199, 159):
        expected = weighted if epoch >= 160 else plain
        context = BatchContext(epoch=epoch, max_epochs=200, step=3)
        torch.testing.assert_close(deferred(output, y, context), expected(output, y, context))
    context = BatchContext(epoch=160, max_epochs=200, step=3)
    assert not torch.isclose(plain(output, y, context), weighted(output, y, context), rtol=1e-3)


def test_drw_of_cross_entropy_is_class_balanced_cross_entropy() -> None:
    z, y = batch(33, 10)
    deferred = objective("cross_entropy")
    expected = build("loss", "class_balanced", class_counts=COUNTS["unsorted"])(ModelOutput(logits=z), y)
    context = BatchContext(epoch=160, max_epochs=200)
    torch.testing.assert_close(deferred(ModelOutput(logits=z), y, context), expected)


@pytest.mark.parametrize(
    ("start", "max_epochs", "first"), [("0.8", 200, 160), ("120", 200, 120), ("0", 5, 0), ("0.8", 7, 6)]
)
def test_start_is_a_fraction_or_an_epoch(start: str, max_epochs: int, first: int) -> None:
    deferred = objective("cross_entropy", f"stage1.reweighting.start={start}")
    for epoch in range(max_epochs):
        assert (deferred.reweighting.weights_in(epoch, max_epochs) is not None) == (epoch >= first)


def test_weights_move_with_the_objective_and_are_not_saved() -> None:
    deferred = objective("cross_entropy").to("meta")
    weights = deferred.reweighting.weights_in(160, 200)
    assert weights is not None
    assert weights.device.type == "meta"
    assert deferred.state_dict() == {}


def test_terms_are_not_reweighted() -> None:
    term = "+stage1.terms={more: {weight: 1.0, loss: {_target_: ltexp.losses.cross_entropy.CrossEntropy}}}"
    z, y = batch(33, 10)
    output, context = ModelOutput(logits=z), BatchContext(epoch=160, max_epochs=200)
    expected = objective("cross_entropy")(output, y, context) + own("cross_entropy")(output, y)
    torch.testing.assert_close(objective("cross_entropy", term)(output, y, context), expected)


@pytest.mark.parametrize("loss", WEIGHTED)
def test_a_loss_with_class_weights_of_its_own_is_refused(loss: str) -> None:
    with pytest.raises(ConfigError, match=r"has class weights of its own: choose reweighting none"):
        objective(loss)


def test_a_loss_that_cannot_take_class_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltexp.losses.cross_entropy.CrossEntropy.takes_class_weights", False)
    with pytest.raises(ConfigError, match="CrossEntropy cannot take class weights"):
        objective("cross_entropy")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("stage1.reweighting.start=-0.1",),
            "invalid stage1.reweighting.start=-0.1: expected a fraction of the stage, 0 or more and",
        ),
        (
            ("stage1.reweighting.start=160.5",),
            "invalid stage1.reweighting.start=160.5: expected a fraction of the stage, 0 or more and",
        ),
        (
            ("stage1.reweighting.start=160", "stage1.epochs=100"),
            "invalid stage1.reweighting.start=160: expected an epoch of the stage, 0 to 99, or a",
        ),
        (
            ("stage1.reweighting.beta=1.0",),
            "invalid stage1.reweighting.beta=1.0: expected a number of 0 or more and below 1",
        ),
        (
            ("sampler@stage1.sampler=deferred", "stage1.sampler.start=2"),
            "invalid stage1.sampler.start=2: expected an epoch of the stage, 0 to 1, or a fraction of it",
        ),
        (
            ("sampler@stage1.sampler=deferred", "stage1.sampler.start=1.5"),
            "invalid stage1.sampler.start=1.5: expected a fraction of the stage, 0 or more and below",
        ),
        (
            ("loss@stage1.loss=focal", "stage1.loss.gamma=-2"),
            "invalid stage1.loss.gamma=-2: expected a number of 0 or more",
        ),
        (("loss@stage1.loss=class_balanced",), "class weights of its own"),
    ],
)
def test_mistakes_are_found_before_data_is_read(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_composition(to_config(composed("method=ce_drw", *overrides)))


@pytest.mark.parametrize("loss", ["equalization", "gaussian_clouded"])
def test_the_draws_of_a_loss_follow_the_runs_seed_and_differ_between_stages(loss: str) -> None:
    """In any method: a loss has no seed of its own to forget."""
    config = to_config(composed("method=ce", "classifier@stage1.classifier=cosine", f"loss@stage1.loss={loss}"))
    config.stage1.terms["more"] = Term(1.0, dict(config.stage1.loss))
    model = Model(build("backbone", "resnet8"), build("classifier", "cosine", feature_dim=64, num_classes=10))
    for seed in (3, 4):
        stage = Stage(model, config.stage1, COUNTS["unsorted"], seed)
        assert stage.context_of(Batch(*[torch.empty(0)] * 3, 1.0, 8, 0, 0)).seed == seed
    session = Session(config, Path(), SimpleNamespace(), torch.device("cpu"))  # type: ignore[arg-type]
    runs = [replace(session, config=replace(config, seed=seed)) for seed in (0, 1)]
    assert len({run.stage_seed(name) for run in runs for name in ("stage1", "stage2")}) == 4


def test_a_config_from_before_reweighting_existed_has_none() -> None:
    plain = composed("method=ce")
    expected = to_config(plain)
    del plain["stage1"]["reweighting"]
    assert to_config(plain) == expected
    assert expected.stage1.reweighting == {"_target_": "ltexp.losses.reweighting.NoReweighting"}


def test_drw_before_its_epoch_is_the_plain_loss_in_a_run(tmp_path: Path) -> None:
    run_here(tmp_path / "ce", "method=ce")
    run_here(tmp_path / "late", "method=ce_drw", "stage1.reweighting.start=0.9")  # 2 epochs: never
    run_here(tmp_path / "drw", "method=ce_drw", "stage1.reweighting.start=1")
    assert_equal_weights(weights(tmp_path / "ce", "stage1"), weights(tmp_path / "late", "stage1"))
    with pytest.raises(AssertionError):
        assert_equal_weights(weights(tmp_path / "ce", "stage1"), weights(tmp_path / "drw", "stage1"))


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("steps", [8, 14], ids=["before the start", "after it"])
def test_killed_and_resumed_equals_uninterrupted(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deferred weights, deferred samples, and drops drawn twice a step, in one run of 4 epochs of 5 steps."""
    overrides = (
        "method=eql",
        "mixing@stage1.mixing=mixup",
        "reweighting@stage1.reweighting=deferred",
        "sampler@stage1.sampler=deferred",
        "stage1.loss.threshold=0.1",
        "stage1.reweighting.start=2",
        "stage1.sampler.start=2",
        "stage1.epochs=4",
        "stage_cache.enabled=false",
    )
    run_here(tmp_path / "whole", *overrides)
    train, seen = Stage.training_step, {"steps": 0}

    def dying(self: Stage, batch: Any, index: int) -> Tensor:
        if seen["steps"] == steps:
            raise Killed
        seen["steps"] += 1
        return train(self, batch, index)

    with monkeypatch.context() as context:
        context.setattr(Stage, "training_step", dying)
        with pytest.raises(Killed):
            run_here(tmp_path / "resumed", *overrides)
    run_here(tmp_path / "resumed", *overrides, "resume=true")
    assert_equal_weights(weights(tmp_path / "whole", "stage1"), weights(tmp_path / "resumed", "stage1"))


# --- deferred re-sampling

LABELS = torch.arange(10).repeat_interleave(COUNTS["unsorted"])


def test_deferred_sampler_is_one_and_then_the_other() -> None:
    settings = {"labels": LABELS, "class_counts": COUNTS["unsorted"]}
    node = composed("method=ce", "sampler@stage1.sampler=deferred")["stage1"]["sampler"]
    deferred = build_node(node, **settings)
    assert isinstance(deferred, Deferred)
    first, then = build("sampler", "instance_balanced", **settings), build("sampler", "class_balanced", **settings)
    for epoch in (0, 159, 160, 199):
        expected = then if epoch >= 160 else first
        assert torch.equal(deferred.indices(7, epoch, 200), expected.indices(7, epoch, 200))
        assert torch.equal(deferred.class_probabilities(epoch, 200), expected.class_probabilities(epoch, 200))


@pytest.mark.parametrize("order", [1, -1], ids=["outer first", "inner first"])
def test_the_parts_of_a_deferred_sampler_are_choices(order: int) -> None:
    typed = ("sampler@stage1.sampler=deferred", "sampler@stage1.sampler.after=effective_number")[::order]
    node = composed("method=ce", *typed, "stage1.sampler.after.beta=0.5")["stage1"]["sampler"]
    assert node["before"]["_target_"] == "ltexp.data.samplers.InstanceBalanced"
    assert node["after"] == {"_target_": "ltexp.data.samplers.EffectiveNumber", "beta": 0.5, "epoch_length": None}


def test_a_misspelt_key_of_a_part_is_refused() -> None:
    plain = composed("method=ce", "sampler@stage1.sampler=deferred")
    plain["stage1"]["sampler"]["after"]["epoch_lenght"] = 3
    with pytest.raises(ConfigError, match=r"did you mean 'stage1\.sampler\.after\.epoch_length'"):
        to_config(plain)


def test_both_parts_show_as_many_images() -> None:
    settings = {"labels": LABELS, "class_counts": COUNTS["unsorted"]}
    instance = {"_target_": "ltexp.data.samplers.InstanceBalanced", "epoch_length": 100}
    balanced = {"_target_": "ltexp.data.samplers.ClassBalanced"}
    with pytest.raises(
        ConfigError, match="`before` shows 100 images an epoch and `after` 12406: all epochs of a stage are of one"
    ):
        Deferred(**settings, before=instance, after=balanced)
    assert len(Deferred(**settings, before=instance, after=balanced, epoch_length=50).indices(0, 0, 10)) == 50


def test_settings_of_the_papers() -> None:
    """LDAM-DRW: hundredfold decay at the epoch where the weights begin; VS: its example on CIFAR-10."""
    drw = composed("method=ldam_drw", "dataset=cifar10_lt", small=False)["stage1"]
    assert (drw["epochs"], drw["schedule"]["milestones"][0], drw["reweighting"]["start"]) == (200, 0.8, 0.8)
    assert drw["schedule"]["decay"] == 0.01
    assert DeferredReweighting().holds(160, 200)
    scaling = composed("method=vs_mixup", "dataset=cifar10_lt", small=False)["stage1"]["loss"]
    assert (scaling["gamma"], scaling["tau"]) == (0.2, 1.2)
