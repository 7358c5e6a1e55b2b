"""The Adaptive Feature Generator of GLAG (arXiv 2203.00452, Sec. 4.2): which features to generate, and generating them.

For a rare class each generated feature starts from one of its real ones, x_i, and is a draw from N(μ, Σ) with Eqs. 8-9;
for a frequent class it is a draw from the class's own N(μ_k, Σ_k).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ltexp.features.bank import FeatureBank
from ltexp.features.calibration import Support, calibrated_mean


def balancing_counts(counts: Tensor) -> Tensor:
    """(C,) how many features of each class to generate so that all have as many as the largest class."""
    return counts.max() - counts


def draw_sources(labels: Tensor, counts: Tensor, starts: Tensor, draws: torch.Generator) -> Tensor:
    """Which real feature each generated one starts from: each of a class's equally often, the remainder at random.

    Args:
        labels: (G,) classes of the generated features, sorted.
        counts, starts: (C,) real features of each class, and the first of them in the bank.
        draws: on the CPU, as all of these tensors.

    Returns:
        (G,) rows of the bank.
    """
    classes = torch.repeat_interleave(counts)
    # whole-number keys: sorting them shuffles the rows of each class and leaves the classes in order
    shuffled = ((classes << 32) + torch.randint(1 << 32, (len(classes),), generator=draws)).argsort()
    generated = torch.bincount(labels, minlength=len(counts))
    number = torch.arange(len(labels)) - (generated.cumsum(0) - generated)[labels]
    return shuffled[starts[labels] + number % counts[labels]]


@dataclass(frozen=True)
class Generation:
    """How the generated features of one epoch come about; G of them, with the K classes each learns from.

    Attributes:
        bank: the epoch's real features.
        labels: (G,) int64, their classes.
        sources: (G,) rows of the bank that they start from; of no matter for a frequent class.
        is_tail: (C,) bool, the rare classes.
        beta: (C,) float32, β of each class; 0 where it is not a rare one.
        support: of every row of the bank; of no matter for a frequent class.
        gamma: γ.
        everywhere: whether γ is added to every entry of the covariance, not to its diagonal.
    """

    bank: FeatureBank
    labels: Tensor
    sources: Tensor
    is_tail: Tensor
    beta: Tensor
    support: Support
    gamma: float = 0.0
    everywhere: bool = False

    def generate(self, wanted: Tensor, mine: Tensor, draws: torch.Generator) -> Tensor:
        """Some of the generated features.

        All processes draw the same numbers for all that is `wanted`, and each computes its own part.

        Args:
            wanted: (m,) numbers from 0 to G - 1, the same on every process.
            mine: (p,) positions in `wanted` that this process asks for.
            draws: on the bank's device, in the same state on every process.

        Returns:
            (p, D) float32.
        """
        device = self.bank.features.device
        labels, sources = self.labels[wanted], self.sources[wanted]
        result = self._centers(labels[mine], sources[mine])
        place = torch.full((len(wanted),), -1, device=device)
        place[mine] = torch.arange(len(mine), device=device)
        classes, rows, factors = self._uses(labels, sources)
        shared = len(mine) < len(wanted)
        sizes = torch.bincount(classes, minlength=len(self.beta)).tolist()
        start = 0
        for label, size in enumerate(sizes):  # in class order: the order of the draws
            if size:
                part = slice(start, start + size)
                self.bank.add_deviations(result, label, place[rows[part]], factors[part], draws, shared)
                start += size
        if self.gamma > 0:
            width = 1 if self.everywhere else result.shape[1]
            noise = torch.randn(len(wanted), width, generator=draws, device=device)[mine]
            result += self.gamma**0.5 * self.is_tail[labels[mine], None] * noise
        return result

    def _centers(self, labels: Tensor, sources: Tensor) -> Tensor:
        """(p, D) the means: Eq. 8 for a rare class, its own mean for a frequent one."""
        own, beta = self.bank.features[sources], self.beta[labels]
        support = Support(self.support.classes[sources], self.support.weights[sources])
        calibrated = calibrated_mean(own, beta, support, self.bank.means)
        return torch.where(self.is_tail[labels, None], calibrated, self.bank.means[labels])

    def _uses(self, labels: Tensor, sources: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(classes, rows, factors), sorted by class: whose deviations go into which of the features, times what.

        A feature of a rare class takes (1 - β) of its own class's and β sqrt(w_j) of each supporting class's.
        """
        tail, beta = self.is_tail[labels], self.beta[labels]
        rows = torch.arange(len(labels), device=labels.device)
        lent = tail & (beta > 0)
        classes, weights = self.support.classes[sources[lent]], self.support.weights[sources[lent]]
        factors = beta[lent, None] * weights.sqrt()
        all_classes = torch.cat([labels, classes.flatten()])
        all_rows = torch.cat([rows, rows[lent].repeat_interleave(classes.shape[1])])
        all_factors = torch.cat([torch.where(tail, 1 - beta, 1.0), factors.flatten()])
        order = all_classes.argsort(stable=True)
        return all_classes[order], all_rows[order], all_factors[order]
