"""Label-aware smoothing: frequent classes are smoothed more than rare ones (MiSLAS, CVPR 2021, Eqs. 1-3 and 7)."""

import math
from typing import Literal

import torch
from torch import Tensor

from ltexp.config.require import require, require_choice
from ltexp.losses.base import Loss
from ltexp.losses.label_smoothing import SPREADS, Spread, smoothed_cross_entropy
from ltexp.outputs import ModelOutput

Form = Literal["concave", "linear", "convex", "power"]
FORMS: tuple[Form, ...] = ("concave", "linear", "convex", "power")


def smoothing_factors(class_counts: Tensor, head: float, tail: float, form: Form, power: float = 1.0) -> Tensor:
    """(C,) float32 smoothing factors ε_c, from `tail` at the smallest class to `head` at the largest.

    With equal counts every class is a largest class and gets `head`; the formulas would divide 0 by 0.

    Args:
        class_counts: (C,) int64.
        head: ε_1.
        tail: ε_K.
        form: how ε grows with n between the two: "concave", "linear", "convex" (Eq. 3) or "power" (Eq. 7).
        power: the exponent p of form "power".
    """
    n = class_counts.double()
    span = n.max() - n.min()
    x = (n - n.min()) / span if span > 0 else torch.ones_like(n)
    if form == "concave":
        rise = torch.sin(x * (math.pi / 2))
    elif form == "linear":
        rise = x
    elif form == "convex":  # the paper writes ε_1 + (ε_1 - ε_K) sin(3π/2 + πx/2)
        rise = 1 + torch.sin(1.5 * math.pi + x * (math.pi / 2))
    else:
        rise = x.pow(power)
    return (tail + (head - tail) * rise).float()


class LabelAwareSmoothing(Loss):
    """Cross-entropy against targets smoothed by ε_y, a factor that grows with the class size N_y.

    The paper's text asks for a factor "negatively correlated" with the class size; its equations, its settings and the
    authors' code all make it grow, and so does this.

    Args:
        class_counts: (C,) int64.
        head_smoothing: ε_1, of the largest class. Default 0.4 (Table 5, CIFAR-100-LT).
        tail_smoothing: ε_K, of the smallest class. Default 0.1 (Table 5, CIFAR-100-LT).
        form: "concave" (default, the paper's choice), "linear", "convex" (Eq. 3) or "power" (Eq. 7).
        power: the exponent p of Eq. 7; needed with form "power" and refused with any other.
        spread: "others" (default, Eq. 1: ε / (K - 1) off the target) or "all" (the authors' code: ε / K everywhere).
        scale: see `Loss`.

    Raises:
        ConfigError: not 0 <= ε_K <= ε_1 < 1, an unknown form or spread, or a power missing, unused or not positive.
    """

    factors: Tensor

    def __init__(
        self,
        class_counts: Tensor,
        head_smoothing: float = 0.4,
        tail_smoothing: float = 0.1,
        form: Form = "concave",
        power: float | None = None,
        spread: Spread = "others",
        scale: float = 1.0,
    ) -> None:
        super().__init__(class_counts, scale)
        require(0 <= head_smoothing < 1, "head_smoothing", head_smoothing, "a number of 0 or more and below 1")
        bound = f"a number from 0 to head_smoothing={head_smoothing}"
        require(0 <= tail_smoothing <= head_smoothing, "tail_smoothing", tail_smoothing, bound)
        require_choice("form", form, FORMS)
        require_choice("spread", spread, SPREADS)
        if form == "power":
            require(power is not None and power > 0, "power", power, "a number above 0, the exponent of form=power")
        else:
            require(power is None, "power", power, f"null with form={form}; it is the exponent of form=power")
        self.spread = spread
        factors = smoothing_factors(class_counts, head_smoothing, tail_smoothing, form, power or 1.0)
        self.register_buffer("factors", factors, persistent=False)

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) losses."""
        return smoothed_cross_entropy(self.logits(output), target, self.factors[target], self.spread)
