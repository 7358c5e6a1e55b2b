"""Cross-entropy and its re-weighted form."""

import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require
from ltexp.losses.base import Loss, normalized_weights
from ltexp.outputs import ModelOutput


class CrossEntropy(Loss):
    """Softmax cross-entropy: -log p_y, averaged over the batch."""

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) losses."""
        return F.cross_entropy(self.logits(output), target, reduction="none")


def inverse_frequency_weights(class_counts: Tensor, power: float = 1.0) -> Tensor:
    """(C,) float32 weights proportional to 1 / n_c^power that sum to C."""
    return normalized_weights(class_counts.double().pow(-power))


class WeightedCrossEntropy(CrossEntropy):
    """Cross-entropy weighted by inverse class frequency: sum(w_y * -log p_y) / sum(w_y) over the batch.

    The weights sum to C. Since the mean divides by the weights of the batch's own targets, as the field's code does,
    their common scale cancels and a batch full of rare classes takes no larger step.

    Args:
        class_counts: (C,) int64.
        power: w_c is proportional to 1 / n_c^power. 1: inverse frequency (default); 0.5: square root; 0: cross-entropy;
            1.2: the re-weighting of DisAlign's second stage on ImageNet-LT (Zhang et al., CVPR 2021).
        scale: see `Loss`.

    Raises:
        ConfigError: a negative power.
    """

    def __init__(self, class_counts: Tensor, power: float = 1.0, scale: float = 1.0) -> None:
        super().__init__(class_counts, scale)
        require(power >= 0, "power", power, "a number of 0 or more")
        self.class_weights = inverse_frequency_weights(class_counts, power)
