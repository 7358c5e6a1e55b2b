"""Re-weighting as a schedule of a stage: class weights for whatever loss the stage has, from some epoch on."""

from abc import ABC, abstractmethod
from dataclasses import replace

from torch import Tensor, nn

from ltexp.config.require import require, require_choice
from ltexp.counts import checked_class_counts, inverse_effective_number
from ltexp.epochs import A_POINT, has_started, is_point
from ltexp.errors import ConfigError
from ltexp.losses.base import Loss, normalized_weights
from ltexp.losses.context import BatchContext


def effective_number_weights(class_counts: Tensor, beta: float) -> Tensor:
    """(C,) float32 weights proportional to (1 - β) / (1 - β^n_c) that sum to C (Cui et al., CVPR 2019); 0 <= β < 1."""
    return normalized_weights(inverse_effective_number(checked_class_counts(class_counts), beta))


DIVISIONS = ("weights", "batch")


class Reweighting(ABC):
    """Base of the re-weightings.

    Attributes:
        divide_by: what the sum of w * l over a batch is divided by: "weights", those of the batch's targets, as the
            field's code does; or "batch", its size, so that a batch full of rare classes counts for more.
    """

    divide_by: str = "weights"

    @abstractmethod
    def weights(self, class_counts: Tensor) -> Tensor | None:
        """(C,) float32 summing to C, the weights while they hold; None: there are none at any time."""

    @abstractmethod
    def holds(self, epoch: int, max_epochs: int) -> bool:
        """Whether the weights hold in `epoch` (from 0) of `max_epochs`: of the epoch alone, so that resuming is exact.

        Raises:
            ConfigError: if they never would.
        """


class NoReweighting(Reweighting):
    """The loss as it is."""

    def weights(self, class_counts: Tensor) -> Tensor | None:
        """None."""
        return None

    def holds(self, epoch: int, max_epochs: int) -> bool:
        """Never."""
        return False


class DeferredReweighting(Reweighting):
    """Deferred re-weighting (DRW; Cao et al., NeurIPS 2019): unweighted at first, then by the effective number.

    Args:
        start: when the weights begin to hold: a fraction of the stage (below 1) or a whole epoch counted from 0.
            Default 0.8, epoch 160 of 200: that paper's, together with the first drop of the learning rate. 0: always.
        beta: β of the weights (1 - β) / (1 - β^n_c). Default 0.9999 (the authors' code).
        divide_by: see `Reweighting`. Default "weights" (the authors' code); "batch" in the code of Remix-DRW.

    Raises:
        ConfigError: a start that is neither, β out of [0, 1), or an unknown division.
    """

    def __init__(self, start: float = 0.8, beta: float = 0.9999, divide_by: str = "weights") -> None:
        require(is_point(start), "start", start, A_POINT)
        require(0 <= beta < 1, "beta", beta, "a number of 0 or more and below 1")
        require_choice("divide_by", divide_by, DIVISIONS)
        self.start, self.beta, self.divide_by = start, beta, divide_by

    def weights(self, class_counts: Tensor) -> Tensor:
        """(C,) the effective-number weights; equal counts give ones."""
        return effective_number_weights(class_counts, self.beta)

    def holds(self, epoch: int, max_epochs: int) -> bool:
        """From `start` on."""
        return has_started("start", self.start, epoch, max_epochs)


class Reweighted(nn.Module):
    """Holds a re-weighting's weights for a loss.

    Args:
        loss: which the weights are for.
        reweighting: when and with what.

    Raises:
        ConfigError: if there are weights and the loss has its own or cannot take any.
    """

    class_weights: Tensor | None

    def __init__(self, loss: Loss, reweighting: Reweighting) -> None:
        super().__init__()
        weights = reweighting.weights(loss.class_counts)
        self.register_buffer("class_weights", weights, persistent=False)
        self.reweighting = reweighting
        if weights is None:
            return
        name = type(loss).__name__
        if loss.class_weights is not None:
            raise ConfigError(f"{name} has class weights of its own: choose reweighting none, or a loss without them")
        if not loss.takes_class_weights:
            raise ConfigError(f"{name} cannot take class weights: choose reweighting none, or another loss")

    def weights_in(self, epoch: int, max_epochs: int) -> Tensor | None:
        """(C,) the weights that hold in `epoch` (from 0) of `max_epochs`, or None."""
        if self.class_weights is None or not self.reweighting.holds(epoch, max_epochs):
            return None
        return self.class_weights

    def weighted(self, context: BatchContext, class_weights: Tensor | None) -> BatchContext:
        """The context of a call of the loss, where `class_weights` (C,) hold."""
        if class_weights is None:
            return context
        divides = self.reweighting.divide_by == "weights"
        return replace(context, class_weights=class_weights, divides_by_weights=divides)
