"""Whole steps of training as CUDA graphs (`trainer.step_graph`): captured once an epoch, then replayed from buffers.

A replay repeats the operations of the captured step on the same memory, so what differs between the steps of an epoch
is put there first: what the batch is made of, learning rates, what the host draws, and the seeds of keyed generators.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from ltexp.data.loader import Batch, Loader, Recipe
from ltexp.errors import ConfigError
from ltexp.models.dropout import KeyedDropout
from ltexp.randomness import Numbers, drawing, key_to_seed
from ltexp.training.mixing import Mixed, Mixing

if TYPE_CHECKING:
    from ltexp.training.stage import Stage

VARIES = ("step", "rows")  # fields of a batch or a recipe that no operation depends on but through draws


class Graph(Protocol):
    """The operations of a step."""

    def capture(self, step: Callable[[], None], generators: Sequence[torch.Generator]) -> None:
        """Takes down what `step` does, which may draw from `generators`, without doing it."""

    def replay(self) -> None:
        """Does it, on the same memory."""


class CudaGraph:
    """A graph of the current device."""

    def __init__(self) -> None:
        self.graph = torch.cuda.CUDAGraph()

    def capture(self, step: Callable[[], None], generators: Sequence[torch.Generator]) -> None:
        """See `Graph`.

        Raises:
            ConfigError: for an operation that a graph cannot hold.
        """
        for generator in generators:
            self.graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(self.graph):
                step()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            cause = str(error.__context__ or error).splitlines()[0]
            raise ConfigError(
                f"a part of its step cannot be captured ({cause}): set trainer.step_graph=false, or choose another"
            ) from error

    def replay(self) -> None:
        self.graph.replay()


class Noted:
    """The draws of a step that is run, counted."""

    def __init__(self) -> None:
        self.generators = 0

    def generator(self, key: tuple[int | str, ...], device: torch.device) -> torch.Generator:
        """As ever."""
        self.generators += 1
        return torch.Generator(device=device).manual_seed(key_to_seed(*key))

    def numbers(self, draw: Numbers, step: int, device: torch.device) -> Sequence[float | Tensor]:
        """As ever."""
        return draw(step)


class Fed:
    """The draws of a step that is captured: what it was given, and how to set that for another step of the epoch.

    Args:
        generators: to hand out, as many as the step asks for.
        given: the batch that is captured, or what it is made of.
    """

    def __init__(self, generators: Sequence[torch.Generator], given: Batch | Recipe) -> None:
        self.generators, self.when = generators, (given.epoch, given.step)
        self.keys: list[tuple[int | str, ...]] = []
        self.drawn: list[tuple[Numbers, list[Tensor]]] = []

    def generator(self, key: tuple[int | str, ...], device: torch.device) -> torch.Generator:
        """The next one; its seed is set before each replay."""
        number = len(self.keys)
        if key[2:4] != self.when or number == len(self.generators) or self.generators[number].device != device:
            raise ConfigError(f"the draws of {key[0]!r} are not those of a step on the device: {OFF}")
        self.keys.append(key)
        return self.generators[number]

    def numbers(self, draw: Numbers, step: int, device: torch.device) -> Sequence[float | Tensor]:
        """Tensors () for them, filled before each replay."""
        tensors = [torch.empty((), device=device) for _ in draw(step)]
        self.drawn.append((draw, tensors))
        return tensors

    def set_step(self, step: int) -> None:
        """Lets the next replay draw what `step` draws."""
        for generator, key in zip(self.generators, self.keys, strict=True):
            generator.manual_seed(key_to_seed(*key[:3], step, *key[4:]))
        for draw, tensors in self.drawn:
            for tensor, value in zip(tensors, draw(step), strict=True):
                tensor.fill_(value)


OFF = "set trainer.step_graph=false, or choose another"


class Captured:
    """A captured step with the buffers that it reads."""

    def __init__(self, graph: Graph, given: Any, draws: Fed) -> None:
        self.graph, self.draws = graph, draws
        self.given = mapped(given, torch.empty_like)
        self.buffers = tensors_of(self.given)

    def feed(self, given: Any) -> None:
        """Puts what a step is given into the buffers."""
        for buffer, tensor in zip(self.buffers, tensors_of(given), strict=True):
            buffer.copy_(tensor)


class StepGraph:
    """Takes the steps of a stage: of each kind of batch an epoch's first runs, the second is captured and replayed.

    A kind is what decides which operations a step does, shapes above all: a smaller last batch is one of its own and
    runs. Where loader and augmentations are `replayable`, and the mixing, making and mixing the batch is captured too;
    elsewhere both come before. The first step of an epoch also makes what is made when it is first needed.

    Args:
        loader: of the stage's batches.
        mixing: the stage's.

    Attributes:
        makes: whether it is given what batches are made of, rather than batches.
    """

    new_graph: Callable[[], Graph] = CudaGraph

    def __init__(self, loader: Loader[Any], mixing: Mixing) -> None:
        loaders = (loader, *loader.streams.values())
        views = [view for each in loaders for view in each.augmentation.views]
        on_device = all(loader.replayable for loader in loaders) and all(view.replayable for view in views)
        self.makes = mixing.replayable and on_device
        self._loader, self._epoch = loader, -1
        self._noted: dict[Hashable, Noted] = {}
        self._captured: dict[Hashable, Captured] = {}
        self._rates: list[Tensor] = []

    def __call__(self, stage: "Stage", optimizer: LightningOptimizer, batch: Batch | Recipe) -> None:
        """One step on a batch, or on what it is made of."""
        if batch.epoch != self._epoch:  # what a step does may depend on it
            self._epoch, self._noted, self._captured = batch.epoch, {}, {}
        given = batch if isinstance(batch, Recipe) else (batch, with_tensors(stage.mixing(batch, stage.seed)))
        self._set_rates(optimizer, stage.device)
        kind = (structure(given), self._settings(optimizer))
        if kind not in self._noted:
            self._noted[kind] = noted = Noted()
            with drawing(noted), self._tensor_rates(optimizer):
                self._step(stage, optimizer, given)
            return
        first = kind not in self._captured
        if first:
            self._captured[kind] = self._capture(stage, optimizer, given, batch, self._noted[kind].generators)
        captured = self._captured[kind]
        captured.feed(given)
        captured.draws.set_step(batch.step)
        if not first:  # Lightning counts the steps of an optimizer, and has counted the captured one
            optimizer._on_before_step()
        captured.graph.replay()
        if not first:
            optimizer._on_after_step()

    def _capture(
        self, stage: "Stage", optimizer: LightningOptimizer, given: Any, batch: Batch | Recipe, generators: int
    ) -> Captured:
        made = [torch.Generator(device=stage.device) for _ in range(generators)]
        captured = Captured(self.new_graph(), given, Fed(made, batch))
        captured.feed(given)
        # or weights that an earlier step has cast would be taken for those of every step
        torch.clear_autocast_cache()
        before = host_state(stage)
        with drawing(captured.draws), self._tensor_rates(optimizer):
            captured.graph.capture(lambda: self._step(stage, optimizer, captured.given), made)
        if changed := [key[1] for key, value in host_state(stage).items() if before.get(key, value) != value]:
            raise ConfigError(f"a replayed step would not change {changed[0]}, which its steps do: {OFF}")
        return captured

    def _step(self, stage: "Stage", optimizer: LightningOptimizer, given: Any) -> None:
        """All of a step, on the device alone."""
        if isinstance(given, Recipe):
            batch = self._loader.make(given)
            mixed = stage.mixing(batch, stage.seed)
        else:
            batch, mixed = given
        with buffers_in_place(stage):
            stage.take_step(optimizer, batch, mixed)

    def _set_rates(self, optimizer: LightningOptimizer, device: torch.device) -> None:
        self._rates = self._rates or [torch.empty((), device=device) for _ in optimizer.param_groups]
        for rate, group in zip(self._rates, optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])

    @contextmanager
    def _tensor_rates(self, optimizer: LightningOptimizer) -> Iterator[None]:
        """Within the block learning rates are tensors; schedules and callbacks see them as numbers."""
        numbers = [group["lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            yield
        finally:
            for group, number in zip(optimizer.param_groups, numbers, strict=True):
                group["lr"] = number

    @staticmethod
    def _settings(optimizer: LightningOptimizer) -> str:
        """What a schedule may change of an optimizer beside learning rates."""
        return repr([{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups])


def with_tensors(mixed: Mixed) -> Mixed:
    """The same with weights that differ from batch to batch as tensors ()."""
    own, other = mixed.targets.weight, mixed.targets.partner_weight
    if isinstance(own, Tensor) or (own == 1.0 and other is None):
        return mixed
    other = 1.0 - own if other is None else other
    weights = [w if isinstance(w, Tensor) else torch.full((), w, device=mixed.inputs.device) for w in (own, other)]
    return mixed._replace(targets=mixed.targets._replace(weight=weights[0], partner_weight=weights[1]))


@contextmanager
def buffers_in_place(module: nn.Module) -> Iterator[None]:
    """After the block, a buffer that a new tensor has taken the place of is the old one, with the new one's content."""
    before = [(part, name, buffer) for part in module.modules() for name, buffer in part._buffers.items()]
    yield
    with torch.no_grad():
        for part, name, buffer in before:
            new = part._buffers[name]
            if buffer is not None and new is not None and new is not buffer:
                part._buffers[name] = buffer.copy_(new)


def host_state(module: nn.Module) -> dict[tuple[int, str], Any]:
    """What its parts keep beside parameters and buffers: numbers, and which tensors. Keys of draws are left out."""
    parts = [part for part in module.modules() if not isinstance(part, KeyedDropout | pl.LightningModule)]
    return {
        (id(part), f"{type(part).__name__}.{name}"): id(value) if isinstance(value, Tensor) else value
        for part in parts
        for name, value in vars(part).items()
        if value is None or isinstance(value, bool | int | float | str | Tensor)
    }


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch, or what else is nested, with each of its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: mapped(own, change) for name, own in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(own, change) for own in value))
    if isinstance(value, tuple | list):
        return type(value)(mapped(own, change) for own in value)
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of something nested, in order."""
    found: list[Tensor] = []

    def add(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(value, add)
    return found


def structure(value: Any) -> Hashable:
    """What has to be equal for two steps to do the same operations: all but values of tensors and what `VARIES`."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, Mapping):
        return tuple((name, structure(own)) for name, own in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        named = zip(value._fields, value, strict=True)
        return tuple(structure(own) for name, own in named if name not in VARIES)
    if isinstance(value, tuple | list):
        return tuple(structure(own) for own in value)
    own: Hashable = value
    return own
