"""Focal loss (Lin et al., ICCV 2017): samples that are already recognised count less. Softmax and sigmoid forms."""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require, require_choice
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.outputs import ModelOutput

Form = Literal["softmax", "sigmoid"]
FORMS = ("softmax", "sigmoid")
Probability = Literal["plain", "weighted"]
PROBABILITIES = ("plain", "weighted")


def focal_modulated(cross_entropy: Tensor, gamma: float) -> Tensor:
    """(1 - exp(-l))^γ l of each l >= 0 in `cross_entropy`, of any shape; the gradient is finite at l = 0 for any γ."""
    if gamma == 0:
        return cross_entropy
    missing = -torch.expm1(-cross_entropy)
    return missing.clamp_min(torch.finfo(missing.dtype).tiny).pow(gamma) * cross_entropy


class _SigmoidFocal(torch.autograd.Function):
    """The value of `sigmoid_focal`, whose gradient is as good as known once the value is.

    Left to autograd, every power and product keeps a tensor of (B, C), and new memory is what costs most with many
    classes. For the same reason this works in place.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, gamma: float, bias: float) -> Tensor:
        # With s = -z for the target and z for the others, 1 - p_t = σ(s) and -log p_t = softplus(s).
        rows = target[:, None]
        wrong = logits + bias
        wrong.scatter_(1, rows, -wrong.gather(1, rows))
        softplus = F.softplus(wrong)
        if gamma == 0:
            losses, slope = softplus.sum(dim=1), wrong.sigmoid_()
        else:
            # σ(s)^γ = exp(γ (s - softplus(s))), which stays a number where σ(s) underflows
            power = None if gamma == 1 else (wrong - softplus).mul_(gamma).exp_()
            missing = wrong.sigmoid_()
            power = missing if power is None else power
            with torch.autocast(logits.device.type, enabled=False):  # it would make this product half as precise
                losses = torch.linalg.vecdot(softplus, power)
            # d/ds σ^γ softplus = σ^γ (γ softplus (1 - σ) + σ)
            slope = softplus.mul_(gamma)
            slope.addcmul_(slope, missing, value=-1).add_(missing).mul_(power)
        slope.scatter_(1, rows, -slope.gather(1, rows))
        ctx.save_for_backward(slope)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * gradients[0][:, None], None, None, None


def sigmoid_focal(logits: Tensor, target: Tensor, gamma: float, bias: float = 0.0) -> Tensor:
    """(B,) sums over classes of -(1 - p_t)^γ log p_t; p_t is σ(z) for the target class and 1 - σ(z) for the others.

    Args:
        logits: (B, C) float32.
        target: (B,) int64.
        gamma: γ; 0: binary cross-entropy.
        bias: added to every logit.
    """
    losses: Tensor = _SigmoidFocal.apply(logits, target, gamma, bias)
    return losses


class Focal(Loss):
    """(1 - p_y)^γ times cross-entropy, averaged over the batch; a weighted one is divided by the batch size too.

    Args:
        class_counts: (C,) int64.
        gamma: γ >= 0. Default 1 (LDAM-DRW's code); {0.5, 1, 2} in Cui et al. (CVPR 2019), 2 in BagofTricks; 0:
            cross-entropy.
        form: "softmax" (default, the code of LDAM-DRW and its successors) or "sigmoid" (Lin et al. and Cui et al.: a
            binary focal loss of every class, summed).
        probability: what p is when there are class weights w. "plain" (default): the probability of the target.
            "weighted": exp(-w * cross-entropy), what LDAM-DRW's code makes of it. Softmax form only.
        prior_bias: sigmoid form: add -log(C - 1) to all logits, so that every class starts at probability 1 / C; it
            takes the place of the classifier's bias that starts there (Cui et al.). Default true.
        scale: see `Loss`.

    Raises:
        ConfigError: a negative γ, an unknown form or probability, or "weighted" with the sigmoid form.
    """

    def __init__(
        self,
        class_counts: Tensor,
        gamma: float = 1.0,
        form: Form = "softmax",
        probability: Probability = "plain",
        prior_bias: bool = True,
        scale: float = 1.0,
    ) -> None:
        super().__init__(class_counts, scale)
        require(gamma >= 0, "gamma", gamma, "a number of 0 or more")
        require_choice("form", form, FORMS)
        require_choice("probability", probability, PROBABILITIES)
        fits = form == "softmax" or probability == "plain"
        require(fits, "probability", probability, "plain, since form=sigmoid has no other")
        self.gamma, self.form, self.probability = gamma, form, probability
        self.bias = -math.log(self.num_classes - 1) if prior_bias else 0.0

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) losses."""
        logits = self.logits(output)
        if self.form == "sigmoid":
            return sigmoid_focal(logits, target, self.gamma, self.bias)
        return focal_modulated(F.cross_entropy(logits, target, reduction="none"), self.gamma)

    def forward(self, output: ModelOutput, target: Tensor, context: BatchContext | None = None) -> Tensor:
        """The mean over the batch of weight times loss: the weights do not divide it."""
        context = self.known(context)
        weights = self.weights_by_class(context)
        if weights is None:
            losses = self.per_sample(output, target)
        elif self.probability == "weighted":
            plain = F.cross_entropy(self.logits(output), target, reduction="none")
            losses = focal_modulated(weights[target] * plain, self.gamma)
        else:
            losses = weights[target] * self.per_sample(output, target)
        return context.weighted(losses).mean()
