"""ASAM (Kwon et al., ICML 2021): a sharpness-aware step whose look-ahead is as long as the weights are large."""

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from ltexp.config.require import require
from ltexp.training.steps import SharpnessAware, SteppedStage


class AdaptiveSharpnessAware(SharpnessAware):
    """The gradient at w + ρ T² g / ||T g|| moves w, with T = |w| + η element by element.

    As in the authors' code T is 1 for what is no `weight`.

    Args:
        rho: ρ. Default 0.5 (the paper, CIFAR-10).
        eta: η. Default 0.01 (the paper).

    Raises:
        ConfigError: a rho that is not positive, or an eta below 0.
    """

    def __init__(self, rho: float = 0.5, eta: float = 0.01) -> None:
        super().__init__(rho)
        require(eta >= 0, "eta", eta, "a number of 0 or more")
        self.eta = eta

    @torch.no_grad()
    def perturb(self, stage: SteppedStage, optimizer: LightningOptimizer) -> list[tuple[nn.Parameter, Tensor]]:
        """Moves the parameters that have a gradient; each with a copy of what it was."""
        learning = [(name, p, p.grad) for name, p in stage.model.named_parameters() if p.grad is not None]
        scales = [p.abs() + self.eta if name.endswith("weight") else torch.ones_like(p) for name, p, _ in learning]
        scaled = [scale * gradient for scale, (_, _, gradient) in zip(scales, learning, strict=True)]
        length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in scaled]))
        before = [(parameter, parameter.detach().clone()) for _, parameter, _ in learning]
        for (parameter, _), scale, part in zip(before, scales, scaled, strict=True):
            parameter.add_(self.rho / (length + 1e-12) * scale * part)
        return before
