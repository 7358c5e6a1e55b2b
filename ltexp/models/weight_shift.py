"""Classifiers that rescale or shift the weights of the previous stage's classifier instead of drawing new ones."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config.require import require_choice
from ltexp.errors import ConfigError
from ltexp.models.classifier import Classifier, ContinuedMap, fresh_linear


class LearnableWeightScaling(ContinuedMap):
    """Logits s * (W f + b) with one learned factor a class; W and b are the previous stage's and stay fixed.

    Kang et al., "Decoupling Representation and Classifier", ICLR 2020, Sec. 4. The authors' code scales the finished
    logits, hence the bias too; s starts at 1, and weight decay acts on it. Over a cosine classifier the logits are
    s * cos: the scaled cosines that the loss, with its own temperature and margins, takes for cosines.

    Args:
        bias: whether there is a b.
    """

    def __init__(self, feature_dim: int, num_classes: int, bias: bool = True) -> None:
        super().__init__(feature_dim, num_classes, bias)
        self.scale = nn.Parameter(torch.ones(num_classes))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        return self.scale * super().forward(features)

    @torch.no_grad()
    def linear_form(self) -> tuple[Tensor, Tensor | None]:
        """diag(s) W (C, D), and s * b (C,) or None."""
        return _scaled(self.scale, self.weight, self.bias)


class WeightShift(Classifier):
    """Logits diag(s) ((a W + dW) f + a b + db), with W and b of the previous stage; s, dW and db are learned.

    MiSLAS (Zhong et al., "Improving Calibration for Long-Tailed Recognition", CVPR 2021), Eq. 4. The paper's equation
    has no bias; as in the authors' code it is treated as a column of the weight, so it is scaled and learned too.
    With a = 0, s fixed and a fresh shift this is cRT; with the shift fixed it is learnable weight scaling.

    `shift` and `bias` are what is learned, `weight` and `fixed_bias` what stays. Which of them holds a W and a b is
    what `decay_towards` decides; before any training the logits are the same.

    Args:
        bias: whether there are b and db.
        retain: a, the part of the previous stage's classifier that is kept. Default 1 (paper, Sec. 3.2).
        learn_scale: whether s is learned; else it stays at 1.
        learn_shift: whether dW and db are learned; else they stay as they start.
        shift_init: how dW and db start: "zeros" (the logits go on from s = 1 where the previous stage left them), or
            "fresh" (a new linear classifier; with a = 0, re-training from scratch).
        init: the way a fresh shift is drawn, see `fresh_linear`.
        decay_towards: where weight decay pulls the learned weights. "zero" (default, the authors' code): `shift` holds
            a W + dW and decays to zero. "stage1" (the paper's text, W fixed): `shift` holds dW alone, so the sum decays
            to a W.

    Raises:
        ConfigError: for an unknown choice, or when nothing would be learned.
    """

    weight: Tensor
    fixed_bias: Tensor | None
    shift: Tensor
    bias: Tensor | None
    scale: Tensor

    def __init__(
        self,
        feature_dim: int,
        num_classes: int,
        bias: bool = True,
        retain: float = 1.0,
        learn_scale: bool = True,
        learn_shift: bool = True,
        shift_init: Literal["zeros", "fresh"] = "zeros",
        init: str = "kaiming",
        decay_towards: Literal["zero", "stage1"] = "zero",
    ) -> None:
        super().__init__(feature_dim, num_classes)
        require_choice("shift_init", shift_init, ("zeros", "fresh"))
        require_choice("decay_towards", decay_towards, ("zero", "stage1"))
        if not learn_shift and (retain == 0 or not learn_scale):
            raise ConfigError(
                "this weight_shift classifier has nothing to learn: set learn_shift=true, "
                "or learn_scale=true with retain other than 0"
            )
        self.retain = retain
        self.decay_towards = decay_towards
        shift, shift_bias = fresh_linear(feature_dim, num_classes, bias, init)
        if shift_init == "zeros":
            shift, shift_bias = torch.zeros_like(shift), None if shift_bias is None else torch.zeros_like(shift_bias)
        self.register_buffer("weight", torch.zeros_like(shift))
        self.register_buffer("fixed_bias", None if shift_bias is None else torch.zeros_like(shift_bias))
        self._register("shift", shift, learn_shift)
        self._register("bias", shift_bias, learn_shift)
        self._register("scale", torch.ones(num_classes), learn_scale)

    def _register(self, name: str, value: Tensor | None, learned: bool) -> None:
        if learned and value is not None:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    @property
    def needs_source(self) -> bool:
        """True unless nothing of the previous stage's classifier is kept (`retain` 0)."""
        return self.retain != 0

    def _unscaled(self) -> tuple[Tensor, Tensor | None]:
        weight = self.weight + self.shift
        if self.bias is None or self.fixed_bias is None:
            return weight, None
        return weight, self.fixed_bias + self.bias

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        weight, bias = self._unscaled()
        return self.scale * F.linear(features, weight, bias)

    @torch.no_grad()
    def linear_form(self) -> tuple[Tensor, Tensor | None]:
        """diag(s) (a W + dW) (C, D), and s * (a b + db) (C,) or None."""
        return _scaled(self.scale, *self._unscaled())

    @torch.no_grad()
    def start_from(self, source: Classifier) -> None:
        """Takes a W and a b from a linear `source`, once, before training; see `Classifier.start_from`."""
        weight, bias = self._linear_source(source, bias=self.bias is not None, drop_bias=self.retain == 0)
        into_weight, into_bias = self.weight, self.fixed_bias
        if self.decay_towards == "zero":
            into_weight, into_bias = self.shift, self.bias
        into_weight.add_(weight, alpha=self.retain)
        if into_bias is not None and bias is not None:
            into_bias.add_(bias, alpha=self.retain)


def _scaled(scale: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return scale[:, None] * weight, None if bias is None else scale * bias
