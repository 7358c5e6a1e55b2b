"""What a mixing does inside the network: to what a part of the backbone gives, on the way to the features."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ltexp.config import StageConfig, TrainerConfig
from ltexp.errors import ConfigError
from ltexp.names import unknown_name


class Inside(NamedTuple):
    """What is done to the output of one part of the backbone.

    Attributes:
        layer: the part's dotted name in the backbone, such as `layer2`.
        change: of this process's rows (n, ...), in the batch's order; gives as many.
    """

    layer: str
    change: Callable[[Tensor], Tensor]


@contextmanager
def acting(backbone: nn.Module, inside: Inside | None) -> Iterator[None]:
    """Within the block the backbone goes on with what `inside` makes; None: nothing is different."""
    if inside is None:
        yield
        return

    def changed(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        return inside.change(output)

    handle = backbone.get_submodule(inside.layer).register_forward_hook(changed)
    try:
        yield
    finally:
        handle.remove()


def check_inside(name: str, stage: StageConfig, layers: Collection[str], trainer: TrainerConfig) -> None:
    """Refuses what a mixing inside the network cannot go with.

    Args:
        name: of the stage.
        stage: its config.
        layers: on which its mixing works; none: nothing is refused.
        trainer: of the run.

    Raises:
        ConfigError: saying what to change.
    """
    if not layers:
        return
    key, own = f"mixing@{name}.mixing", "its mixing works inside the network"
    if stage.features.get("_target_"):
        raise ConfigError(f"{name}: {own}, and it trains on features: set {key}=mixup")
    if stage.taught_by:
        raise ConfigError(f"{name}: {own}, where its teacher does not look: set {key}=mixup, or leave the teacher out")
    for setting, off, on in (
        ("accumulate", 1, trainer.accumulate > 1),
        ("compile", "false", trainer.compile),
        ("step_graph", "false", trainer.step_graph),
    ):
        if on:
            raise ConfigError(f"{name}: {own}, which trainer.{setting} does not allow: set trainer.{setting}={off}")


def check_layers(backbone: nn.Module, run: Callable[[], object], rows: int, layers: Collection[str]) -> None:
    """Refuses parts that the backbone has not, or whose output has no row for each sample.

    Args:
        backbone: whose parts they are.
        run: passes `rows` samples through it.
        layers: dotted names.

    Raises:
        ConfigError: naming the part, and those at the top of the network.
    """
    known = {name for name, _ in backbone.named_modules() if name}
    top = ", ".join(name for name, _ in backbone.named_children())
    for layer in layers:
        if layer not in known:
            raise ConfigError(f"{unknown_name('part of the backbone', layer, known)} (at its top: {top})")
    given: dict[str, list[object]] = {layer: [] for layer in layers}

    def note(layer: str, output: Tensor) -> Tensor:
        given[layer].append(output)
        return output

    with ExitStack() as stack, torch.no_grad():
        for layer in given:
            stack.enter_context(acting(backbone, Inside(layer, partial(note, layer))))
        run()
    for layer, outputs in given.items():
        if not outputs or not all(isinstance(each, Tensor) and each.ndim and len(each) == rows for each in outputs):
            raise ConfigError(
                f"what the backbone's {layer} gives has no row for each sample: choose another part of it (at "
                f"its top: {top})"
            )
