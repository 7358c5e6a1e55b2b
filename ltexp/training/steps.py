"""How a step of the optimizer is made: the choices of conf/step/.

A step gets the stage, its optimizer, the batch and a closure that runs forward and backward passes over the whole
batch. It may call the closure more than once, or look ahead with a copy of the weights (`torch.func.functional_call`),
and calls the optimizer once.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import torch
from hydra.utils import get_class
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ltexp.config import StageConfig, TrainerConfig
from ltexp.config.build import build
from ltexp.config.require import require
from ltexp.data.loader import Batch
from ltexp.errors import ConfigError
from ltexp.losses.context import BatchContext
from ltexp.models.dropout import KeyedDropout
from ltexp.models.model import Model
from ltexp.training.mixing import Mixed
from ltexp.training.objective import Objective
from ltexp.training.teacher import Teacher


class SteppedStage(Protocol):
    """What a step may use of its stage.

    Attributes:
        model: whose parameters the optimizer moves.
        objective: of the model's output.
        needs: what the objective reads of the stage's own batch (None) and of each of its streams.
        seed: of the stage's draws.
        dropouts: of the model, which are told the batch that they draw for.
        teacher: the stage's, or None.
        own_optimizers: those that the step made (`Step.optimizers`), by name.
    """

    model: Model
    objective: Objective
    needs: dict[str | None, frozenset[str]]
    seed: int
    dropouts: list[KeyedDropout]
    teacher: Teacher | None
    own_optimizers: dict[str, Optimizer]

    def context_of(self, batch: Batch, again: bool = False) -> BatchContext:
        """What losses may know of a batch."""


class Closure(Protocol):
    """Forward and backward passes over all parts of the batch, on all processes."""

    def __call__(
        self, *, sample_weights: Tensor | None = None, again: bool = False, instead: Mixed | None = None
    ) -> Tensor:
        """Adds the gradient of the batch's objective to that of the parameters, and returns the objective detached.

        Args:
            sample_weights: (n,) of this process's rows, which multiply their losses before the mean. None: all 1.
            again: whether this step has called it before, so that nothing is counted twice.
            instead: inputs and targets of this process's rows in the place of those that the mixing gave. None: those.
        """


class Step(ABC):
    """Base of the steps.

    Attributes:
        streams: the stage's further batches that it reads.
        scales: whether it works with fp16, whose gradients come scaled.
        reads_teacher: whether it asks the stage's teacher.
        replayable: whether it does the same operations on the device in every step of an epoch (`trainer.step_graph`).
    """

    streams: Collection[str] = ()
    scales: ClassVar[bool] = False
    reads_teacher: ClassVar[bool] = False
    replayable: ClassVar[bool] = False

    def check(self, name: str, stage: StageConfig, trainer: TrainerConfig) -> None:  # noqa: B027 - a hook
        """Refuses, before any data is read, a stage or a trainer that it cannot work with; `name` is the stage's.

        Raises:
            ConfigError: saying what to change.
        """

    def optimizers(self, model: Model) -> Mapping[str, Optimizer]:
        """Optimizers beside the stage's, by name, made once before the first step; a checkpoint keeps their state.

        A step finds them in `stage.own_optimizers`. Nothing changes their learning rates, nor calls them.

        Args:
            model: the stage's, with what learns set.
        """
        return {}

    @abstractmethod
    def __call__(self, stage: SteppedStage, optimizer: LightningOptimizer, batch: Batch, closure: Closure) -> Tensor:
        """Makes one step.

        Args:
            stage: with `model`, `objective`, and what else a look-ahead may need.
            optimizer: of the stage's learnable parameters; its gradients are whatever is left from the last step.
            batch: this process's rows, with `streams` beside them.
            closure: see `Closure`.

        Returns:
            The batch's objective, detached.
        """


def build_step(node: Mapping[str, Any], class_counts: Tensor, path: str = "step") -> Step:
    """The step of a config node.

    Args:
        node: its `_target_` and keywords.
        class_counts: int64 (C,), given to a constructor that takes them.
        path: the key of the node in the config, for messages.
    """
    taken = inspect.signature(get_class(node["_target_"])).parameters
    step: Step = build(node, path=path, **({"class_counts": class_counts} if "class_counts" in taken else {}))
    return step


class Standard(Step):
    """One forward and backward pass, then the optimizer's step."""

    scales = True
    replayable = True

    def __call__(self, stage: SteppedStage, optimizer: LightningOptimizer, batch: Batch, closure: Closure) -> Tensor:
        optimizer.zero_grad()
        loss = closure()
        optimizer.step()
        return loss


