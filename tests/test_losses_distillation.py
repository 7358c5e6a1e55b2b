"""Distillation and RIDE against their equations, and at their limits."""

import math

import pytest
import torch
from choices import build, load
from torch import Tensor
from torch.nn import functional as F

from ltexp.config.build import build as instantiate
from ltexp.errors import ConfigError
from ltexp.losses.context import BatchContext
from ltexp.losses.distillation import balanced_log_target
from ltexp.losses.ride import diversity_temperatures
from ltexp.outputs import ModelOutput

COUNTS = {
    "sorted": torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
    "unsorted": torch.tensor([83, 5000, 50, 645, 139, 2997, 387, 1077, 232, 1796]),
}
ROWS, CLASSES = 16, 10
TERMS = ["distillation", "balanced_distillation", "virtual_examples"]


def drawn(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def student_and_teacher(scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Student's logits, teacher's logits, labels."""
    labels = torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(2))
    return drawn(0, ROWS, CLASSES, scale=scale), drawn(1, ROWS, CLASSES, scale=scale), labels


def value_and_gradient(
    loss: torch.nn.Module, logits: Tensor, labels: Tensor, **fields: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(ModelOutput(logits=leaf, **fields), labels)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def softmax(z: list[float]) -> list[float]:
    return [math.exp(v) / sum(math.exp(u) for u in z) for v in z]


def kl(q: list[float], p: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))


def targets(name: str, teacher: list[float], n: list[int], t: float, **settings: float) -> list[float]:
    """The distribution that the student learns, as the papers write it."""
    p = softmax([z / t for z in teacher])
    if name == "balanced_distillation":
        w = [(1 - settings["beta"]) / (1 - settings["beta"] ** k) for k in n]
        return [a * b / sum(u * v for u, v in zip(w, p, strict=True)) for a, b in zip(w, p, strict=True)]
    if name == "virtual_examples":
        return [a ** settings["power"] / sum(b ** settings["power"] for b in p) for a in p]
    return p


@pytest.mark.parametrize("order", COUNTS)
@pytest.mark.parametrize(
    ("name", "temperature", "settings"),
    [
        ("distillation", 2.0, {}),
        ("distillation", 4.0, {}),
        ("balanced_distillation", 2.0, {"beta": 0.9999}),
        ("balanced_distillation", 1.0, {"beta": 0.99}),
        ("virtual_examples", 3.0, {"power": 0.5}),
    ],
)
def test_equation(name: str, temperature: float, settings: dict[str, float], order: str) -> None:
    """T² KL, by hand, sample by sample (BKD, Eqs. 5 and 8; DiVE)."""
    z, teacher, y = student_and_teacher()
    n = COUNTS[order].tolist()
    loss = build("loss", name, class_counts=COUNTS[order], temperature=temperature, **settings)
    rows = [
        temperature**2 * kl(targets(name, t, n, temperature, **settings), softmax([v / temperature for v in s]))
        for s, t in zip(z.tolist(), teacher.tolist(), strict=True)
    ]
    value = loss(ModelOutput(logits=z, teacher_logits=teacher), y)
    assert float(value) == pytest.approx(sum(rows) / ROWS, rel=2e-5)


def test_inverse_frequency_weights() -> None:
    z, teacher, y = student_and_teacher()
    n = COUNTS["unsorted"]
    loss = build("loss", "balanced_distillation", class_counts=n, weighting="inverse_frequency")
    weighted = F.softmax(teacher.double() / 2, 1) / n
    q = weighted / weighted.sum(1, keepdim=True)
    expected = 4 * (q * (q.log() - F.log_softmax(z.double() / 2, 1))).sum(1).mean()
    torch.testing.assert_close(loss(ModelOutput(logits=z, teacher_logits=teacher), y), expected.float())


@pytest.mark.parametrize("weighting", ["effective_number", "inverse_frequency"])
def test_bkd_with_equal_weights_is_kd(weighting: str) -> None:
    z, teacher, y = student_and_teacher()
    equal = torch.full((CLASSES,), 40)
    balanced = build("loss", "balanced_distillation", class_counts=equal, weighting=weighting)
    plain = build("loss", "distillation", class_counts=equal)
    torch.testing.assert_close(
        value_and_gradient(balanced, z, y, teacher_logits=teacher),
        value_and_gradient(plain, z, y, teacher_logits=teacher),
    )


def test_bkd_before_its_start_is_kd_and_not_after() -> None:
    """CIFAR-10: plain until epoch 160 of 200, whatever the number of epochs."""
    z, teacher, y = student_and_teacher()
    output = ModelOutput(logits=z, teacher_logits=teacher)
    n = COUNTS["sorted"]
    deferred = build("loss", "balanced_distillation", class_counts=n, start=0.8)
    plain, balanced = (
        build("loss", "distillation", class_counts=n),
        build("loss", "balanced_distillation", class_counts=n),
    )
    for epoch, max_epochs, expected in ((0, 200, plain), (159, 200, plain), (160, 200, balanced), (7, 8, balanced)):
        deferred.set_progress(epoch, max_epochs)
        assert torch.equal(deferred(output, y), expected(output, y)), epoch
    assert not torch.isclose(plain(output, y), balanced(output, y), rtol=1e-2)


def test_dive_with_power_1_is_kd() -> None:
    z, teacher, y = student_and_teacher()
    output = ModelOutput(logits=z, teacher_logits=teacher)
    one = build("loss", "virtual_examples", class_counts=COUNTS["sorted"], power=1.0)
    torch.testing.assert_close(one(output, y), build("loss", "distillation", class_counts=COUNTS["sorted"])(output, y))


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("scale", [0.0, 1e-3, 2.0, 100.0, 1e4])
def test_never_negative_and_finite(name: str, scale: float) -> None:
    """For all inputs, a student that equals its target included, where rounding would take the sum below zero."""
    z, teacher, y = student_and_teacher(scale)
    loss = build("loss", name, class_counts=COUNTS["unsorted"])
    at_target = 2 * loss.log_target(teacher, BatchContext())
    for logits in (z, teacher, at_target, at_target + 1e-4 * z.sign()):
        value, gradient = value_and_gradient(loss, logits, y, teacher_logits=teacher)
        assert float(value) >= 0
        assert gradient.isfinite().all()
    assert float(loss(ModelOutput(logits=at_target, teacher_logits=teacher), y)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", [*TERMS, "feature_distillation"])
def test_nothing_flows_into_the_teacher(name: str) -> None:
    z, teacher, y = student_and_teacher()
    leaf, features = teacher.clone().requires_grad_(), drawn(5, ROWS, 6).requires_grad_()
    student = z.clone().requires_grad_()
    loss = build("loss", name, class_counts=COUNTS["sorted"])
    own = drawn(6, ROWS, 6).requires_grad_()
    output = ModelOutput(logits=student, features=own, teacher_logits=leaf, teacher_features=features)
    (loss(output, y) + 0 * leaf.sum() + 0 * features.sum()).backward()
    for read in (leaf, features):
        assert read.grad is not None
        assert not read.grad.any()
    assert (own if name == "feature_distillation" else student).grad.any()  # type: ignore[union-attr]


def test_bkd_target_does_not_depend_on_the_scale_of_the_weights() -> None:
    teacher = student_and_teacher()[1].double()
    weights = drawn(4, CLASSES).abs().double() + 0.1
    once = balanced_log_target(teacher, 2.0, weights)
    torch.testing.assert_close(balanced_log_target(teacher, 2.0, 1e4 * weights), once)
    torch.testing.assert_close(once.exp().sum(1), torch.ones(ROWS, dtype=torch.float64))


@pytest.mark.parametrize("name", TERMS)
def test_temperature_keeps_the_order_of_the_gradient(name: str) -> None:
    """T² makes up for the 1 / T² of the gradient of tempered softmaxes: without it, 16 times less from T = 2 to 8."""
    z, teacher, y = student_and_teacher(0.5)
    norms = [
        float(
            value_and_gradient(
                build("loss", name, class_counts=torch.full((CLASSES,), 9), temperature=t), z, y, teacher_logits=teacher
            )[1].norm()
        )
        for t in (2.0, 4.0, 8.0)
    ]
    assert max(norms) / min(norms) < 1.5


@pytest.mark.parametrize("name", TERMS)
def test_scale_is_the_students_alone(name: str) -> None:
    """A cosine student's logits are scaled; the teacher's come scaled already."""
    z, teacher, y = student_and_teacher()
    scaled = build("loss", name, class_counts=COUNTS["sorted"], scale=30.0)
    plain = build("loss", name, class_counts=COUNTS["sorted"])
    one = scaled(ModelOutput(logits=z / 30, teacher_logits=teacher), y)
    torch.testing.assert_close(one, plain(ModelOutput(logits=z, teacher_logits=teacher), y))


def test_feature_distillation() -> None:
    """1 - cos by its definition; parallel features cost nothing, opposite ones 2; experts are averaged."""
    own, teachers = drawn(0, ROWS, 6), drawn(1, ROWS, 6)
    loss = build("loss", "feature_distillation", class_counts=COUNTS["sorted"])
    y = torch.zeros(ROWS, dtype=torch.long)

    def value(a: Tensor, b: Tensor) -> float:
        return float(loss(ModelOutput(logits=torch.zeros(ROWS, CLASSES), features=a, teacher_features=b), y))

    by_hand = [1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)) for a, b in zip(own, teachers, strict=True)]
    assert value(own, teachers) == pytest.approx(sum(by_hand) / ROWS, abs=1e-6)
    assert value(own, 3 * own) == pytest.approx(0, abs=1e-6)
    assert value(own, -own) == pytest.approx(2, abs=1e-6)
    experts = torch.stack([own, own], 1), torch.stack([own, -own], 1)
    assert value(*experts) == pytest.approx(1, abs=1e-6)
    with pytest.raises(ConfigError, match=r"6 wide.*5"):
        value(own[:, :5], teachers)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("distillation", "temperature", 0.0),
        ("balanced_distillation", "beta", 1.0),
        ("balanced_distillation", "weighting", "effective"),
        ("balanced_distillation", "start", 1.5),
        ("virtual_examples", "power", 0.0),
        ("ride", "diversity", -0.1),
        ("ride", "temperature", 0.0),
        ("ride", "rarity", 1.0),
        ("ride", "rarity_start", -0.5),
    ],
)
def test_settings_out_of_range(name: str, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        instantiate({**load("loss", name), key: value}, class_counts=COUNTS["sorted"])


# --- RIDE ----------------------------------------------------------------------------------------------------------


def cosines(experts: int) -> Tensor:
    return 2 * torch.rand(experts, ROWS, CLASSES, generator=torch.Generator().manual_seed(3)) - 1


def expert_output(experts: Tensor) -> ModelOutput:
    return ModelOutput(logits=experts.mean(0), expert_logits=experts)


@pytest.mark.parametrize("order", COUNTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_ride_with_one_expert_and_no_diversity_is_ldam(order: str, weighted: bool) -> None:
    one, y = cosines(1), student_and_teacher()[2]
    ride = build("loss", "ride", class_counts=COUNTS[order], diversity=0.0)
    ldam = build("loss", "ldam", class_counts=COUNTS[order])
    if weighted:
        ride.class_weights = ldam.class_weights = drawn(7, CLASSES).abs()
    torch.testing.assert_close(ride(expert_output(one), y), ldam(ModelOutput(logits=one[0]), y))


def test_ride_with_one_expert_has_no_diversity() -> None:
    """A single expert is the mean, so it cannot be far from it."""
    one, y = cosines(1), student_and_teacher()[2]
    with_term = build("loss", "ride", class_counts=COUNTS["sorted"], diversity=0.45)
    without = build("loss", "ride", class_counts=COUNTS["sorted"], diversity=0.0)
    torch.testing.assert_close(with_term(expert_output(one), y), without(expert_output(one), y))


@pytest.mark.parametrize("order", COUNTS)
@pytest.mark.parametrize("epoch", [0, 160])
def test_ride_equation(order: str, epoch: int) -> None:
    """The sum over experts by hand; from epoch 160 rarer classes have the lower temperature."""
    experts, y, n = cosines(3), student_and_teacher()[2], COUNTS[order].tolist()
    loss = build("loss", "ride", class_counts=COUNTS[order], diversity=0.45, rarity=0.3)
    loss.set_progress(epoch, 200)
    share = [CLASSES * k / sum(n) * 0.3 + 0.7 for k in n]
    tau = [a / max(share) for a in share] if epoch >= 160 else [1.0] * CLASSES
    margin = [0.5 * (k / min(n)) ** -0.25 for k in n]
    total = 0.0
    for row, label in enumerate(y.tolist()):
        z = (30 * experts[:, row].double()).tolist()
        mean = [sum(e[c] for e in z) / 3 / tau[c] for c in range(CLASSES)]
        for own in z:
            moved = [v - 30 * margin[c] * (c == label) for c, v in enumerate(own)]
            total -= math.log(softmax(moved)[label])
            apart = kl(softmax(mean), softmax([v / t for v, t in zip(own, tau, strict=True)]))
            total -= 0.45 * (sum(tau) / CLASSES) ** 2 * apart
    assert float(loss(expert_output(experts), y)) == pytest.approx(total / ROWS, rel=1e-4)
    torch.testing.assert_close(
        loss.per_sample_in_context(expert_output(experts), y, BatchContext(epoch=epoch, max_epochs=200)).mean(),
        loss(expert_output(experts), y),
    )


def test_ride_weights_its_classification_and_not_its_diversity() -> None:
    """Class weights are divided by those of the batch's targets, as everywhere; the diversity term is a plain mean."""
    experts, y = cosines(2), student_and_teacher()[2]
    plain = build("loss", "ride", class_counts=COUNTS["sorted"], diversity=0.0)
    diverse = build("loss", "ride", class_counts=COUNTS["sorted"])
    diversity = diverse(expert_output(experts), y) - plain(expert_output(experts), y)
    weights = drawn(7, CLASSES).abs()
    rows = plain.per_sample_in_context(expert_output(experts), y, BatchContext())
    diverse.class_weights = weights
    expected = (weights[y] * rows).sum() / weights[y].sum() + diversity
    torch.testing.assert_close(diverse(expert_output(experts), y), expected)


def test_ride_pushes_experts_apart_from_a_mean_that_stands_still() -> None:
    """The gradient of the diversity term, expert by expert: d KL(m || e) / d z = softmax(z) - m, at temperature 1."""
    experts, y = cosines(2).requires_grad_(), student_and_teacher()[2]
    diverse = build("loss", "ride", class_counts=COUNTS["sorted"], diversity=0.45)
    plain = build("loss", "ride", class_counts=COUNTS["sorted"], diversity=0.0)
    difference = diverse(expert_output(experts), y) - plain(expert_output(experts), y)
    (gradient,) = torch.autograd.grad(difference, experts)
    z = 30 * experts.detach()
    expected = -0.45 * 30 * (z.softmax(-1) - z.mean(0).softmax(-1)) / ROWS
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_diversity_temperatures() -> None:
    """RIDE's code: 0.05 C pi + 0.95 over its largest; equal counts, or no rarity, give the temperature itself."""
    n = COUNTS["unsorted"]
    raw = [0.05 * CLASSES * k / int(n.sum()) + 0.95 for k in n.tolist()]
    expected = torch.tensor([1.5 * a / max(raw) for a in raw])
    torch.testing.assert_close(diversity_temperatures(n, 1.5, 0.05), expected)
    for equal in (diversity_temperatures(torch.full((4,), 7), 1.5, 0.05), diversity_temperatures(n, 1.5, 0.0)):
        torch.testing.assert_close(equal, torch.full_like(equal, 1.5))
