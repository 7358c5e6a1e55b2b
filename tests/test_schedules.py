"""Learning-rate factors against the tables of the papers' code."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import run_here
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR

from ltexp.errors import ConfigError
from ltexp.training.schedules import Constant, Cosine, MultiStep, Schedule, build_schedule


def optimizer(lr: float = 1.0) -> SGD:
    return SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def factors_of(kind: type[Schedule], epochs: int, *settings: Any, **named: Any) -> list[float]:
    """Of each epoch."""
    schedule = kind(optimizer(), epochs, 1, *settings, **named)
    return [schedule.factor(epoch) for epoch in range(epochs)]


def rates(scheduler: LRScheduler, opt: SGD, units: int) -> list[float]:
    """The learning rates that the optimizer has in each unit."""
    found = []
    for _ in range(units):
        found.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("decay", "after_160", "after_180"), [(0.1, 0.1, 0.01), (0.01, 0.01, 0.0001)])
def test_cifar_schedule(decay: float, after_160: float, after_180: float) -> None:
    """Both families of decay: warm-up 0.2 to 1.0 over 5 epochs, drops already active in epochs 160 and 180."""
    for milestones in [(0.8, 0.9), (160, 180)]:
        factors = factors_of(MultiStep, 200, milestones, decay)
        assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert factors[5:160] == [1.0] * 155
        assert factors[160:180] == pytest.approx([after_160] * 20)
        assert factors[180:] == pytest.approx([after_180] * 20)


def test_a_fraction_is_reached_at_the_first_epoch_past_it() -> None:
    """For any number of epochs, compared in whole numbers, where no rounding can move a drop by an epoch."""
    for max_epochs in range(1, 201):
        factors = factors_of(MultiStep, max_epochs, (0.55, 0.9), warmup_epochs=0)
        drops = [(100 * e >= 55 * max_epochs) + (10 * e >= 9 * max_epochs) for e in range(max_epochs)]
        assert factors == pytest.approx([0.1**d for d in drops])


def test_cosine() -> None:
    plain, warm = factors_of(Cosine, 10), factors_of(Cosine, 10, warmup_epochs=2)
    assert [plain[0], plain[5]] == pytest.approx([1.0, 0.5])
    assert plain[9] == pytest.approx((1 + math.cos(0.9 * math.pi)) / 2)
    assert warm[0] == pytest.approx(0.5)
    assert warm[1:] == plain[1:]


def test_constant() -> None:
    assert factors_of(Constant, 7) == [1.0] * 7
    assert factors_of(Constant, 7, warmup_epochs=4)[0] == 0.25


def test_multistep_with_warm_up_is_torchs_chain_of_linear_and_multistep() -> None:
    ours, theirs = optimizer(0.1), optimizer(0.1)
    chain = ChainedScheduler(
        [LinearLR(theirs, start_factor=0.2, total_iters=4), MultiStepLR(theirs, [160, 180], gamma=0.1)], theirs
    )
    expected = rates(chain, theirs, 200)
    assert rates(MultiStep(ours, 200), ours, 200) == pytest.approx(expected, rel=0, abs=1e-12)
    assert expected[0] == pytest.approx(0.02)
    assert expected[199] == pytest.approx(0.001)


def test_cosine_is_torchs_cosine_annealing() -> None:
    ours, theirs = optimizer(0.1), optimizer(0.1)
    expected = rates(CosineAnnealingLR(theirs, T_max=30), theirs, 30)
    assert rates(Cosine(ours, 30), ours, 30) == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("kind", [Constant, Cosine, MultiStep])
def test_by_step_a_schedule_is_the_one_by_epoch_of_as_many_epochs_as_steps(kind: type[Schedule]) -> None:
    """6 epochs of 10 steps with 2 epochs of warm-up are 60 epochs with 20."""
    by_step = kind(optimizer(), 6, 10, warmup_epochs=2, interval="step")
    by_epoch = factors_of(kind, 60, warmup_epochs=20)
    assert [by_step.factor(step) for step in range(60)] == by_epoch
    assert len(set(by_epoch[:20])) == 20  # it moves within an epoch


def test_whole_milestones_by_step_are_epochs() -> None:
    schedule = MultiStep(optimizer(), 6, 10, milestones=[3], warmup_epochs=0, interval="step")
    assert [schedule.factor(step) for step in (29, 30)] == pytest.approx([1.0, 0.1])


def test_any_scheduler_of_torchs_is_told_what_it_asks_for() -> None:
    """OneCycleLR asks for the epochs and the steps of each; it ends at its lowest rate after exactly so many steps."""
    opt = optimizer(0.1)
    node = {"_target_": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 1.0, "interval": "step"}
    scheduler, interval, monitored = build_schedule(node, opt, epochs=4, steps_per_epoch=5)
    assert (interval, monitored) == ("step", None)
    found = rates(scheduler, opt, 19)
    assert max(found) == pytest.approx(1.0, abs=0.05)
    assert opt.param_groups[0]["lr"] == pytest.approx(1.0 / 25 / 1e4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"milestones": [0.8, 160.5]},
            r"invalid milestones=\[0.8, 160.5\]: expected fractions of the stage between 0 and 1, or",
        ),
        (
            {"milestones": [0]},
            r"invalid milestones=\[0\]: expected fractions of the stage between 0 and 1, or whole epochs",
        ),
        (
            {"milestones": [-0.1]},
            r"invalid milestones=\[-0.1\]: expected fractions of the stage between 0 and 1, or whole epochs",
        ),
        ({"decay": 0.0}, "invalid decay=0.0: expected a number above 0, at most 1"),
        ({"decay": 10}, "invalid decay=10: expected a number above 0, at most 1"),
        ({"warmup_epochs": -1}, "invalid warmup_epochs=-1: expected a whole number of 0 or more"),
        ({"warmup_epochs": 2.5}, "invalid warmup_epochs=2.5: expected a whole number of 0 or more"),
        ({"interval": "steps"}, r"invalid interval=steps: expected epoch \| step; did you mean 'step'\?"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MultiStep(optimizer(), 200, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("interval", ["steps", "Epoch"])
@pytest.mark.parametrize("target", ["torch.optim.lr_scheduler.ConstantLR", "ltexp.training.schedules.Constant"])
def test_an_interval_at_which_nothing_steps(target: str, interval: str) -> None:
    with pytest.raises(ConfigError, match=rf"invalid schedule.interval={interval}: expected epoch \| step"):
        build_schedule({"_target_": target, "interval": interval}, optimizer(), epochs=4, steps_per_epoch=5)


PLATEAU = (
    *(
        "method=ce",
        "schedule@stage1.schedule=constant",
        "~stage1.schedule.warmup_epochs",
        "~stage1.schedule.warmup_start",
    ),
    "stage1.schedule._target_=torch.optim.lr_scheduler.ReduceLROnPlateau",
)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), r"invalid stage1.schedule.monitor=null: expected the metric that it waits for, such as"),
        (("+stage1.schedule.monitor=validation_ballanced",), r"did you mean 'validation_balanced'"),
        (("+stage1.schedule.monitor=validation_all",), r"stage1.schedule waits for .*hold one out, such as"),
        (
            ("+stage1.schedule.monitor=test_all",),
            r"stage1.schedule waits for test_all, which is never measured in stage1",
        ),
    ],
)
def test_a_schedule_that_waits_for_what_is_never_measured(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_here(tmp_path / "run", *PLATEAU, *overrides)
    assert not (tmp_path / "run" / "stage1").exists()


def test_a_schedule_waits_for_the_training_loss(tmp_path: Path) -> None:
    run_here(tmp_path / "run", *PLATEAU, "+stage1.schedule.monitor=train_loss")
