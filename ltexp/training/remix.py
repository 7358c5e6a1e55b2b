"""Remix: mixup whose label may go to the rarer class alone (Chou et al., ECCV Workshops 2020)."""

import torch
from torch import Tensor

from ltexp.config.require import require
from ltexp.data.loader import Batch
from ltexp.training.mixing import Mixed, Mixture, Mixup, partners_of


class Remix(Mixup):
    """mixup of the images; of two classes whose sizes differ κ-fold, the rarer takes the whole label where it can.

    The weight of the label of image i, mixed with j at λ: 0 where n_i / n_j >= κ and λ < τ, 1 where n_i / n_j <= 1 / κ
    and 1 - λ < τ, else λ.

    Args:
        class_counts: int64 (C,).
        alpha: α of λ ~ Beta(α, α). Default 1.0 (the paper).
        kappa: κ. Default 3 (the paper); infinite: mixup.
        tau: τ. Default 0.5 (the paper).

    Raises:
        ConfigError: α not positive, κ below 1, or τ outside [0, 1].
    """

    replayable = False  # what it fills in depends on the batch's weight

    def __init__(self, class_counts: Tensor, alpha: float = 1.0, kappa: float = 3.0, tau: float = 0.5) -> None:
        super().__init__(class_counts, alpha)
        require(kappa >= 1, "kappa", kappa, "a number of 1 or more")
        require(0 <= tau <= 1, "tau", tau, "a number from 0 to 1")
        self.kappa, self.tau = kappa, tau

    def __call__(self, batch: Batch, seed: int) -> Mixed:
        """The batch mixed as by mixup, and a label weight for each row."""
        weight = self.draw_weight(seed, batch.epoch, batch.step)
        partners, partner_labels = partners_of(batch)
        counts = self.class_counts = self.class_counts.to(batch.labels.device)
        label_weight = self.label_weight(counts[batch.labels], counts[partner_labels], weight)
        return Mixed(batch.inputs.lerp(partners, 1.0 - weight), Mixture(batch.labels, partner_labels, label_weight))

    def label_weight(self, own: Tensor, partner: Tensor, weight: float) -> Tensor:
        """(n,) float32: what the own label counts for.

        Args:
            own, partner: (n,) the sizes of the two classes.
            weight: λ, what the own image counts for.
        """
        result = torch.full(own.shape, weight, device=own.device)
        if weight < self.tau:
            result[own >= self.kappa * partner] = 0.0
        if 1.0 - weight < self.tau:
            result[self.kappa * own <= partner] = 1.0
        return result
