"""Temperature scaling: one number that calibrates a finished model (Guo et al., ICML 2017)."""

from typing import Any

import numpy as np

from ltexp.errors import DataError
from ltexp.evaluation.arrays import to_numpy
from ltexp.evaluation.calibration import check_predictions

LOWEST, HIGHEST = 0.01, 100.0
STEPS = 60  # of bisection: the temperature is then exact to rounding


def fit_temperature(logits: Any, labels: Any) -> float:
    """The temperature T whose softmax(logits / T) gives held-out samples the lowest mean negative log-likelihood.

    It changes no prediction. The likelihood is convex in 1 / T, so its slope, the mean over samples of the expected
    logit less that of the label, has one zero, which bisection finds.

    Args:
        logits: (N, C), of samples that were not trained on.
        labels: (N,).

    Returns:
        T, from 0.01 to 100: at an end where the likelihood rises up to it, as when every sample is right.

    Raises:
        DataError: for shapes that do not fit, labels out of range, or logits that are not numbers.
    """
    values, targets = to_numpy(logits).astype(np.float64), to_numpy(labels)
    check_predictions(values, targets, "logits")
    if not np.isfinite(values).all():
        raise DataError("some logits are not finite: has training diverged?")
    values -= values.max(axis=1, keepdims=True)
    own = values[np.arange(len(values)), targets].mean()

    def slope(temperature: float) -> float:
        weights = np.exp(values / temperature)
        return float(((weights * values).sum(axis=1) / weights.sum(axis=1)).mean() - own)

    low, high = LOWEST, HIGHEST
    for _ in range(STEPS):
        middle = float(np.sqrt(low * high))
        # a positive slope in 1 / T: the samples are more certain than right, and T has to rise
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return float(np.sqrt(low * high))
