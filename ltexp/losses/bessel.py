"""The logarithm of the modified Bessel function of the first kind, for orders and arguments of any size."""

import math
from typing import Any, cast

import torch
from torch import Tensor

# From this order on the expansion below is right to 1e-9; lower orders are reached by the recurrence downwards.
EXPANDED_FROM = 63.0


def log_bessel_over_power(order: float, argument: Tensor) -> Tensor:
    """L(k) = log I_p(k) - p log k, of the order p >= 0, elementwise; the gradient is I_{p+1}(k) / I_p(k).

    By the uniform expansion of Debye with three terms (Abramowitz and Stegun, 9.7.7) for large orders, and from there
    by the recurrence I_{p-1} = I_{p+1} + (2 p / k) I_p, which is stable downwards.

    Args:
        order: p.
        argument: k > 0, float64.
    """
    return cast(Tensor, _LogBessel.apply(argument, order))


class _LogBessel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, argument: Tensor, order: float) -> Tensor:
        steps = max(0, math.ceil(EXPANDED_FROM - order))
        top = order + steps
        value = _expanded(top, argument)
        ratio = (_expanded(top + 1, argument) - value).exp()  # I_{p+1} / I_p
        for number in range(steps):
            over = ratio + 2 * (top - number) / argument  # I_{p-1} / I_p
            value, ratio = value + over.log(), 1 / over
        ctx.save_for_backward(ratio)
        return value - order * argument.log()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (ratio,) = ctx.saved_tensors
        return gradients[0] * ratio, None


def _expanded(order: float, argument: Tensor) -> Tensor:
    """log I_p(k) by Debye's uniform expansion."""
    root = torch.hypot(argument / order, torch.ones_like(argument))  # sqrt(1 + (k / p)²)
    t, t2 = 1 / root, 1 / root**2
    first = t * (3 - 5 * t2) / 24
    second = t2 * (81 - 462 * t2 + 385 * t2**2) / 1152
    third = t * t2 * (30375 - 369603 * t2 + 765765 * t2**2 - 425425 * t2**3) / 414720
    exponent = order * (root + (argument / order / (1 + root)).log())
    series = torch.log1p(first / order + second / order**2 + third / order**3)
    return exponent - 0.5 * math.log(2 * math.pi * order) - 0.5 * root.log() + series
