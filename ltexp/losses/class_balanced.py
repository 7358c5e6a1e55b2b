"""Class-balanced losses (Cui et al., CVPR 2019): weighted by one over the effective number of samples."""

from typing import Literal

from torch import Tensor

from ltexp.config.require import require, require_choice
from ltexp.losses.context import BatchContext
from ltexp.losses.focal import Focal, Form, Probability
from ltexp.losses.reweighting import effective_number_weights
from ltexp.outputs import ModelOutput

Division = Literal["weights", "batch"]
DIVISIONS = ("weights", "batch")


class ClassBalancedFocal(Focal):
    """Focal loss weighted by (1 - β) / (1 - β^n_y), scaled to sum to C, and divided by the batch size.

    Args:
        class_counts: (C,) int64.
        beta: β in [0, 1). Default 0.9999; the paper chooses from {0.9, 0.99, 0.999, 0.9999}. 0: unweighted.
        gamma: see `Focal`. Default 1; the paper chooses from {0.5, 1, 2}.
        form: see `Focal`; the paper's is "sigmoid".
        probability: see `Focal`.
        prior_bias: see `Focal`.
        scale: see `Loss`.

    Raises:
        ConfigError: β out of range, and as `Focal`.
    """

    def __init__(
        self,
        class_counts: Tensor,
        beta: float = 0.9999,
        gamma: float = 1.0,
        form: Form = "softmax",
        probability: Probability = "plain",
        prior_bias: bool = True,
        scale: float = 1.0,
    ) -> None:
        super().__init__(class_counts, gamma, form, probability, prior_bias, scale)
        require(0 <= beta < 1, "beta", beta, "a number of 0 or more and below 1")
        self.class_weights = effective_number_weights(class_counts, beta)


class ClassBalanced(ClassBalancedFocal):
    """Cross-entropy, or in its sigmoid form the sum of C binary ones, weighted by (1 - β) / (1 - β^n_y).

    Args:
        class_counts: (C,) int64.
        beta: β in [0, 1). Default 0.9999; the paper chooses from {0.9, 0.99, 0.999, 0.9999}. 0: cross-entropy.
        form: "softmax" (default) or "sigmoid".
        divide_by: what the sum of w * l over a batch is divided by in the softmax form: "weights" (default, the code of
            LDAM-DRW and its successors: the weights of the batch's targets) or "batch" (the authors' code: its size).
            The sigmoid form is divided by the batch size everywhere.
        prior_bias: see `Focal`.
        scale: see `Loss`.

    Raises:
        ConfigError: β out of range, an unknown form or division.
    """

    def __init__(
        self,
        class_counts: Tensor,
        beta: float = 0.9999,
        form: Form = "softmax",
        divide_by: Division = "weights",
        prior_bias: bool = True,
        scale: float = 1.0,
    ) -> None:
        super().__init__(class_counts, beta, gamma=0.0, form=form, prior_bias=prior_bias, scale=scale)
        require_choice("divide_by", divide_by, DIVISIONS)
        self.divide_by = "batch" if form == "sigmoid" else divide_by

    def forward(self, output: ModelOutput, target: Tensor, context: BatchContext | None = None) -> Tensor:
        """The weighted mean of the batch."""
        context = self.known(context)
        if self.divide_by == "batch":
            return super().forward(output, target, context)
        return self.reduce(self.per_sample(output, target), target, context)
