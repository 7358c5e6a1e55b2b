"""Learning-rate factors against the tables of the papers' code."""

import math

import pytest

from ltexp.errors import ConfigError
from ltexp.training.schedules import Constant, Cosine, MultiStep


@pytest.mark.parametrize(("decay", "after_160", "after_180"), [(0.1, 0.1, 0.01), (0.01, 0.01, 0.0001)])
def test_cifar_schedule(decay: float, after_160: float, after_180: float) -> None:
    """Both families of decay: warm-up 0.2 to 1.0 over 5 epochs, drops already active in epochs 160 and 180."""
    for milestones in [(0.8, 0.9), (160, 180)]:
        schedule = MultiStep(milestones, decay=decay)
        factors = [schedule.factor(e, 200) for e in range(200)]
        assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert factors[5:160] == [1.0] * 155
        assert factors[160:180] == pytest.approx([after_160] * 20)
        assert factors[180:] == pytest.approx([after_180] * 20)


def test_a_fraction_is_reached_at_the_first_epoch_past_it() -> None:
    """For any number of epochs, compared in whole numbers, where no rounding can move a drop by an epoch."""
    schedule = MultiStep((0.55, 0.9), warmup_epochs=0)
    for max_epochs in range(1, 201):
        factors = [schedule.factor(epoch, max_epochs) for epoch in range(max_epochs)]
        drops = [(100 * e >= 55 * max_epochs) + (10 * e >= 9 * max_epochs) for e in range(max_epochs)]
        assert factors == pytest.approx([0.1**d for d in drops])


def test_cosine() -> None:
    assert [Cosine().factor(e, 10) for e in (0, 5)] == pytest.approx([1.0, 0.5])
    assert Cosine().factor(9, 10) == pytest.approx((1 + math.cos(0.9 * math.pi)) / 2)
    assert Cosine(warmup_epochs=2).factor(0, 10) == pytest.approx(0.5)
    assert Cosine(warmup_epochs=2).factor(1, 10) == Cosine().factor(1, 10)


def test_constant() -> None:
    assert [Constant().factor(e, 7) for e in range(7)] == [1.0] * 7
    assert Constant(warmup_epochs=4).factor(0, 7) == 0.25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"milestones": [0.8, 160.5]}, "160.5 is neither"),
        ({"milestones": [0]}, "0 is neither"),
        ({"milestones": [-0.1]}, "-0.1 is neither"),
        ({"decay": 0.0}, r"schedule.decay must lie in \(0, 1\], got 0.0"),
        ({"decay": 10}, "got 10"),
        ({"warmup_epochs": -1}, "schedule.warmup_epochs"),
        ({"warmup_epochs": 2.5}, "got 2.5"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MultiStep(**settings)  # type: ignore[arg-type]
