"""What an auxiliary network adds to the objective (DaSL, Eqs. 5-8), and online label smoothing (Eqs. 2-3)."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ltexp.distributed import rank, world_size
from ltexp.errors import ConfigError
from ltexp.losses.auxiliary import AttentionDistillation, AuxiliaryCrossEntropy, AuxiliarySoftLabels, attention
from ltexp.losses.context import BatchContext
from ltexp.losses.cross_entropy import CrossEntropy
from ltexp.losses.label_smoothing import LabelSmoothing
from ltexp.losses.online_label_smoothing import OnlineLabelSmoothing
from ltexp.outputs import ModelOutput

COUNTS = torch.tensor([9, 5, 2])


def output(**fields: object) -> ModelOutput:
    return ModelOutput(**({"logits": torch.randn(4, 3)} | fields))


def maps(seed: int, channels: int, grad: bool = False) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    sides = (6, 3)
    return [torch.randn(4, channels, side, side, generator=draws).relu().requires_grad_(grad) for side in sides]


def test_auxiliary_cross_entropy_is_that_of_the_auxiliary_logits() -> None:
    logits, y = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    value = AuxiliaryCrossEntropy(COUNTS)(output(auxiliary_logits=logits), y)
    torch.testing.assert_close(value, F.cross_entropy(logits, y))


def test_soft_labels_are_equation_6_times_the_squared_temperature() -> None:
    logits, soft, y = torch.randn(4, 3), torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    s_a, s_c = torch.softmax(soft / 2, 1), torch.softmax(logits / 2, 1)
    expected = (s_a * (s_a / s_c).log()).sum(1).mean()
    given = output(logits=logits, auxiliary_logits=soft)
    printed = AuxiliarySoftLabels(COUNTS, temperature=2.0, squared_factor=False)(given, y)
    torch.testing.assert_close(printed, expected)
    torch.testing.assert_close(AuxiliarySoftLabels(COUNTS, temperature=2.0)(given, y), 4 * expected)
    assert AuxiliarySoftLabels(COUNTS)(output(logits=logits, auxiliary_logits=logits), y).item() == pytest.approx(0)


def test_the_squared_temperature_keeps_the_size_of_the_gradient() -> None:
    soft, y = 1e-2 * torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    gradients = []
    for temperature in (1.0, 8.0):
        logits = torch.zeros(4, 3, requires_grad=True)
        AuxiliarySoftLabels(COUNTS, temperature)(output(logits=logits, auxiliary_logits=soft), y).backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients, rtol=2e-2, atol=2e-5)


def test_attention_distillation_is_equation_7() -> None:
    here, there, y = maps(0, 2), maps(1, 4), torch.zeros(4, dtype=torch.int64)

    def transformed(m: Tensor, p: float) -> Tensor:
        mass = m.abs().pow(p).sum(1).flatten(1)
        return mass / mass.square().sum(1, keepdim=True).sqrt()

    for p in (1.0, 2.0, 3.0):
        pairs = [transformed(a, p) - transformed(b, p) for a, b in zip(here, there, strict=True)]
        given = output(feature_maps=here, auxiliary_maps=there)
        norm = sum(d.square().sum(1).sqrt().mean() for d in pairs)
        torch.testing.assert_close(AttentionDistillation(COUNTS, power=p, squared=False)(given, y), norm)
        square = sum(d.square().mean() for d in pairs)
        torch.testing.assert_close(AttentionDistillation(COUNTS, power=p)(given, y), square)


@pytest.mark.parametrize("squared", [True, False])
def test_attention_is_equal_for_equal_maps_at_any_scale(squared: bool) -> None:
    here, y = maps(0, 3), torch.zeros(4, dtype=torch.int64)
    loss = AttentionDistillation(COUNTS, squared=squared)
    assert loss(output(feature_maps=here, auxiliary_maps=here), y).item() == 0
    scaled = [7.5 * m for m in here]
    assert loss(output(feature_maps=here, auxiliary_maps=scaled), y).item() < 1e-6
    assert loss(output(feature_maps=here, auxiliary_maps=maps(1, 3)), y).item() > 1e-3


def test_attention_of_empty_and_of_half_precision_maps_is_finite() -> None:
    empty = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention(empty, 2.0).sum().backward()
    assert not empty.grad.any()
    half = maps(0, 8)[0]
    torch.testing.assert_close(attention(half.bfloat16(), 2.0), attention(half, 2.0), rtol=2e-2, atol=2e-3)
    assert attention(half.bfloat16(), 2.0).dtype == torch.float32


@pytest.mark.parametrize("detach", [True, False])
def test_targets_are_detached_by_a_key_of_each_loss(detach: bool) -> None:
    y = torch.zeros(4, dtype=torch.int64)
    logits, soft = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    AuxiliarySoftLabels(COUNTS, detach_target=detach)(output(logits=logits, auxiliary_logits=soft), y).backward()
    here, there = maps(0, 2, grad=True), maps(1, 4, grad=True)
    AttentionDistillation(COUNTS, detach_target=detach)(output(feature_maps=here, auxiliary_maps=there), y).backward()
    assert logits.grad.abs().sum() > 0
    assert all(m.grad.abs().sum() > 0 for m in here)
    for target in (soft, *there):
        assert (target.grad is None) == detach


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (AuxiliarySoftLabels, {"temperature": 0.0}, "invalid temperature=0.0: expected a number above 0"),
        (AttentionDistillation, {"power": 0.5}, "invalid power=0.5: expected a number of 1 or more"),
        (OnlineLabelSmoothing, {"soft_weight": 1.5}, "invalid soft_weight=1.5: expected a number from 0 to 1"),
        (
            OnlineLabelSmoothing,
            {"start": "unifrom"},
            r"invalid start=unifrom: expected uniform \| zero; did you mean 'uniform'\?",
        ),
    ],
)
def test_settings_out_of_range(loss: type, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loss(class_counts=COUNTS, **settings)


BATCH = torch.tensor([[3.0, 0, 0], [2.0, 1, 0], [0, 3.0, 0], [0, 1.0, 2.0], [0, 4.0, 0]])
LABELS = torch.tensor([0, 0, 1, 0, 2])  # right, right, right, wrong, wrong: no class-2 sample is right


def smoothed(soft_weight: float = 0.5, **settings: object) -> OnlineLabelSmoothing:
    return OnlineLabelSmoothing(COUNTS, soft_weight, **settings).train()


def test_online_soft_labels_are_the_mean_prediction_of_the_right_samples_of_a_class() -> None:
    loss = smoothed()
    loss(output(logits=BATCH), LABELS)
    torch.testing.assert_close(loss.soft_labels, torch.zeros(3, 3))  # in use from the next epoch on
    loss.end_epoch()
    p = torch.softmax(BATCH, 1)
    expected = torch.stack([(p[0] + p[1]) / 2, p[2], torch.full((3,), 1 / 3)])
    torch.testing.assert_close(loss.soft_labels, expected)
    torch.testing.assert_close(loss.soft_labels.sum(1), torch.ones(3))


def test_online_smoothing_is_half_hard_and_half_soft() -> None:
    loss = smoothed(soft_weight=0.25)
    loss(output(logits=BATCH), LABELS)
    loss.end_epoch()
    hard, log_p = F.cross_entropy(BATCH, LABELS), torch.log_softmax(BATCH, 1)
    soft = -(loss.soft_labels[LABELS] * log_p).sum(1).mean()  # Eq. 3
    torch.testing.assert_close(loss(output(logits=BATCH), LABELS), 0.75 * hard + 0.25 * soft)


def test_limits_of_online_smoothing() -> None:
    y = LABELS
    torch.testing.assert_close(smoothed(0.0)(output(logits=BATCH), y), CrossEntropy(COUNTS)(output(logits=BATCH), y))
    first = smoothed()(output(logits=BATCH), y)  # no soft part yet, as in the authors' code
    torch.testing.assert_close(first, 0.5 * CrossEntropy(COUNTS)(output(logits=BATCH), y))
    uniform, plain = smoothed(start="uniform"), LabelSmoothing(COUNTS, 0.5)
    torch.testing.assert_close(uniform(output(logits=BATCH), y), plain(output(logits=BATCH), y))


def test_each_epoch_counts_anew_and_evaluation_does_not_count() -> None:
    loss = smoothed()
    loss(output(logits=BATCH), LABELS)
    loss.end_epoch()
    loss.eval()(output(logits=BATCH), LABELS)
    loss.end_epoch()
    torch.testing.assert_close(loss.soft_labels, torch.full((3, 3), 1 / 3))


def soft_labels_of_a_share(logits: Tensor, labels: Tensor) -> Tensor:
    """The soft labels after an epoch in which this process saw every world-size-th row of each batch of three."""
    loss = smoothed()
    for rows in torch.arange(len(labels)).split(3):
        mine = rows[rank() :: world_size()]
        context = BatchContext(share=len(mine) * world_size() / len(rows))
        mine = mine if len(mine) else rows[-1:]  # a stand-in, as the loader gives
        loss(output(logits=logits[mine]), labels[mine], context)
    loss.end_epoch()
    return loss.soft_labels


def test_two_processes_make_the_soft_labels_of_one(run_on_ranks) -> None:
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(13, 3, generator=draws), torch.randint(3, (13,), generator=draws)  # 13: one stand-in
    one = soft_labels_of_a_share(logits, labels)
    for each in run_on_ranks(soft_labels_of_a_share, 2, logits, labels):
        torch.testing.assert_close(each, one)


def test_only_the_soft_labels_are_kept_in_a_checkpoint() -> None:
    loss = smoothed()
    loss(output(logits=BATCH), LABELS)
    loss.end_epoch()
    other = smoothed()
    other.load_state_dict(loss.state_dict())
    assert set(loss.state_dict()) == {"soft_labels"}
    assert torch.equal(other.soft_labels, loss.soft_labels)
