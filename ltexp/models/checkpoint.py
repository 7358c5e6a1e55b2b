"""Loading a part of a model from a state, with one clear line when the state is another model's."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ltexp.errors import CheckpointError
from ltexp.models.backbone import Backbone


def load_part(module: nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Loads `state` into `module`, all of it or nothing.

    Args:
        module: the part of the model that is filled.
        state: its `state_dict`, names without any prefix.
        what: names the part in the message, e.g. "the backbone in runs/7/stage1".

    Raises:
        CheckpointError: if names or shapes differ.
    """
    require_fit(module, state, what)
    module.load_state_dict(dict(state))


def load_backbone(backbone: Backbone, state: Mapping[str, Any], what: str) -> None:
    """Loads the state of a backbone from a checkpoint, which may leave out what its file holds; see `load_part`."""
    own, left_out = backbone.state_dict(), backbone.in_file()
    load_part(backbone, {name: own[name] for name in own if name in left_out} | dict(state), what)


def kept_state(backbone: Backbone) -> dict[str, Tensor]:
    """What a checkpoint holds of a backbone: its state but what its file holds."""
    left_out = backbone.in_file()
    return {name: value for name, value in backbone.state_dict().items() if name not in left_out}


def require_fit(module: nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Refuses a state that `load_part` could not load."""
    own = module.state_dict()
    # Files older than torch 1.0 have no `num_batches_tracked`; nothing here reads it, and torch fills it in.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [str(name) for name in state if name not in own]
    faults = [_names(missing, "missing"), _names(unexpected, "unexpected")]
    for name, tensor in own.items():
        given = state.get(name, tensor)
        if not isinstance(given, Tensor):
            faults.append(f"'{name}' is no tensor but {type(given).__name__}")
            break
        if given.shape != tensor.shape:
            faults.append(f"'{name}' has shape {tuple(given.shape)} there and {tuple(tensor.shape)} here")
            break
    if found := "; ".join(fault for fault in faults if fault):
        raise CheckpointError(
            f"{what} belongs to a different model: {found}; choose the model and dataset it was trained with"
        )


def _names(names: list[str], how: str) -> str:
    return f"{len(names)} {'name' if len(names) == 1 else 'names'} {how}, first '{names[0]}'" if names else ""
