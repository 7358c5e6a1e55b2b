"""How well a score tells samples of the classes that were trained from samples of none of them."""

from typing import Any

import numpy as np

from ltexp.errors import DataError
from ltexp.evaluation.arrays import Floats, to_numpy
from ltexp.evaluation.further import CHUNK

SCORES = ("max_softmax", "energy", "max_logit")
ACCEPTED = 0.95  # of the in-distribution samples, at the threshold of FPR95


def confidence_scores(logits: Any) -> dict[str, Floats]:
    """By the names of `SCORES` the score (N,) of each sample, larger for one that looks more like the training classes.

    `max_softmax` is the largest probability (Hendrycks and Gimpel, ICLR 2017), `energy` is log Σ_c exp z_c, minus the
    energy at temperature 1 (Liu et al., NeurIPS 2020), and `max_logit` the largest logit (Hendrycks et al., ICML 2022).

    Args:
        logits: (N, C), times their scale.

    Raises:
        DataError: for logits that are not numbers.
    """
    values = to_numpy(logits)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise DataError("scores need finite logits (N, C), N at least 1: has training diverged?")
    largest = values.max(axis=1).astype(np.float64)
    parts = [values[start : start + CHUNK].astype(np.float64) for start in range(0, len(values), CHUNK)]
    rest = np.concatenate([np.log(np.exp(part - part.max(axis=1, keepdims=True)).sum(axis=1)) for part in parts])
    return {"max_softmax": np.exp(-rest), "energy": largest + rest, "max_logit": largest}


def detection(inside: Any, outside: Any) -> dict[str, float]:
    """Measures in percent of scores (N,) of in-distribution samples, the positive class, against (M,) of others.

    `auroc` is the probability that a positive has the larger score, half of it for equal ones; `aupr` the average
    precision, Σ (R_k - R_{k-1}) P_k over the thresholds; `fpr95` the share of the others that pass the highest
    threshold which at least 95 % of the positives pass.

    Raises:
        DataError: without samples on either side.
    """
    positive, negative = (np.asarray(to_numpy(scores), dtype=np.float64) for scores in (inside, outside))
    if not positive.size or not negative.size:
        raise DataError("nothing to compare: one of the two sets has no samples")
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]
    hits = len(positive) - np.searchsorted(np.sort(positive), thresholds, side="left")
    false = len(negative) - np.searchsorted(np.sort(negative), thresholds, side="left")
    recall, alarms = hits / len(positive), false / len(negative)
    steps = np.diff(recall, prepend=0.0)
    below = recall - steps / 2  # trapezia: the mean recall between two thresholds
    return {
        "auroc": float(100 * (below * np.diff(alarms, prepend=0.0)).sum()),
        "aupr": float(100 * (steps * hits / (hits + false)).sum()),
        "fpr95": float(100 * alarms[np.searchsorted(recall, ACCEPTED - 1e-12)]),
    }