class SharpnessAware(Step):
    """Sharpness-aware minimisation (SAM; Foret et al., ICLR 2021): the gradient at w + rho g / ||g|| moves w.

    g is the gradient of the whole batch, averaged over processes, and its norm that of all parameters together. Running
    statistics of batch norms move in the first pass alone; draws of the batch are the same in both. Twice the work of
    a standard step.

    Args:
        rho: the length of the look-ahead. Default 0.05 (the paper).

    Raises:
        ConfigError: a rho that is not positive.
    """

    replayable = True

    def __init__(self, rho: float = 0.05) -> None:
        require(rho > 0, "rho", rho, "a number above 0")
        self.rho = rho

    def __call__(self, stage: SteppedStage, optimizer: LightningOptimizer, batch: Batch, closure: Closure) -> Tensor:
        optimizer.zero_grad()
        loss = closure()
        moved = self.perturb(stage, optimizer)
        optimizer.zero_grad()
        with statistics_at_rest(stage.model):
            closure(again=True)
        with torch.no_grad():
            for parameter, before in moved:
                parameter.copy_(before)
        optimizer.step()
        return loss

    @torch.no_grad()
    def perturb(self, stage: SteppedStage, optimizer: LightningOptimizer) -> list[tuple[nn.Parameter, Tensor]]:
        """Moves the parameters up their gradient; each with a copy of what it was."""
        parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        learning = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
        if not learning:
            return []
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for _, gradient in learning]))
        factor = self.rho / (norm + 1e-12)
        moved = [(parameter, parameter.detach().clone()) for parameter, _ in learning]
        for parameter, gradient in learning:
            parameter.add_(gradient * factor)
        return moved


class ImbalancedSharpnessAware(SharpnessAware):
    """ImbSAM (Zhou et al., ICCV 2023): sharpness-aware for the tail classes alone.

    With the head's gradient g_h at w, and the tail's g_t at w + rho g_t(w) / ||g_t(w)||, the step is by g_h + g_t.
    Three passes. The labels are those of the batch's own images.

    Args:
        rho: the length of the look-ahead. Default 0.05 (the authors).
        tail_below: classes with fewer training images are the tail. Default 20 (the authors' CIFAR-100).
        tail_weight: what a tail image's loss counts for. Default 2 (the authors' code).

    Raises:
        ConfigError: a setting out of range.
    """

    def __init__(self, rho: float = 0.05, tail_below: int = 20, tail_weight: float = 2.0) -> None:
        super().__init__(rho)
        require(tail_below > 0, "tail_below", tail_below, "a number of images above 0")
        require(tail_weight > 0, "tail_weight", tail_weight, "a number above 0")
        self.tail_below, self.tail_weight = tail_below, tail_weight

    def check(self, name: str, stage: StageConfig, trainer: TrainerConfig) -> None:
        """Refuses terms of streams, whose rows are neither the batch's head nor its tail."""
        if of_streams := [key for key, term in stage.terms.items() if term.stream]:
            raise ConfigError(
                f"{name}: its step takes the batch's head and tail apart, and term {of_streams[0]} is of a stream: "
                f"leave it out, or set step@{name}.step=sam"
            )

    def __call__(self, stage: SteppedStage, optimizer: LightningOptimizer, batch: Batch, closure: Closure) -> Tensor:
        tail = (stage.objective.loss.class_counts < self.tail_below)[batch.labels].float()
        optimizer.zero_grad()
        loss = closure(sample_weights=1 - tail)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # copies, since several processes keep their gradients in buffers of the exchange
        of_head = [(parameter, parameter.grad.clone()) for parameter in parameters if parameter.grad is not None]
        optimizer.zero_grad(set_to_none=True)
        with statistics_at_rest(stage.model):
            loss = loss + closure(sample_weights=self.tail_weight * tail, again=True)
            moved = self.perturb(stage, optimizer)
            optimizer.zero_grad(set_to_none=True)
            closure(sample_weights=self.tail_weight * tail, again=True)
        with torch.no_grad():
            for parameter, before in moved:
                parameter.copy_(before)
            for parameter, gradient in of_head:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        optimizer.step()
        return loss


@contextmanager
def statistics_at_rest(model: nn.Module) -> Iterator[None]:
    """Within the block batch norms in training normalise by the batch, and their running statistics stay."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
