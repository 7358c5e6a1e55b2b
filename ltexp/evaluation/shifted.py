"""Accuracy on test sets with another class distribution, from predictions on the test set that there is.

A long-tailed test set with class shares q has the expected accuracy Σ_c q_c recall_c, so nothing is drawn anew.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ltexp.config.require import is_number
from ltexp.errors import SettingError
from ltexp.evaluation.arrays import Floats, Ints, to_numpy
from ltexp.evaluation.calibration import check_predictions
from ltexp.evaluation.further import log_softmax

PRIORS = ("unknown", "known", "estimated")  # what the model is told of the test set's class shares
FLOOR = 1e-9  # added to a share before its logarithm (LADE's code)
ITERATIONS, CHANGE = 100, 1e-6  # EM ends after so many steps, or when no share moves by more


@dataclass(frozen=True)
class Shift:
    """A test distribution over the classes.

    Attributes:
        direction: `forward` (a class that is frequent in training is frequent in the test), `backward` (it is rare) or
            `uniform`.
        ratio: the largest share over the smallest; 1 for `uniform`.
    """

    direction: str
    ratio: float = 1.0

    @classmethod
    def from_text(cls, text: str, key: str = "shift") -> "Shift":
        """The shift that a user names, such as `forward50` or `uniform`.

        Raises:
            SettingError: for anything else, and for a ratio below 1.
        """
        found = re.fullmatch(r"(forward|backward)(\d+(?:\.\d+)?)", text)
        if text != "uniform" and (found is None or not is_number(float(found[2]), 1)):
            expected = "uniform, or forward or backward with a ratio of 1 or more, such as forward50"
            raise SettingError(key, text, expected)
        return cls("uniform") if found is None else cls(found[1], float(found[2]))

    @property
    def name(self) -> str:
        """As a user names it."""
        return self.direction if self.direction == "uniform" else f"{self.direction}{self.ratio:g}"

    @property
    def short(self) -> str:
        """As a column's heading, such as F50 or U."""
        return "U" if self.direction == "uniform" else f"{self.direction[0].upper()}{self.ratio:g}"

    def counts(self, class_counts: Any, test_counts: Any) -> Floats:
        """(C,) the test samples of each class.

        They fall exponentially from m to m / ratio over the classes in order of their training samples, ties by label,
        with m those of the smallest class that the test set has. They are cut to whole samples, as the published lists
        (LADE, SADE), unless the rarest would then be without any. Classes without test samples are left out.

        Args:
            class_counts: (C,), training samples.
            test_counts: (C,), test samples that there are.
        """
        trained, there = to_numpy(class_counts), to_numpy(test_counts) > 0
        found, labels = np.zeros(len(trained)), np.flatnonzero(there)
        if not len(labels):
            return found
        order = labels[np.argsort(-trained[labels], kind="stable")]
        order = order[::-1] if self.direction == "backward" else order
        most = int(to_numpy(test_counts)[labels].min())
        falling = most * (1 / self.ratio) ** (np.arange(len(order)) / max(len(order) - 1, 1))
        # a whole number that rounding has left below itself, such as 49 (1 / 49), stays one
        found[order] = np.floor(falling + 1e-9) if most >= self.ratio else falling
        return found

    def shares(self, class_counts: Any, test_counts: Any) -> Floats:
        """(C,) q, the share of each class in the test samples; see `counts`."""
        counts = self.counts(class_counts, test_counts)
        shares: Floats = counts / max(counts.sum(), np.finfo(np.float64).tiny)
        return shares


RATIOS = (50, 25, 10, 5, 2)
SHIFTS = (
    *(Shift("forward", ratio) for ratio in RATIOS),
    Shift("uniform"),
    *(Shift("backward", ratio) for ratio in reversed(RATIOS)),
)


