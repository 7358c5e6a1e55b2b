"""GraLoss and the distillation of head classes against their equations, and their limit cases."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.epochs import gradual_weight
from ltexp.errors import ConfigError
from ltexp.losses.cross_entropy import CrossEntropy
from ltexp.losses.gradual_balanced import GradualBalanced
from ltexp.losses.head_distillation import HeadDistillation
from ltexp.losses.logit_adjustment import LogitAdjustment
from ltexp.outputs import ModelOutput

COUNTS = torch.tensor([500, 3, 80, 101])


def batch() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return torch.randn(12, 4, generator=draws), torch.randint(4, (12,), generator=draws)


def test_alpha_has_the_values_worked_out_by_hand() -> None:
    """c = 2, s = 1 over 200 epochs; and every other curve ends at 1 unless an s is given."""
    loss = GradualBalanced(COUNTS)
    for epoch, alpha in ((0, 0.0), (50, 0.18921), (100, 0.41421), (199, 0.99308)):
        assert loss.alpha(epoch, 200) == pytest.approx(alpha, abs=5e-6)
    for c in (0.2, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0):
        assert gradual_weight(0.0, c, None) == 0
        assert gradual_weight(1.0, c, None) == pytest.approx(1)
        assert gradual_weight(0.3, c, 0.7 if c >= 1 else -0.7) == pytest.approx(
            0.7 * 0.3 if c == 1 else abs(0.7 * (c**0.3 - 1))
        )


def test_curves_bend_as_they_are_called() -> None:
    middle = {c: gradual_weight(0.5, c, None) for c in (0.25, 1.0, 4.0)}
    assert middle[0.25] > middle[1.0] == 0.5 > middle[4.0]
    # the straight line is the limit of the curves
    assert gradual_weight(0.37, 1 + 1e-7, None) == pytest.approx(gradual_weight(0.37, 1.0, None), abs=1e-6)


def test_graloss_by_the_equation() -> None:
    loss, (z, y) = GradualBalanced(COUNTS, c=4.0, s=0.5), batch()
    loss.set_progress(3, 10)
    alpha = 0.5 * (4.0**0.3 - 1)
    p = (COUNTS / COUNTS.sum()).tolist()
    rows = []
    for row, label in zip(z.tolist(), y.tolist(), strict=True):
        powers = [math.exp(logit + alpha * math.log(share)) for logit, share in zip(row, p, strict=True)]
        rows.append(-math.log(powers[label] / sum(powers)))
    assert loss(ModelOutput(logits=z), y).item() == pytest.approx(sum(rows) / len(rows), rel=1e-5)


def test_graloss_without_s_is_cross_entropy_and_at_a_fixed_alpha_logit_adjustment() -> None:
    z, y = batch()
    output = ModelOutput(logits=z)
    plain = CrossEntropy(COUNTS)(output, y)
    for loss in (GradualBalanced(COUNTS, s=0.0), GradualBalanced(COUNTS)):  # the second in its first epoch
        torch.testing.assert_close(loss(output, y), plain)
    loss = GradualBalanced(COUNTS)
    loss.set_progress(5, 10)
    expected = LogitAdjustment(COUNTS, tau=math.sqrt(2) - 1)
    torch.testing.assert_close(loss(output, y), expected(output, y))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"c": 0.0}, "invalid c=0.0: expected a number above 0"),
        ({"s": -1.0}, "invalid s=-1.0: expected null or a number of 0 or more"),
        ({"c": 0.5, "s": 1.0}, "invalid s=1.0: expected null or a number of 0 or less, since c is below 1"),
    ],
)
@pytest.mark.parametrize("loss", [GradualBalanced, HeadDistillation])
def test_settings_out_of_range(loss: type, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loss(COUNTS, **settings)


def test_head_distillation_by_the_equation() -> None:
    z, y = batch()
    teacher = torch.randn(12, 4, generator=torch.Generator().manual_seed(2))
    loss = HeadDistillation(COUNTS, temperature=3.0)
    loss.set_progress(4, 8)
    ours, theirs = F.softmax(z / 3, 1), F.softmax(teacher / 3, 1)
    divergence = (theirs * (theirs / ours).log()).sum(1)
    head = torch.tensor([label in (0, 3) for label in y.tolist()])  # more than 100 images
    expected = (math.sqrt(2) - 1) * 9 * (divergence * head).sum() / 12
    torch.testing.assert_close(loss(ModelOutput(logits=z, teacher_logits=teacher), y), expected)
    assert 0 < head.sum() < 12


def test_head_distillation_is_nothing_at_first_for_the_tail_and_for_an_equal_teacher() -> None:
    z, y = batch()
    teacher = z + 1.0  # the same distribution
    loss = HeadDistillation(COUNTS)
    assert loss(ModelOutput(logits=z, teacher_logits=-z), y) == 0
    loss.set_progress(7, 8)
    assert loss(ModelOutput(logits=z, teacher_logits=teacher), y).item() == pytest.approx(0, abs=1e-6)
    tail = torch.full_like(y, 1)
    assert loss(ModelOutput(logits=z, teacher_logits=-z), tail) == 0
    with pytest.raises(ConfigError, match=r"HeadDistillation reads more than logits: .*teacher_logits="):
        loss(ModelOutput(logits=z), y)
