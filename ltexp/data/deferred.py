"""Deferred re-sampling (DRS): one sampler until some epoch, another from then on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ltexp.config.build import build
from ltexp.config.require import require, within
from ltexp.data.samplers import Sampler
from ltexp.epochs import A_POINT, has_started, is_point
from ltexp.errors import ConfigError

if TYPE_CHECKING:
    from ltexp.losses.context import Survey


class Deferred(Sampler):
    """`before` up to the start, `after` from then on; which one is a function of the epoch alone.

    Args:
        labels: (N,) int64.
        class_counts: (C,) int64.
        before: a sampler of the same labels, or the config node of one (`{_target_: ...}`). In
            conf/sampler/deferred.yaml: instance_balanced.
        after: the same. In conf/sampler/deferred.yaml: class_balanced.
        start: a fraction of the stage (below 1) or a whole epoch counted from 0. Default 0.8, epoch 160 of 200, with
            the first drop of the learning rate (Cao et al., NeurIPS 2019). 0: `after` throughout.
        epoch_length: images an epoch shows; null (default): as `before` and `after` say.

    Raises:
        ConfigError: a start that is neither, samplers of other labels or of different epoch lengths, and as they do.
    """

    def __init__(
        self,
        labels: Tensor,
        class_counts: Tensor,
        before: Sampler | Mapping[str, Any],
        after: Sampler | Mapping[str, Any],
        start: float = 0.8,
        epoch_length: int | None = None,
    ) -> None:
        require(is_point(start), "start", start, A_POINT)
        settings: dict[str, Any] = {"labels": labels, "class_counts": class_counts}
        settings |= {} if epoch_length is None else {"epoch_length": epoch_length}
        self.before, self.after = _made("before", before, settings), _made("after", after, settings)
        if self.before.epoch_length != self.after.epoch_length:
            raise ConfigError(
                f"`before` shows {self.before.epoch_length} images an epoch and `after` "
                f"{self.after.epoch_length}: all epochs of a stage are of one length, set epoch_length"
            )
        super().__init__(labels, class_counts, self.before.epoch_length)
        for path, sampler in {"before": self.before, "after": self.after}.items():
            if not (sampler.size == self.size and torch.equal(sampler.by_class, self.by_class)):
                raise ConfigError(f"{path}: its labels are others: build it of the labels given here")
        self.start = start
        self.surveys = {*self.before.surveys, *self.after.surveys}

    def current(self, epoch: int, max_epochs: int) -> Sampler:
        """The sampler of `epoch` (from 0) of `max_epochs`.

        Raises:
            ConfigError: a start that the stage never reaches.
        """
        return self.after if has_started("start", self.start, epoch, max_epochs) else self.before

    def before_epoch(self, epoch: int, max_epochs: int, survey: "Survey") -> None:
        """As the epoch's sampler does; see `Sampler`."""
        if (current := self.current(epoch, max_epochs)).surveys:
            current.before_epoch(epoch, max_epochs, survey)

    def check_data(self) -> None:
        """As both samplers do; see `Sampler`."""
        for path, sampler in {"before": self.before, "after": self.after}.items():
            with within(path):
                sampler.check_data()

    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        """(C,) those of the epoch's sampler."""
        return self.current(epoch, max_epochs).class_probabilities(epoch, max_epochs)

    def indices(self, seed: int, epoch: int, max_epochs: int) -> Tensor:
        """The stream of the epoch's sampler."""
        return self.current(epoch, max_epochs).indices(seed, epoch, max_epochs)


def _made(path: str, part: Sampler | Mapping[str, Any], settings: dict[str, Any]) -> Sampler:
    """A sampler as it is given, or built of its config node with `settings`."""
    if isinstance(part, Mapping):
        built: Sampler = build(part, path=path, **settings)
        return built
    if not isinstance(part, Sampler):
        raise ConfigError(f"{path}: expected a sampler, or the config node of one, got {type(part).__name__}")
    length = settings.get("epoch_length", part.epoch_length)
    if part.epoch_length != length:
        raise ConfigError(f"{path}: it shows {part.epoch_length} images an epoch: build it with epoch_length={length}")
    return part
