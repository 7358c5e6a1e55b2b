"""AFG as a source of features: what it needs of a training set, and how each epoch's features are to be made."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ltexp.config.require import require, require_choice
from ltexp.data.tail.profile import held_out_sizes, name_class
from ltexp.errors import ConfigError
from ltexp.features.bank import COVARIANCES, FeatureBank
from ltexp.features.calibration import Support, nearest_richer
from ltexp.features.confidence import Confidence
from ltexp.features.generation import Generation, balancing_counts, draw_sources
from ltexp.features.source import ExtractedFeatures
from ltexp.randomness import generator


class AdaptiveFeatureGenerator(ExtractedFeatures):
    """Real features and as many generated ones as give every class the size of the largest (GLAG, Sec. 4.2).

    A feature of a tail class is generated from one of its real ones, x_i, and the K richer classes with the nearest
    means: a draw from N(μ, Σ) with Eqs. 8-10. Head classes are filled up from their own N(μ_k, Σ_k). β, a class's
    confidence in what it learns from others, follows its score on samples that are not trained on (see `Confidence`):
    the validation split where the dataset has one, else some of the class's training images, in this stage alone.

    Args:
        tail_at_most: classes with at most so many training images are tail classes. Default 100 (medium and few shot).
        support_classes: K. Default 2 (the paper: 2 or 3).
        gamma: γ of Eq. 9. Default 0 (the paper: 0 or 0.1).
        gamma_everywhere: whether γ is added to every entry of the covariance, as in the code of free-lunch and
            TailCalibX. Default false: to the diagonal.
        beta, adaptive, beta_reference, beta_step, beta_threshold, most_beta: see `Confidence`; `beta` is its start.
        held_out_fraction: of a tail class's training images, cut to a whole number but at least 1. Default 0.2.
        held_out_most: at most so many of a class. Default 20.
        covariance: see `FeatureBank`.

    Raises:
        ConfigError: for a setting out of range.
    """

    generates = True

    def __init__(
        self,
        tail_at_most: int = 100,
        support_classes: int = 2,
        gamma: float = 0.0,
        gamma_everywhere: bool = False,
        beta: float = 0.6,
        adaptive: bool = True,
        beta_reference: str = "stage1",
        beta_step: float = 0.05,
        beta_threshold: float = 0.005,
        most_beta: float = 0.9,
        held_out_fraction: float = 0.2,
        held_out_most: int = 20,
        covariance: str = "auto",
    ) -> None:
        require(tail_at_most >= 1, "tail_at_most", tail_at_most, "a whole number of 1 or more")
        require(support_classes >= 1, "support_classes", support_classes, "a whole number of 1 or more")
        require(gamma >= 0, "gamma", gamma, "a number of 0 or more, for all classes")
        share = "a share between 0 and 1, for an adaptive beta"
        require(not adaptive or 0 < held_out_fraction < 1, "held_out_fraction", held_out_fraction, share)
        images = "a whole number of 1 or more, for an adaptive beta"
        require(not adaptive or held_out_most >= 1, "held_out_most", held_out_most, images)
        require_choice("covariance", covariance, COVARIANCES)
        self.tail_at_most, self.k = tail_at_most, support_classes
        self.gamma, self.gamma_everywhere, self.covariance = gamma, gamma_everywhere, covariance
        self.keeps_score = adaptive
        self.compares_with_stage1 = adaptive and beta_reference == "stage1"
        self.confidence_settings = {
            "start": beta,
            "adaptive": adaptive,
            "reference": beta_reference,
            "step": beta_step,
            "threshold": beta_threshold,
            "most": most_beta,
        }
        self._confidence(torch.ones(1, dtype=torch.bool), 1)  # settings out of range
        self.held_out_fraction, self.held_out_most = held_out_fraction, held_out_most

    def _confidence(self, is_tail: Tensor, epochs: int) -> Confidence:
        return Confidence(is_tail, epochs, **self.confidence_settings)  # type: ignore[arg-type]

    def is_tail(self, class_counts: Tensor) -> Tensor:
        """(C,) bool."""
        return class_counts <= self.tail_at_most

    def check(self, class_counts: Tensor, class_names: Sequence[str], separate: bool) -> None:
        """See `ExtractedFeatures`: some class is a tail class; each has K richer ones and, held out aside, an image."""
        if not self.is_tail(class_counts).any():
            raise ConfigError(
                f"features.tail_at_most={self.tail_at_most}: no class has so few images, the smallest has "
                f"{int(class_counts.min())}, and no other class learns from richer ones: raise it, or train "
                "on the real features alone with features@stage2.features=extracted"
            )
        richer = (class_counts[:, None] < class_counts[None, :]).sum(1)
        lacking = (self.is_tail(class_counts) & (richer < self.k)).nonzero().flatten().tolist()
        if lacking:
            label = min(lacking, key=lambda c: int(richer[c]))
            raise ConfigError(
                f"features.support_classes={self.k}: only {int(richer[label])} classes have more images than class "
                f"{name_class(label, class_names)} with {int(class_counts[label])}: lower it, or lower "
                f"features.tail_at_most={self.tail_at_most} so that the class is no tail class"
            )
        emptied = (class_counts <= self.held_out(class_counts, separate)).nonzero().flatten().tolist()
        if emptied:
            more = f" (and {len(emptied) - 1} more)" if len(emptied) > 1 else ""
            raise ConfigError(
                f"features: holding out an image for the score of class {name_class(emptied[0], class_names)}{more} "
                f"leaves none of its {int(class_counts[emptied[0]])} to train on: set features.adaptive=false, or give "
                "the dataset a validation split"
            )

    def held_out(self, class_counts: Tensor, separate: bool) -> Tensor:
        """See `ExtractedFeatures`: a share of each tail class, at least one image, which may be all that it has."""
        if not self.keeps_score or separate:
            return torch.zeros_like(class_counts)
        sizes = held_out_sizes(class_counts.tolist(), self.held_out_fraction, self.held_out_most)
        return torch.where(self.is_tail(class_counts), torch.tensor(sizes).clamp_min(1), 0)

    def start(self, class_counts: Tensor, kept: Tensor, epochs: int) -> Tensor:
        """See `ExtractedFeatures`: what every class lacks to have as many features as the largest."""
        self.class_counts = class_counts
        self.confidence = self._confidence(self.is_tail(class_counts), epochs)
        self.labels = torch.repeat_interleave(balancing_counts(kept))
        return self.labels

    def plan(self, bank: FeatureBank, epoch: int, seed: int) -> Generation:
        """See `ExtractedFeatures`."""
        bank.covariance = self.covariance
        device, rows = bank.features.device, len(bank.features)
        is_tail = self.is_tail(self.class_counts).to(device)
        support = Support(
            torch.zeros(rows, self.k, dtype=torch.int64, device=device), torch.zeros(rows, self.k, device=device)
        )
        rare = is_tail[bank.labels].nonzero().flatten()
        counts, images = bank.counts.to(device), self.class_counts.to(device)
        near = nearest_richer(bank.features[rare], bank.labels[rare], bank.means, images, counts, self.k)
        support.classes[rare], support.weights[rare] = near
        sources = draw_sources(self.labels, bank.counts, bank.starts, generator("sources", seed, epoch))
        return Generation(
            bank=bank,
            labels=self.labels.to(device),
            sources=sources.to(device),
            is_tail=is_tail,
            beta=self.confidence.beta[epoch].to(device),
            support=support,
            gamma=self.gamma,
            everywhere=self.gamma_everywhere,
        )

    def set_reference(self, score: Tensor) -> None:
        """See `ExtractedFeatures`."""
        self.confidence.set_reference(score)

    def end_epoch(self, epoch: int, score: Tensor) -> None:
        """See `ExtractedFeatures`: sets the next epoch's β."""
        self.confidence.update(epoch, score)

    def state(self) -> dict[str, Tensor]:
        """See `ExtractedFeatures`."""
        return self.confidence.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See `ExtractedFeatures`."""
        self.confidence.load(state)

    def history(self) -> list[dict[str, Any]]:
        """β that each epoch used and the score after it, of each tail class, with its training images."""
        tail = self.confidence.is_tail.nonzero().flatten().tolist()
        return [
            {
                "epoch": epoch,
                "class": label,
                "images": int(self.class_counts[label]),
                "beta": round(float(self.confidence.beta[epoch, label]), 4),
                "score": None if score.isnan() else float(score),
            }
            for epoch in range(len(self.confidence.score))
            for label in tail
            for score in [self.confidence.score[epoch, label]]
        ]
