"""Weight balancing's second-stage classifier: rows that may not grow beyond a radius (Alshammari et al., CVPR 2022)."""

import torch
from torch import Tensor, nn

from ltexp.config.require import is_number, require
from ltexp.models.classifier import Classifier, Linear


class MaxNorm(Linear):
    """A linear classifier that continues another; after each step rows longer than the radius are scaled to it.

    The radius is min + threshold (max - min) of the row norms that it starts from, one for all classes; the bias is
    free. The paper projects after each step, its code after each epoch.

    Args:
        feature_dim: D.
        num_classes: C.
        bias: see `Linear`.
        threshold: where the radius lies between the shortest and the longest row. Default 0.1 (the authors).

    Raises:
        ConfigError: a threshold out of [0, 1].
    """

    radius: Tensor

    def __init__(self, feature_dim: int, num_classes: int, bias: bool = True, threshold: float = 0.1) -> None:
        super().__init__(feature_dim, num_classes, bias)
        require(is_number(threshold, 0, 1), "threshold", threshold, "a number from 0 to 1")
        self.threshold = threshold
        self.register_buffer("radius", torch.full((), float("inf")))

    @property
    def needs_source(self) -> bool:
        """True: the radius is the previous stage's."""
        return True

    @torch.no_grad()
    def start_from(self, source: Classifier) -> None:
        """Continues a linear classifier, and takes the radius from its rows."""
        super().start_from(source)
        norms = torch.linalg.vector_norm(self.weight, dim=1)
        self.radius.copy_(norms.min() + self.threshold * (norms.max() - norms.min()))

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Scales the rows that are longer than the radius."""
        norms = torch.linalg.vector_norm(self.weight, dim=1, keepdim=True)
        self.weight.mul_((self.radius / norms.clamp_min(1e-12)).clamp_max(1.0))
