"""What all losses share: checks of their input, scale, class weights, and the weighted mean over processes."""

import pytest
import torch
from choices import build
from hydra.errors import InstantiationException
from torch import Tensor

from ltexp.distributed import rank, world_size
from ltexp.errors import ConfigError
from ltexp.losses.base import weighted_mean
from ltexp.losses.context import BatchContext
from ltexp.losses.cross_entropy import CrossEntropy, WeightedCrossEntropy
from ltexp.losses.label_aware_smoothing import LabelAwareSmoothing
from ltexp.losses.label_smoothing import LabelSmoothing
from ltexp.losses.logit_adjustment import BalancedSoftmax, LogitAdjustment
from ltexp.outputs import ModelOutput

LOSSES = [CrossEntropy, WeightedCrossEntropy, LabelSmoothing, LabelAwareSmoothing, BalancedSoftmax, LogitAdjustment]
COUNTS = torch.tensor([7, 90, 30])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (torch.tensor([5, 0, 3, 0]), r"no training images for class 1, 3;"),
        (torch.tensor([5.0, 3.0]), r"int64 tensor of shape \(C,\), got torch.float32"),
        (torch.tensor([[5, 3]]), r"got torch.int64 of shape \(1, 2\)"),
        ([5, 3], r"got list"),
        (torch.tensor([5]), r"at least two"),
    ],
)
def test_unusable_counts(loss: type, counts: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loss(class_counts=counts)


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (CrossEntropy, {"scale": 0.0}, "invalid scale=0.0: expected a number above 0"),
        (WeightedCrossEntropy, {"power": -1.0}, "invalid power=-1.0: expected a number of 0 or more"),
        (LabelSmoothing, {"epsilon": 1.0}, "invalid epsilon=1.0: expected a number of 0 or more and below 1"),
        (LabelSmoothing, {"spread": "other"}, r"invalid spread=other: expected others \| all; did you mean 'others'\?"),
        (
            LabelAwareSmoothing,
            {"head_smoothing": 0.1, "tail_smoothing": 0.2},
            "invalid tail_smoothing=0.2: expected a number from 0 to head_smoothing=0.1",
        ),
        (LabelAwareSmoothing, {"tail_smoothing": -0.1}, "tail_smoothing=-0.1"),
        (
            LabelAwareSmoothing,
            {"form": "concav"},
            r"invalid form=concav: expected concave \| linear \| convex \| power; did you mean 'concave'\?",
        ),
        (
            LabelAwareSmoothing,
            {"form": "power"},
            "invalid power=null: expected a number above 0, the exponent of form=power",
        ),
        (
            LabelAwareSmoothing,
            {"power": 2.0},
            "invalid power=2.0: expected null with form=concave; it is the exponent of form=power",
        ),
        (LogitAdjustment, {"tau": -1.0}, "invalid tau=-1.0: expected a number of 0 or more"),
    ],
)
def test_settings_out_of_range(loss: type, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loss(class_counts=COUNTS, **settings)


def test_unknown_keyword_is_refused() -> None:
    with pytest.raises(InstantiationException, match="epsilom"):
        build("loss", "label_smoothing", class_counts=COUNTS, epsilom=0.2)


def test_scale_is_the_logit_scale_of_every_loss() -> None:
    """A cosine classifier can be paired with any of them: scaled cosines are what the loss sees."""
    cosines, y = torch.rand(6, 3) * 2 - 1, torch.arange(6) % 3
    for loss in LOSSES:
        scaled = loss(class_counts=COUNTS, scale=30.0)
        assert scaled.logit_scale == 30.0
        expected = loss(class_counts=COUNTS)(ModelOutput(logits=30.0 * cosines), y)
        torch.testing.assert_close(scaled(ModelOutput(logits=cosines), y), expected)


def test_class_weights_sum_to_the_number_of_classes() -> None:
    weights = WeightedCrossEntropy(class_counts=COUNTS).class_weights
    torch.testing.assert_close(weights, 3 * (1 / COUNTS) / (1 / COUNTS).sum())
    assert WeightedCrossEntropy(class_counts=COUNTS, power=0.5).class_weights.sum().item() == pytest.approx(3)


def test_weighted_cross_entropy_is_the_frameworks() -> None:
    z, y = torch.randn(9, 3), torch.tensor([0, 1, 1, 2, 1, 1, 0, 2, 1])
    loss = WeightedCrossEntropy(class_counts=COUNTS)
    expected = torch.nn.functional.cross_entropy(z, y, weight=loss.class_weights)
    torch.testing.assert_close(loss(ModelOutput(logits=z), y), expected)


def test_weights_of_zero_give_loss_zero() -> None:
    losses = torch.ones(4, requires_grad=True)
    value = weighted_mean(losses, torch.zeros(4))
    value.backward()
    assert value == 0
    assert losses.grad.isfinite().all()


def share_of_gradient(z: Tensor, y: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
    """This process's rows of a batch, through the loss: its part of the loss and of the gradient of all rows."""
    total, world = len(y), world_size()
    mine = torch.arange(total)[rank() :: world]
    share = len(mine) * world / total
    mine = mine if len(mine) else torch.tensor([total - 1])
    loss = WeightedCrossEntropy(class_counts=COUNTS)
    whole = z.clone().requires_grad_()
    value = share * loss(ModelOutput(logits=whole[mine]), y[mine], BatchContext(share=share if shared else None))
    value.backward()
    return value.detach() / world, whole.grad / world  # DDP averages over processes


@pytest.mark.parametrize(("rows", "shared"), [(8, False), (7, False), (7, True), (1, True)])
def test_weighted_mean_on_two_processes_is_that_of_one(run_on_ranks, rows: int, shared: bool) -> None:
    """With equal shares, an odd number of rows, and a process that has no row of its own."""
    z, y = torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows)), torch.arange(rows) % 3
    one, gradient = share_of_gradient(z, y, shared)
    parts = run_on_ranks(share_of_gradient, 2, z, y, shared)
    torch.testing.assert_close(sum(value for value, _ in parts), one)
    torch.testing.assert_close(sum(part for _, part in parts), gradient)