def shifted_accuracy(recalls: Sequence[float | None], shares: Floats) -> float:
    """Σ_c q_c recall_c in the unit of the recalls; None for a class without test samples, whose share is 0."""
    return float(sum(q * recall for q, recall in zip(shares.tolist(), recalls, strict=True) if recall is not None))


@dataclass(frozen=True, eq=False)
class Predicted:
    """A model's scores of the test samples, to be read under other class shares.

    Args:
        logits: (N, C), times their scale.
        labels: (N,).
        learned_prior: (C,) b, the class shares that a softmax over the logits is for: those of training after
            cross-entropy, equal ones after balanced softmax.

    Raises:
        DataError: for shapes that do not fit, labels out of range, or logits that are not numbers.
    """

    logits: Any
    labels: Ints
    learned_prior: Floats

    def __post_init__(self) -> None:
        check_predictions(self.logits, self.labels, "logits")

    @property
    def test_counts(self) -> Ints:
        """(C,) the test samples of each class."""
        return np.bincount(self.labels, minlength=self.logits.shape[1]).astype(np.int64)

    def recalls(self, prior: Floats | None = None) -> list[float | None]:
        """The accuracy on each class in percent, None for one without samples, of argmax z - log b + log q.

        Args:
            prior: (C,) q; None: of argmax z.
        """
        offsets = np.zeros(self.logits.shape[1]) if prior is None else self._offsets(prior)
        hits = np.zeros(len(offsets))
        for start, scores in log_softmax(self.logits):
            labels = self.labels[start : start + len(scores)]
            hits += np.bincount(labels[(scores + offsets).argmax(axis=1) == labels], minlength=len(hits))
        return [float(100 * hit / n) if n else None for hit, n in zip(hits, self.test_counts, strict=True)]

    def _offsets(self, prior: Floats) -> Floats:
        added: Floats = np.log(prior + FLOOR) - np.log(self.learned_prior + FLOOR)
        added -= added.max()
        return added

    def estimated(self, shares: Sequence[Floats]) -> list[Floats]:
        """The class shares (C,) that EM finds for each of some test distributions `shares`, without the labels.

        Saerens et al. (Neural Computation, 2002): q_c <- mean over the test samples of p_c q_c / b_c, normalised over
        the classes, from q = b on; p is the softmax. The labels only say how often a sample occurs in each test set.
        """
        counts = np.maximum(self.test_counts, 1)
        probabilities = np.empty(self.logits.shape, dtype=np.float32)
        for start, values in log_softmax(self.logits):
            probabilities[start : start + len(values)] = np.exp(values)
        weights = np.stack([(q / counts)[self.labels] for q in shares], axis=1).astype(np.float32)
        base = (self.learned_prior + FLOOR)[:, None]
        found: Floats = np.repeat(base, len(shares), axis=1)
        for _ in range(ITERATIONS):
            before, ratios = found, (found / base).astype(np.float32)
            of_samples = np.maximum(probabilities @ ratios, np.finfo(np.float32).tiny)
            found = np.multiply(ratios, probabilities.T @ (weights / of_samples), dtype=np.float64)
            found = found / np.maximum(found.sum(axis=0), np.finfo(np.float64).tiny)
            if np.abs(found - before).max() < CHANGE:
                break
        return list(found.T)


def shifted_recalls(
    predicted: Predicted, class_counts: Any, shifts: Sequence[Shift] = SHIFTS
) -> dict[str, list[list[float | None]]]:
    """For each of `PRIORS` the accuracies by class, in percent, on each of `shifts`.

    Args:
        predicted: the model's scores of the test samples.
        class_counts: (C,), training samples, which order the classes.
        shifts: the test distributions.
    """
    shares = [shift.shares(class_counts, predicted.test_counts) for shift in shifts]
    raw = predicted.recalls()
    return {
        "unknown": [raw for _ in shifts],
        "known": [predicted.recalls(q) for q in shares],
        "estimated": [predicted.recalls(q) for q in predicted.estimated(shares)],
    }
