"""Modules: networks or state that a stage has by name beside backbone and classifier, and how they are wired.

A projection head, a queue, prototypes, a momentum copy, an auxiliary network: each says which fields of the model's
output it reads and what it gives, and losses name what they need. `stageN.modules.NAME` is the module's `_target_` with
its own keywords, and beside them the keys of `Wiring`.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ltexp.config import MODULE_KEYS
from ltexp.config.build import build
from ltexp.config.locate import locate
from ltexp.config.require import require_names, within

# Of a batch of several views: what the network makes of all of them, and the images themselves. Where the former are
# not read, the network sees the first view alone.
OF_VIEWS = frozenset({"view_features", "view_logits"})
VIEWS = OF_VIEWS | {"view_inputs"}
# What the model itself has for modules and losses; `inputs` and `labels` are of the batch.
OF_THE_MODEL = (
    VIEWS
    | {"inputs", "labels", "logits", "features", "feature_maps", "expert_logits"}
    | {"class_vectors", "class_biases"}  # of a linear classifier, with their gradient
    | {"classify"}  # the classifier itself: features (n, D) that a loss or a module makes to logits (n, C)
)


class StageModule(nn.Module):
    """Base of the modules; any `nn.Module` will do whose node in the config says what it reads and gives.

    `forward` gets what `reads` names, in that order, and returns what `gives` names: one value, or a tuple of them.

    Attributes:
        reads: fields of the model's output, `inputs`, `labels` (of the batch's own images, while training alone),
            `class_vectors` (C, D) and `class_biases` (C,) of a linear classifier, `classify`, which turns features
            (n, D) into its logits (n, C), of several views `view_features`
            (V, B, D), `view_logits` (V, B, C) and `view_inputs` (V, B, ...), or what an earlier module gives.
        sees: whether a fresh one is shown the training set before training, for a start from class means and the like.
        gives: names; a field of `ModelOutput` where there is one, else an entry of its `extra`.
    """

    reads: ClassVar[Sequence[str]] = ("features",)
    gives: ClassVar[Sequence[str]] = ()
    sees: ClassVar[bool] = False

    def check(self, *inputs: Any) -> None:
        """Refuses, before training, inputs that the module cannot work with; `inputs` are those of one sample.

        Raises:
            ConfigError: saying what to choose instead.
        """

    def see(self, labels: Tensor, *inputs: Any) -> None:
        """Called before training with every batch of the training set, not augmented, of a module that has `sees`.

        Args:
            labels: int64 (n,) of this process's rows.
            inputs: what `reads` names of the model as it starts, in eval mode.
        """

    def seen(self) -> None:
        """Called once after the last `see`, on every process."""

    def after_step(self, model: nn.Module) -> None:
        """Called after every step of the optimizer, for momentum copies, queues and running means.

        State belongs in buffers, which checkpoints hold, and has to be equal on all processes: see ltexp.distributed.

        Args:
            model: the stage's.
        """


@dataclass(frozen=True)
class Wiring:
    """How a stage uses a module.

    Attributes:
        reads, gives: see `StageModule`.
        start: `fresh`, `stage1`, or the path of a run's folder or a checkpoint file.
        trainable: whether its parameters learn; one that does not is in eval mode.
        detached: whether it reads without a gradient to what it reads.
        keep: whether it is a part of the trained model, run in evaluation as well. A checkpoint holds its state anyway.
    """

    reads: tuple[str, ...]
    gives: tuple[str, ...]
    start: str = "fresh"
    trainable: bool = True
    detached: bool = False
    keep: bool = False

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> "Wiring":
        """The wiring in a module's config node; what it leaves out is its class's."""
        target = locate(node["_target_"])
        require_names(target, "reads", "gives")
        own = {key: node[key] for key in MODULE_KEYS if node.get(key) is not None}
        reads, gives = (tuple(own.pop(key, getattr(target, key, ()))) for key in ("reads", "gives"))
        return cls(reads, gives, **own)


def present(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The modules of a stage's config that there are: those with a `_target_`."""
    return {name: node for name, node in nodes.items() if node.get("_target_")}


def build_module(node: Mapping[str, Any], path: str = "", **facts: Any) -> nn.Module:
    """The module of a config node.

    Args:
        node: its `_target_`, its own keywords and those of `Wiring`.
        path: the key of the node in the config, for messages.
        facts: what may be known of model and data, of which the constructor gets the keywords that it takes.

    Raises:
        ConfigError: if it cannot be built.
    """
    own = {key: value for key, value in node.items() if key not in MODULE_KEYS}
    with within(path):
        taken = inspect.signature(locate(node["_target_"])).parameters
    given = {key: value for key, value in facts.items() if key in taken and key not in own}
    module: nn.Module = build(own, path=path, **given)
    return module


def detach(value: Any) -> Any:
    """A tensor, or a list of them, without gradient; anything else as it is."""
    if not isinstance(value, Tensor | list | tuple):
        return value
    return value.detach() if isinstance(value, Tensor) else [part.detach() for part in value]
