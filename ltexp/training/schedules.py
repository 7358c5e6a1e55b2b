"""Learning-rate schedules: torch's LambdaLR over closed forms, by epoch or by step.

torch's MultiStepLR, LinearLR and CosineAnnealingLR multiply the last rate by a ratio; their rates are the same numbers
but for the last bits, and those bits are in every figure that we published. A closed form also says what the
rate of any epoch is without the ones before it. Any scheduler of torch's can be chosen by its `_target_` all the same.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.utils import get_class
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from ltexp.config.build import build
from ltexp.config.require import require, require_choice, within
from ltexp.epochs import first_epoch, is_point

INTERVALS = ("epoch", "step")


class Schedule(LambdaLR, ABC):
    """Base of our schedules: a curve times a linear warm-up, as a factor on the base learning rate.

    It counts in units: epochs, or steps of the optimizer.

    Args:
        optimizer: whose learning rates it sets.
        epochs: of the stage.
        steps_per_epoch: optimizer steps of an epoch.
        warmup_epochs: epochs w of warm-up; by epoch, epoch e < w has (e + 1) / w of the curve, by step, step t has
            (t + 1) / (w * steps_per_epoch). 0: none.
        interval: `epoch`: the rate is constant within an epoch, as in the papers; `step`: it changes with each step.
        warmup_start: s: the warm-up climbs from s of the curve on, s + (1 - s) (e + 1) / w. Default 0; BBN's code: 1/3.

    Raises:
        ConfigError: a warm-up that is not a whole number of epochs, 0 or more, one that starts outside [0, 1], or an
            unknown interval.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        epochs: int,
        steps_per_epoch: int = 1,
        warmup_epochs: int = 0,
        interval: str = "epoch",
        warmup_start: float = 0.0,
    ) -> None:
        whole = warmup_epochs >= 0 and warmup_epochs == int(warmup_epochs)
        require(whole, "warmup_epochs", warmup_epochs, "a whole number of 0 or more")
        require_choice("interval", interval, INTERVALS)
        require(0 <= warmup_start <= 1, "warmup_start", warmup_start, "a number from 0 to 1")
        self.warmup_start = warmup_start
        self.units = steps_per_epoch if interval == "step" else 1
        self.length, self.warmup = epochs * self.units, warmup_epochs * self.units
        super().__init__(optimizer, self.factor)

    def factor(self, unit: int) -> float:
        """What the base learning rate is multiplied by in a unit, from 0."""
        if unit >= self.warmup:
            return self.curve(unit)
        climbed = (unit + 1) / self.warmup
        return (self.warmup_start + (1.0 - self.warmup_start) * climbed) * self.curve(unit)

    @abstractmethod
    def curve(self, unit: int) -> float:
        """The factor without warm-up."""


class Constant(Schedule):
    """The base learning rate throughout."""

    def curve(self, unit: int) -> float:
        """1."""
        return 1.0


class Cosine(Schedule):
    """Half a cosine over the stage: (1 + cos(π u / U)) / 2; the last unit's rate is small, not 0."""

    def curve(self, unit: int) -> float:
        """(1 + cos(π u / U)) / 2."""
        return 0.5 * (1.0 + math.cos(math.pi * unit / self.length))


class MultiStep(Schedule):
    """Step decay with warm-up, the field's CIFAR schedule (Cao et al., NeurIPS 2019).

    The defaults are the tenfold family: of 200 epochs, 1 up to epoch 159, 0.1 from 160, 0.01 from 180 (MiSLAS, GCL,
    KPS). `decay: 0.01` is the hundredfold family: 0.01 from 160, 0.0001 from 180 (LDAM-DRW, BKD, FBL, VS, RIDE).

    Args:
        optimizer, epochs, steps_per_epoch, interval, warmup_start: see `Schedule`.
        milestones: where the rate drops, each a fraction of the stage (below 1) or a whole epoch counted from 0; the
            drop is already active in that epoch. Default 0.8 and 0.9.
        decay: factor of each drop, in (0, 1]. Default 0.1.
        warmup_epochs: see `Schedule`. Default 5: 0.2, 0.4, ... 1.0 of the base rate.

    Raises:
        ConfigError: a milestone that is neither, or a whole epoch that the stage does not reach; a decay out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        epochs: int,
        steps_per_epoch: int = 1,
        milestones: Sequence[float] = (0.8, 0.9),
        decay: float = 0.1,
        warmup_epochs: int = 5,
        interval: str = "epoch",
        warmup_start: float = 0.0,
    ) -> None:
        for milestone in milestones:
            point = is_point(milestone) and milestone > 0
            require(point, "milestones", list(milestones), "fractions of the stage between 0 and 1, or whole epochs")
            reached = milestone < 1 or milestone < epochs
            say = f"fractions of the stage, or epochs that it reaches, below {epochs}"
            require(reached, "milestones", list(milestones), say)
        require(0 < decay <= 1, "decay", decay, "a number above 0, at most 1")
        self.milestones, self.decay = tuple(milestones), decay
        super().__init__(optimizer, epochs, steps_per_epoch, warmup_epochs, interval, warmup_start)

    def curve(self, unit: int) -> float:
        """`decay` to the power of the number of milestones reached."""
        return self.decay ** sum(unit >= self._start(milestone) for milestone in self.milestones)

    def never_reached(self) -> list[float]:
        """The milestones that round to the stage's end, so that no drop comes of them."""
        return [milestone for milestone in self.milestones if self._start(milestone) >= self.length]

    def _start(self, milestone: float) -> int:
        return int(milestone) * self.units if milestone >= 1 else first_epoch(milestone, self.length)


def build_schedule(
    node: Mapping[str, Any], optimizer: Optimizer, epochs: int, steps_per_epoch: int
) -> tuple[LRScheduler, str, str | None]:
    """(scheduler, how often it steps: `epoch` or `step`, the metric it watches) of a config's `schedule` node.

    Args:
        node: a scheduler's; `interval` and `monitor` are ours to read where its class does not take them.
        optimizer: whose learning rates it sets.
        epochs: of the stage; handed over to a class that asks for `epochs`.
        steps_per_epoch: optimizer steps of an epoch; handed over likewise.

    Raises:
        ConfigError: for settings that the class does not take or that are out of range, an interval that is none, or a
            schedule that waits for a metric without its name.
    """
    interval, monitored = str(node.get("interval", "epoch")), node.get("monitor")
    with within("schedule"):
        require_choice("interval", interval, INTERVALS)
    accepted = inspect.signature(get_class(node["_target_"])).parameters
    settings = {key: value for key, value in node.items() if key not in ("interval", "monitor") or key in accepted}
    facts = {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
    taken = {key: value for key, value in facts.items() if key in accepted and key not in node}
    scheduler: LRScheduler = build(settings, optimizer, path="schedule", **taken)
    with within("schedule"):
        named = monitored is not None or not isinstance(scheduler, ReduceLROnPlateau)
        require(named, "monitor", monitored, "the metric that it waits for, such as validation_balanced or train_loss")
    return scheduler, interval, monitored
