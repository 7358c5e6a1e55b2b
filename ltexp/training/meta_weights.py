"""Steps whose outer variables weight the samples: by a gradient step from class weights, or by a small network."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ltexp.config import StageConfig, TrainerConfig
from ltexp.config.require import require
from ltexp.distributed import gather_batch, own_rows
from ltexp.losses.reweighting import effective_number_weights
from ltexp.training.bilevel import Descent, LookAhead, MetaStep, refuse_reweighting
from ltexp.training.steps import Closure


class MetaSampleWeights(MetaStep):
    """Weights w_y + ε of samples, ε one gradient step from 0 (Jamal et al., CVPR 2020).

    w is the effective-number weight of the class. The virtual step goes down the sum of (w_y + ε) l; then
    ε = -outer_lr d(meta)/dε, and the real step's objective is the mean of (w_y + ε) l over the batch, not divided by
    the weights. Until `start` there are no weights.

    Args:
        class_counts: (C,) int64.
        stream, inner_lr: see `MetaStep`.
        start: default 0.8, epoch 160 of 200 (the authors' code).
        outer_lr: default 0.01 (the authors' code).
        beta: β of w_c ~ (1 - β) / (1 - β^n_c), which sum to C. Default 0.9999 (the same). 0: all 1.

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(
        self,
        class_counts: Tensor,
        stream: str = "meta",
        start: float = 0.8,
        inner_lr: float | None = None,
        outer_lr: float = 0.01,
        beta: float = 0.9999,
    ) -> None:
        super().__init__(stream, start, inner_lr)
        require(outer_lr >= 0, "outer_lr", outer_lr, "a number of 0 or more")
        require(0 <= beta < 1, "beta", beta, "a number of 0 or more and below 1")
        self.outer_lr = outer_lr
        self.of_classes = effective_number_weights(class_counts, beta)

    def check(self, name: str, stage: StageConfig, trainer: TrainerConfig) -> None:
        """Refuses a second weighting by class as well."""
        super().check(name, stage, trainer)
        refuse_reweighting(name, stage)

    def look_and_step(self, ahead: LookAhead, closure: Closure) -> Tensor:
        """See `MetaStep`."""
        return closure(sample_weights=self.weights(ahead))

    def weights(self, ahead: LookAhead) -> Tensor:
        """(n,) w_y + ε of this process's rows."""
        batch = ahead.batch
        start = self.of_classes.to(batch.labels.device)[batch.labels]
        epsilon = torch.zeros_like(start, requires_grad=True)
        inner = ahead.objective(ahead.output(), (start + epsilon) * batch.size)
        return start - self.outer_lr * ahead.slope(inner, epsilon)


class MetaWeightNet(MetaStep, nn.Module):
    """Weights v(l) of samples by a network of their loss (Meta-Weight-Net, Shu et al., NeurIPS 2019).

    v is sigmoid(A2 relu(A1 l + a1) + a2) of the sample's cross-entropy. The weights of a batch are v over their sum,
    and the objective, of the virtual step as of the real one, is the weighted sum of losses. v takes one step of SGD
    against the gradient of the stream's cross-entropy before the real step is made.

    Args:
        stream, start, inner_lr: see `MetaStep`. Default start 0 (the authors' code).
        width: units of the hidden layer. Default 100 (the authors' code).
        outer_lr, momentum, weight_decay: of v's SGD, with Nesterov's momentum. Default 1e-5, 0.9, 5e-4 (the same).

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(
        self,
        stream: str = "meta",
        start: float = 0.0,
        inner_lr: float | None = None,
        width: int = 100,
        outer_lr: float = 1e-5,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        super().__init__(stream, start, inner_lr)
        require(width >= 1, "width", width, "a whole number of 1 or more")
        for key, value in {"outer_lr": outer_lr, "weight_decay": weight_decay}.items():
            require(value >= 0, key, value, "a number of 0 or more")
        require(0 <= momentum < 1, "momentum", momentum, "a number of 0 or more and below 1")
        # The stage's optimizer has no part in it, and neither has the summing of gradients over processes.
        self.net = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, 1), nn.Sigmoid()).requires_grad_(
            False
        )
        self.descent = Descent(dict(self.net.named_parameters()), outer_lr, momentum, weight_decay)

    def look_and_step(self, ahead: LookAhead, closure: Closure) -> Tensor:
        """See `MetaStep`."""
        batch, output = ahead.batch, ahead.output()
        # the real step's losses are these: weights and batch are the same
        own = F.cross_entropy(output.logits.detach() * output.logit_scale, batch.labels, reduction="none")
        losses = gather_batch(own, batch.size)
        mine = own_rows(batch.size, losses.device)
        weights = self.weights(losses)[mine].requires_grad_()
        slope = ahead.slope(ahead.objective(output, weights * batch.size), weights)
        self.learn(losses, gather_batch(slope, batch.size))
        return closure(sample_weights=self.weights(losses)[mine] * batch.size)

    def weights(self, losses: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """(B,) weights, summing to 1, of the losses (B,) of a whole batch; by other `parameters` of the network."""
        given: dict[str, Tensor] = dict(parameters or self.net.named_parameters())
        with torch.autocast(losses.device.type, enabled=False):
            values = cast(Tensor, functional_call(self.net, given, (losses[:, None],))).squeeze(1)
        total = values.sum()
        return values / torch.where(total == 0, torch.ones_like(total), total)

    def learn(self, losses: Tensor, slope: Tensor) -> None:
        """One step of v, given how the stream's cross-entropy changes with each sample's weight (B,)."""
        own = dict(self.net.named_parameters())
        moving = {name: parameter.detach().clone().requires_grad_() for name, parameter in own.items()}
        gradients = torch.autograd.grad((self.weights(losses, moving) * slope).sum(), list(moving.values()))
        self.descent.step(own, dict(zip(moving, gradients, strict=True)))
