"""Steps that look ahead: what a virtual step of SGD does to a held-out batch changes how the real one is made.

An outer variable (weights of samples, a network that weights them, a covariance of each class) enters the training
objective. The virtual step W' = W - η ∇(objective) is made with it, the plain cross-entropy of a batch of the stream
`meta` is taken at W', and its gradient with respect to the outer variable says how that is to change. Then the real
step is made. One code base stands behind Jamal et al. (CVPR 2020), Meta-Weight-Net and MetaSAug; so does this one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from hydra.utils import get_class
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ltexp.config import StageConfig, TrainerConfig
from ltexp.config.build import build
from ltexp.config.require import require
from ltexp.data.loader import Batch, stream_seed
from ltexp.distributed import sum_over_ranks, world_size
from ltexp.epochs import A_POINT, has_started, is_point
from ltexp.errors import ConfigError
from ltexp.models.model import without_autocast
from ltexp.outputs import ModelOutput, in_float32
from ltexp.training.mixing import blends
from ltexp.training.steps import Closure, Step, SteppedStage, statistics_at_rest


class MetaStep(Step):
    """Base of the steps that look ahead: until `start` a standard step, then `look_and_step`.

    Three forward passes, and a backward pass through the first one's backward pass. In the virtual step batch norms
    normalise by the batch, and their running statistics stay.

    Args:
        stream: of the stage, whose batches the virtual step is judged by.
        start: when it begins: a fraction of the stage (below 1) or a whole epoch counted from 0.
        inner_lr: η. None (default, the authors' codes): the optimizer's learning rate of the epoch. 0: the outer
            variables do not change.

    Attributes:
        as_optimizer: whether the virtual step has the momentum and the weight decay of the stage's SGD as well.

    Raises:
        ConfigError: a setting out of range.
    """

    as_optimizer: ClassVar[bool] = False

    def __init__(self, stream: str = "meta", start: float = 0.0, inner_lr: float | None = None) -> None:
        super().__init__()
        require(is_point(start), "start", start, A_POINT)
        require(inner_lr is None or inner_lr >= 0, "inner_lr", inner_lr, "null or a number of 0 or more")
        self.stream, self.streams = stream, (stream,)
        self.start, self.inner_lr = start, inner_lr

    def check(self, name: str, stage: StageConfig, trainer: TrainerConfig) -> None:
        """Refuses what a look ahead does not see."""
        has_started("start", self.start, 0, max(stage.epochs, 1))
        losses = [get_class(node["_target_"]) for node in (stage.loss, *(term.loss for term in stage.terms.values()))]
        of_streams = [loss.__name__ for loss in losses if getattr(loss, "streams", ())]
        views = len(build(stage.augmentation, path=f"{name}.augmentation").views)
        refused = {
            "on whole batches: set trainer.accumulate=1": trainer.accumulate > 1,
            "through gradients of gradients, which torch.compile has not: set trainer.compile=false": trainer.compile,
            f"without a teacher: set {name}.teacher=null": stage.teacher is not None,
            f"without teachers: leave out {name}.teachers": bool(stage.teachers),
            f"on images as they are: set mixing@{name}.mixing=none": blends(stage),
            "at the stage's own batch: leave out terms of streams": any(term.stream for term in stage.terms.values()),
            f"at the stage's own batch: choose another loss than {', '.join(of_streams)}": bool(of_streams),
            f"at one view of each image: choose another augmentation@{name}.augmentation": views > 1,
            f"by a step of SGD: set optimizer@{name}.optimizer=sgd": self.as_optimizer
            and not issubclass(get_class(stage.optimizer["_target_"]), torch.optim.SGD),
        }
        for what in (what for what, there in refused.items() if there):
            raise ConfigError(f"{name}: its step looks ahead {what}")

    def __call__(self, stage: SteppedStage, optimizer: LightningOptimizer, batch: Batch, closure: Closure) -> Tensor:
        context = stage.context_of(batch)
        optimizer.zero_grad()
        if has_started("start", self.start, context.epoch, context.max_epochs):
            ahead = LookAhead(stage, optimizer, batch, self.stream, self.inner_lr, self.as_optimizer)
            loss = self.look_and_step(ahead, closure)
        else:
            loss = closure()
        optimizer.step()
        return loss

    def look_and_step(self, ahead: "LookAhead", closure: Closure) -> Tensor:
        """Changes the outer variables and calls the closure under them; the optimizer steps afterwards."""
        raise NotImplementedError


@dataclass
class LookAhead:
    """A virtual step on a batch, as seen by a batch of a stream.

    Attributes:
        stage: whose model it is.
        optimizer: of the parameters that move.
        batch: this process's rows, with the stream's beside them.
        stream: its name.
        inner_lr, as_optimizer: see `MetaStep`.
    """

    stage: SteppedStage
    optimizer: LightningOptimizer
    batch: Batch
    stream: str
    inner_lr: float | None
    as_optimizer: bool = False

    def output(self, state: Mapping[str, Tensor] | None = None) -> ModelOutput:
        """What the model makes of the batch, with tensors of `state` in the place of its own of these names."""
        return output_with(self.stage, self.batch, state or {}, self.stage.needs[None], self.stage.seed)

    def objective(self, output: ModelOutput, sample_weights: Tensor | None = None) -> Tensor:
        """This process's part of the batch's objective: the mean over processes is that of the whole batch.

        Args:
            output: see `output`.
            sample_weights: (n,), which multiply the losses of this process's rows before the mean.
        """
        batch, context = self.batch, self.stage.context_of(self.batch, again=True)
        with without_autocast(batch.inputs.device.type):
            loss = self.stage.objective(output, batch.labels, replace(context, sample_weights=sample_weights))
        return cast(Tensor, loss * batch.share)

    def slope(self, inner: Tensor, outer: Tensor) -> Tensor:
        """d (cross-entropy of the stream's batch after the virtual step) / d outer, as far as it is this process's.

        Where `outer` is of all processes, the slopes of all are to be summed.

        Args:
            inner: this process's part of the objective that the virtual step goes down, a scalar; see `objective`.
            outer: what it depends on, of any shape.
        """
        model, world = self.stage.model, world_size()
        names = {parameter: name for name, parameter in model.named_parameters()}
        rates, drifts = self._rates(), self._drifts()
        found = torch.autograd.grad(inner, list(rates), create_graph=True, allow_unused=True)
        moved = [(p, gradient) for p, gradient in zip(rates, found, strict=True) if gradient is not None]
        ahead = [
            (p - rates[p] * sum_over_ranks(g) / world - drifts.get(p, 0.0)).detach().requires_grad_() for p, g in moved
        ]
        state = {names[p]: there for (p, _), there in zip(moved, ahead, strict=True)}
        felt = torch.autograd.grad(self._seen_at(state), ahead, allow_unused=True)
        read = [(p, g, f) for (p, g), f in zip(moved, felt, strict=True) if f is not None]  # not by a term alone
        pulls = [-rates[p] * sum_over_ranks(f) / world for p, _, f in read]
        (slope,) = torch.autograd.grad([g for _, g, _ in read], outer, pulls)
        return slope / world

    def _groups(self) -> list[tuple[nn.Parameter, dict[str, Any], float]]:
        """Each parameter that moves, with its group of the optimizer and the rate of the virtual step."""
        groups = [(p, group) for group in self.optimizer.param_groups for p in group["params"]]
        return [(p, group, group["lr"] if self.inner_lr is None else self.inner_lr) for p, group in groups]

    def _rates(self) -> dict[nn.Parameter, float]:
        """How far the virtual step goes along the gradient of each parameter."""
        if not self.as_optimizer:
            return {p: rate for p, _, rate in self._groups()}
        return {
            p: rate * (1 + group["momentum"] if group["nesterov"] else 1 - self._dampening(p, group))
            for p, group, rate in self._groups()
        }

    def _drifts(self) -> dict[nn.Parameter, Tensor]:
        """What the virtual step subtracts of each parameter whatever the gradient is: momentum and weight decay."""
        if not self.as_optimizer:
            return {}
        rates, drifts = self._rates(), {}
        for p, group, rate in self._groups():
            drifts[p] = rates[p] * group["weight_decay"] * p.detach()
            if (before := self._velocity(p)) is not None:
                carried = group["momentum"] ** (2 if group["nesterov"] else 1)
                drifts[p] = drifts[p] + rate * carried * before
        return drifts

    def _velocity(self, parameter: nn.Parameter) -> Tensor | None:
        """What the optimizer has gathered of earlier gradients; None before its first step."""
        return cast(Tensor | None, self.optimizer.state.get(parameter, {}).get("momentum_buffer"))

    def _dampening(self, parameter: nn.Parameter, group: dict[str, Any]) -> float:
        """Torch's SGD takes the first gradient whole."""
        return float(group["dampening"]) if self._velocity(parameter) is not None else 0.0

    def _seen_at(self, state: Mapping[str, Tensor]) -> Tensor:
        """This process's part of the mean cross-entropy of the stream's batch, at other weights."""
        seen = self.batch.streams[self.stream]
        output = output_with(self.stage, seen, state, (), stream_seed(self.stage.seed, self.stream))
        with without_autocast(seen.inputs.device.type):
            return F.cross_entropy(output.logits * output.logit_scale, seen.labels) * seen.share


def output_with(
    stage: SteppedStage, batch: Batch, state: Mapping[str, Tensor], needs: frozenset[str] | tuple[()], seed: int
) -> ModelOutput:
    """The model's output, in float32, of this process's rows of a batch; running statistics stay.

    Args:
        stage: whose model it is.
        batch: of the stage or of a stream.
        state: what takes the place of the model's own parameters and buffers of these names.
        needs: fields of the output.
        seed: of the stage's or the stream's draws.
    """
    for dropout in stage.dropouts:
        dropout.set_step(seed, batch.epoch, batch.step, batch.size, slice(0, len(batch.labels)), 1)
    with statistics_at_rest(stage.model):
        return in_float32(functional_call(stage.model, dict(state), (batch.inputs, needs, 1, batch.labels)))


def refuse_reweighting(name: str, stage: StageConfig) -> None:
    """Raises unless the stage `name` leaves weights of classes to its step.

    Raises:
        ConfigError: saying what to change.
    """
    if not stage.reweighting["_target_"].endswith(".NoReweighting"):
        raise ConfigError(f"{name}: its step weights by class itself: set reweighting@{name}.reweighting=none")


class Descent(nn.Module):
    """SGD with Nesterov's momentum on tensors that no optimizer of the stage has; its state is in buffers.

    Args:
        like: the tensors, by name.
        lr, momentum, weight_decay: as in torch.optim.SGD.
    """

    def __init__(self, like: Mapping[str, Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__()
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        for name, tensor in like.items():
            self.register_buffer(self._key(name), torch.zeros_like(tensor))

    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".", "_")

    @torch.no_grad()
    def step(self, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Moves the tensors, in place."""
        for name, tensor in tensors.items():
            velocity = cast(Tensor, getattr(self, self._key(name)))
            gradient = gradients[name] + self.weight_decay * tensor
            velocity.mul_(self.momentum).add_(gradient)
            tensor.sub_(self.lr * (gradient + self.momentum * velocity))


class Adam(nn.Module):
    """Adam (Kingma and Ba, ICLR 2015) on a tensor that no optimizer of the stage has; its state is in buffers.

    Decay rates 0.9 and 0.999 and an epsilon of 1e-8, as torch.optim.Adam's defaults.

    Args:
        like: the tensor.
        lr: learning rate.
    """

    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(self, like: Tensor, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.register_buffer("mean", torch.zeros_like(like))
        self.register_buffer("square", torch.zeros_like(like))
        self.register_buffer("steps", torch.zeros(()))

    @torch.no_grad()
    def step(self, tensor: Tensor, gradient: Tensor) -> None:
        """Moves the tensor, in place."""
        self.steps.add_(1)
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient.square(), 0.001)
        mean, square = self.mean / (1 - 0.9**self.steps), self.square / (1 - 0.999**self.steps)
        tensor.sub_(self.lr * mean / (square.sqrt() + 1e-8))
