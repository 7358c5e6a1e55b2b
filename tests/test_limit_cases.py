"""Settings at which one method is another: they tie the losses, the mixings and the samplers to each other."""

import pytest
import torch
from choices import build, context_of, full_output, names
from torch import Tensor

from ltexp.data.loader import Batch
from ltexp.losses.base import Loss
from ltexp.outputs import ModelOutput
from ltexp.training.mixing import Mixture, Mixup

COUNTS = {"sorted": torch.tensor([500, 90, 30, 5]), "unsorted": torch.tensor([30, 5, 500, 90])}


@pytest.fixture(params=COUNTS)
def counts(request: pytest.FixtureRequest) -> Tensor:
    return COUNTS[request.param]


def assert_equal_losses(first: Loss, second: Loss) -> None:
    """Equal values and gradients on a random batch."""
    draws = torch.Generator().manual_seed(0)
    z, y = 4 * torch.randn(32, 4, generator=draws), torch.randint(4, (32,), generator=draws)
    results = []
    for loss in (first, second):
        logits = z.clone().requires_grad_()
        value = loss(ModelOutput(logits=logits), y)
        value.backward()
        results.append((value, logits.grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("spread", ["others", "all"])
@pytest.mark.parametrize("form", ["concave", "linear", "convex"])
def test_label_aware_smoothing_with_equal_factors_is_label_smoothing(counts: Tensor, form: str, spread: str) -> None:
    settings = {"head_smoothing": 0.2, "tail_smoothing": 0.2, "form": form, "spread": spread}
    aware = build("loss", "label_aware_smoothing", class_counts=counts, **settings)
    assert_equal_losses(aware, build("loss", "label_smoothing", class_counts=counts, epsilon=0.2, spread=spread))


@pytest.mark.parametrize("spread", ["others", "all"])
def test_label_aware_smoothing_with_equal_counts_is_label_smoothing(spread: str) -> None:
    equal = torch.full((4,), 25)
    aware = build("loss", "label_aware_smoothing", class_counts=equal, spread=spread)
    assert_equal_losses(aware, build("loss", "label_smoothing", class_counts=equal, epsilon=0.4, spread=spread))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("label_aware_smoothing", {"head_smoothing": 0.0, "tail_smoothing": 0.0}),
        ("label_smoothing", {"epsilon": 0.0}),
        ("logit_adjustment", {"tau": 0.0}),
        ("weighted_cross_entropy", {"power": 0.0}),
    ],
)
def test_is_cross_entropy(counts: Tensor, name: str, settings: dict[str, float]) -> None:
    loss = build("loss", name, class_counts=counts, **settings)
    assert_equal_losses(loss, build("loss", "cross_entropy", class_counts=counts))


@pytest.mark.parametrize("name", ["balanced_softmax", "logit_adjustment", "weighted_cross_entropy"])
def test_equal_counts_are_cross_entropy(name: str) -> None:
    equal = torch.full((4,), 25)
    assert_equal_losses(build("loss", name, class_counts=equal), build("loss", "cross_entropy", class_counts=equal))


def test_logit_adjustment_with_tau_1_is_balanced_softmax(counts: Tensor) -> None:
    adjusted = build("loss", "logit_adjustment", class_counts=counts, tau=1.0)
    assert_equal_losses(adjusted, build("loss", "balanced_softmax", class_counts=counts))


def test_power_form_with_exponent_1_is_linear(counts: Tensor) -> None:
    power = build("loss", "label_aware_smoothing", class_counts=counts, form="power", power=1.0)
    assert_equal_losses(power, build("loss", "label_aware_smoothing", class_counts=counts, form="linear"))


@pytest.mark.parametrize("name", names("loss"))
def test_mixup_with_lambda_1_is_no_mixup(counts: Tensor, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, value and gradient, with every loss."""
    images, y, z = torch.randn(8, 3, 4, 4), torch.arange(8) % 4, torch.randn(8, 4)
    monkeypatch.setattr(Mixup, "draw_weight", lambda *_: 1.0)
    mixed, targets, _ = Mixup(counts)(Batch(images, y, y, 1.0, 8, 0, 0), 0)
    assert torch.equal(mixed, images)
    loss, other = (build("loss", name, class_counts=counts) for _ in range(2))  # some keep a queue or class means
    output = full_output(z)
    context = context_of(loss, output, y, epoch=5)
    assert torch.equal(targets.objective(loss, output, context), other(output, y, context))


def test_mixture_with_itself_is_the_plain_loss(counts: Tensor) -> None:
    z, y = torch.randn(8, 4), torch.arange(8) % 4
    loss = build("loss", "label_aware_smoothing", class_counts=counts)
    output = ModelOutput(logits=z)
    torch.testing.assert_close(Mixture(y, y, 0.3).objective(loss, output), loss(output, y))


def sampler_shares(name: str, n: Tensor, epoch: int = 0, **settings: float) -> Tensor:
    labels = torch.arange(len(n)).repeat_interleave(n)
    return build("sampler", name, labels=labels, class_counts=n, **settings).class_probabilities(epoch, 10)


def test_class_balanced_with_uniform_counts_is_instance_balanced() -> None:
    uniform = torch.full((4,), 25)
    torch.testing.assert_close(sampler_shares("class_balanced", uniform), sampler_shares("instance_balanced", uniform))


def test_samplers_meet_at_their_limits(counts: Tensor) -> None:
    instance, balanced = sampler_shares("instance_balanced", counts), sampler_shares("class_balanced", counts)
    torch.testing.assert_close(sampler_shares("effective_number", counts, beta=0.0), instance)
    torch.testing.assert_close(sampler_shares("effective_number", counts, beta=1 - 1e-10), balanced)
    torch.testing.assert_close(
        sampler_shares("class_based_effective_number", counts, base=0.99, slope=0.0),
        sampler_shares("effective_number", counts, beta=0.99),
    )
    torch.testing.assert_close(sampler_shares("progressively_balanced", counts, epoch=0), instance)
    torch.testing.assert_close(sampler_shares("progressively_balanced", counts, epoch=10), balanced)
