"""Probabilistic contrastive learning: ProCo (Du et al., TPAMI 2024)."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ltexp.config.require import is_whole, require
from ltexp.counts import class_shares, count_labels
from ltexp.distributed import gather_batch
from ltexp.losses.base import Loss
from ltexp.losses.bessel import log_bessel_over_power
from ltexp.losses.context import BatchContext
from ltexp.outputs import ModelOutput
from ltexp.randomness import generator

LARGEST_CONCENTRATION = 1e5  # of a class of which one feature has been seen, too (the authors' code)
START_LENGTH = 0.9  # of the random means that an epoch's estimate begins with (the same)


class ClassDirections(torch.nn.Module):
    """The running mean of each class's unit features, from which its von Mises-Fisher distribution is estimated.

    Args:
        num_classes: C.
        width: d.
    """

    mean: Tensor
    amount: Tensor

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_classes, width, dtype=torch.float64))
        self.register_buffer("amount", torch.zeros(num_classes, dtype=torch.float64))

    def restart(self, draws: torch.Generator) -> None:
        """Forgets all: random directions of length 0.9 that count for nothing."""
        rows = torch.randn(self.mean.shape, generator=draws, dtype=torch.float64)
        self.mean = START_LENGTH * F.normalize(rows, dim=1).to(self.mean.device)
        self.amount = torch.zeros_like(self.amount)

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        """Counts the features (N, d) of a batch in."""
        number = count_labels(labels, len(self.amount)).double()
        sums = torch.zeros_like(self.mean).index_add_(0, labels, features.double())
        share = (number / (number + self.amount).clamp_min(1)).unsqueeze(1)
        self.mean = (1 - share) * self.mean + share * sums / number.clamp_min(1).unsqueeze(1)
        self.amount = self.amount + number

    def concentration(self) -> tuple[Tensor, Tensor]:
        """(κ (C,), mean direction (C, d)), float64: κ = d R / (1 - R²) of the mean's length R (Eq. 9)."""
        length = torch.linalg.vector_norm(self.mean, dim=1)
        kappa = self.mean.shape[1] * length / (1 - length**2)
        unusable = ~torch.isfinite(kappa) | (kappa < 0) | (kappa > LARGEST_CONCENTRATION)
        return kappa.masked_fill(unusable, LARGEST_CONCENTRATION), F.normalize(self.mean, dim=1)


class ProbabilisticContrastive(Loss):
    """Balanced softmax over closed-form contrasts with infinitely many samples of each class's distribution.

    With p = d / 2 - 1 and L(k) = log I_p(k) - p log k, the logit of class c for a projection f is

        L(|| κ_c μ_c + f / τ ||) - L(κ_c).

    A term beside the classifier's own loss, with weight 1. The estimate of the last epoch is what logits are computed
    with, and is itself updated with each batch before they are; a fresh one gathers the epoch's features and takes its
    place at the end. Every process counts the features of all.

    Args:
        class_counts: int64 (C,).
        temperature: τ. Default 0.1 (the authors' CIFAR; 0.07 on large sets).
        width: d, of a projection. Default 128 (the same).
        first_view: the first view that is contrasted. Default 1: the first is the classifier's.

    Raises:
        ConfigError: a setting out of range.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"projections"})
    takes_class_weights: ClassVar[bool] = False
    compares_rows = True
    log_prior: Tensor
    epoch: Tensor

    def __init__(self, class_counts: Tensor, temperature: float = 0.1, width: int = 128, first_view: int = 1) -> None:
        super().__init__(class_counts)
        require(temperature > 0, "temperature", temperature, "a number above 0")
        require(is_whole(width, 2), "width", width, "a whole number of 2 or more: that of the projections")
        require(is_whole(first_view, 0), "first_view", first_view, "a whole number of 0 or more")
        self.temperature, self.first_view, self.order = temperature, first_view, width / 2 - 1
        self.fewest_views = first_view + 1
        self.register_buffer("log_prior", class_shares(class_counts).log(), persistent=False)
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self.used, self.fresh = (ClassDirections(self.num_classes, width) for _ in range(2))
        for number, estimate in enumerate((self.used, self.fresh)):
            estimate.restart(generator("class_directions", number))

    def contrasts(self, projections: Tensor) -> Tensor:
        """float64 (B, C): the logits of unit rows (B, d)."""
        kappa, direction = self.used.concentration()
        rows = projections.double() / self.temperature
        products = rows @ direction.T
        squares = (kappa**2 + 2 * kappa * products + (rows**2).sum(1, keepdim=True)).clamp_min(1e-12)
        return log_bessel_over_power(self.order, squares.sqrt()) - log_bessel_over_power(self.order, kappa)

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) the mean over the contrasted views, each of which the estimate has seen before its logits are made."""
        views = output.extra["projections"][self.first_view :].float()
        size = len(target) if context.size is None else context.size
        labels, losses = gather_batch(target, size), []
        for view in views:
            if self.training and not context.again:
                everything = gather_batch(view.detach(), size)
                self.used.add(everything, labels)
                self.fresh.add(everything, labels)
            losses.append(F.cross_entropy(self.contrasts(view) + self.log_prior, target, reduction="none"))
        return torch.stack(losses).mean(0).float()

    def end_epoch(self) -> None:
        """The epoch's estimate is used in the next, and another begins."""
        self.epoch = self.epoch + 1
        self.used.mean, self.used.amount = self.fresh.mean, self.fresh.amount
        self.fresh.restart(generator("class_directions", int(self.epoch) + 1))
