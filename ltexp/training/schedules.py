"""Learning-rate schedules by epoch: a factor on the base learning rate that is constant within an epoch."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from ltexp.config.require import require
from ltexp.epochs import first_epoch, is_point


class Schedule(ABC):
    """Base of the schedules: a curve times a linear warm-up.

    Args:
        warmup_epochs: epochs w of warm-up; epoch e < w has (e + 1) / w of the curve. 0: none.

    Raises:
        ConfigError: a warm-up that is not a whole number of epochs, 0 or more.
    """

    def __init__(self, warmup_epochs: int = 0) -> None:
        whole = warmup_epochs >= 0 and warmup_epochs == int(warmup_epochs)
        require(whole, "warmup_epochs", warmup_epochs, "a whole number of 0 or more")
        self.warmup_epochs = warmup_epochs

    def factor(self, epoch: int, max_epochs: int) -> float:
        """What the base learning rate is multiplied by in `epoch` (from 0) of `max_epochs`."""
        warmup = (epoch + 1) / self.warmup_epochs if epoch < self.warmup_epochs else 1.0
        return warmup * self.curve(epoch, max_epochs)

    @abstractmethod
    def curve(self, epoch: int, max_epochs: int) -> float:
        """The factor without warm-up."""


class Constant(Schedule):
    """The base learning rate throughout."""

    def curve(self, epoch: int, max_epochs: int) -> float:
        """1."""
        return 1.0


class Cosine(Schedule):
    """Half a cosine over the stage, by epoch: (1 + cos(π e / E)) / 2; the last epoch's rate is small, not 0."""

    def curve(self, epoch: int, max_epochs: int) -> float:
        """(1 + cos(π e / E)) / 2."""
        return 0.5 * (1.0 + math.cos(math.pi * epoch / max_epochs))


class MultiStep(Schedule):
    """Step decay with warm-up, the field's CIFAR schedule (Cao et al., NeurIPS 2019).

    The defaults are the tenfold family: of 200 epochs, 1 up to epoch 159, 0.1 from 160, 0.01 from 180 (MiSLAS, GCL,
    KPS). `decay: 0.01` is the hundredfold family: 0.01 from 160, 0.0001 from 180 (LDAM-DRW, BKD, FBL, VS, RIDE).

    Args:
        milestones: where the rate drops, each a fraction of the stage (below 1) or a whole epoch counted from 0; the
            drop is already active in that epoch. Default 0.8 and 0.9.
        decay: factor of each drop, in (0, 1]. Default 0.1.
        warmup_epochs: see `Schedule`. Default 5: 0.2, 0.4, ... 1.0 of the base rate.

    Raises:
        ConfigError: a milestone that is neither, or a decay out of range.
    """

    def __init__(self, milestones: Sequence[float] = (0.8, 0.9), decay: float = 0.1, warmup_epochs: int = 5) -> None:
        super().__init__(warmup_epochs)
        for milestone in milestones:
            point = is_point(milestone) and milestone > 0
            require(point, "milestones", list(milestones), "fractions of the stage between 0 and 1, or whole epochs")
        require(0 < decay <= 1, "decay", decay, "a number above 0, at most 1")
        self.milestones, self.decay = tuple(milestones), decay

    def curve(self, epoch: int, max_epochs: int) -> float:
        """`decay` to the power of the number of milestones reached."""
        return self.decay ** sum(epoch >= first_epoch(milestone, max_epochs) for milestone in self.milestones)