def stand_in_mean() -> Tensor:
    """Rank 0 has the global batch's two rows; rank 1 has none and holds a stand-in that must not count."""
    weight, losses = [([1.0, 3.0], [5.0, 7.0]), ([9.0], [11.0])][rank()]
    share = [2.0, 0.0][rank()]
    return share * weighted_mean(torch.tensor(losses), torch.tensor(weight), share) / world_size()


def test_a_stand_in_row_does_not_count(run_on_ranks) -> None:
    assert sum(run_on_ranks(stand_in_mean, 2)).item() == pytest.approx((1 * 5 + 3 * 7) / (1 + 3))


def naive_share(z: Tensor, y: Tensor) -> Tensor:
    """The control: each process divides by its own weights."""
    mine = torch.arange(len(y))[rank() :: world_size()]
    weight = WeightedCrossEntropy(class_counts=COUNTS).class_weights
    value = torch.nn.functional.cross_entropy(z[mine], y[mine], weight=weight)
    return value * len(mine) / len(y)


def test_the_local_weighted_mean_differs(run_on_ranks) -> None:
    z, y = torch.randn(8, 3, generator=torch.Generator().manual_seed(8)), torch.arange(8) % 3
    assert not torch.isclose(sum(run_on_ranks(naive_share, 2, z, y)), naive_share(z, y), rtol=1e-3)


def fail_on_one_rank() -> None:
    from ltexp.distributed import sum_over_ranks

    if rank() == 1:
        raise ConfigError("the reason")
    sum_over_ranks(torch.zeros(1))  # would wait for the other


def test_failure_on_a_rank_is_raised_and_the_pool_recovers(run_on_ranks) -> None:
    with pytest.raises(ConfigError, match="the reason"):
        run_on_ranks(fail_on_one_rank, 2)
    assert run_on_ranks(world_size, 2) == [2, 2]
