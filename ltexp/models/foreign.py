"""Weights files of any program: whatever is in them is told in one line, and a network is found below any prefix."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltexp.errors import CheckpointError

# What torch.compile and FSDP put between the names of modules, wherever they wrapped one.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.")
# Parts of a prefix that name a running average of the network which learns, such as MoCo's key encoder. The one that
# learns is meant: of MoCo the query encoder, as everyone evaluates it.
AVERAGES = ("encoder_k", "momentum_encoder", "momentum", "ema", "state_dict_ema", "model_ema", "ema_state_dict")
DEEPEST = 6  # of dicts in dicts that are looked into
KINDS = {  # how other programs' files begin
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF": "a PDF",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: run git lfs pull",
}
PICKLES = (b"PK\x03\x04", b"\x80")  # torch's files, and plain pickles of other libraries
HEAD = 512  # bytes of a file that tell its kind


def read_tensors(path: Path) -> Any:
    """What a file of torch.save holds: tensors and plain containers, on the CPU. Nothing else is unpickled.

    Raises:
        CheckpointError: in one line, for whatever else the file is.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # the reader raises whatever it stumbles over
        raise CheckpointError(f"{path} is {_kind(path, error)}") from None


def _kind(path: Path, error: Exception) -> str:
    """What a file that torch cannot read seems to be."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "empty"
    if known := next((kind for start, kind in KINDS.items() if head.startswith(start)), None):
        return f"{known}, no checkpoint"
    if b'"dtype"' in head and head[8:9] == b"{":
        return "a safetensors file: give what torch.save(safetensors.torch.load_file(FILE), 'weights.pt') makes of it"
    if b"\0" not in head and _is_text(head):
        return "a text file, no checkpoint"
    if head.startswith(PICKLES) and "weights_only" in str(error).lower():
        return (
            "damaged, or holds objects other than tensors and plain containers, which are never unpickled: where it "
            "was made, save its state_dict alone (torch.save(model.state_dict(), 'weights.pt'))"
        )
    return "damaged, or no checkpoint"


def _is_text(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # a letter that is cut in two
    return True


def state_below_prefix(content: Any, names: Collection[str], what: str) -> dict[str, Tensor]:
    """Of all tensors in `content` those of the network that has most of `names`, by these names.

    A network may stand in dicts of any depth, and behind any prefix: `module.`, `encoder_q.`, `model.backbone.` ...
    All names behind its prefix are given: whether they are the network's is for who loads them.

    Args:
        content: what a file holds.
        names: of the network's own state.
        what: names the file in messages, such as "backbone.weights 'moco.pth'".

    Raises:
        CheckpointError: if there is no such name, or two networks have equally many.
    """
    state = _flat(content)
    if not state:
        raise CheckpointError(f"{what} holds no state_dict: there is no tensor in it that has a name")
    found = _prefixes(state, names)
    if not found:
        first = ", ".join(list(state)[:3])
        raise CheckpointError(
            f"{what} belongs to a different model: none of its {len(state)} names ends as one of this network's; "
            f"its first are {first}"
        )
    prefix = _chosen(found, what)
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _flat(content: Any, prefix: str = "", depth: int = 0) -> dict[str, Tensor]:
    """The tensors in dicts of dicts by their names joined with dots, without the wrappers' parts."""
    if not isinstance(content, Mapping) or depth > DEEPEST:
        return {}
    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            for wrapper in WRAPPERS:
                name = name.replace(wrapper, "")
            tensors[name] = value
        else:
            tensors |= _flat(value, f"{name}.", depth + 1)
    return tensors


def _prefixes(state: Mapping[str, Any], names: Collection[str]) -> dict[str, int]:
    """How many of `names` stand behind each prefix; one ends with a dot, or is empty."""
    own = set(names)
    found: dict[str, int] = {}
    for name in state:
        start = 0
        while start >= 0:
            if name[start:] in own:
                prefix = name[:start]
                found[prefix] = found.get(prefix, 0) + 1
            start = name.find(".", start) + 1 or -1
    return found


def _chosen(found: Mapping[str, int], what: str) -> str:
    """The prefix with most names; of equals the one that is no average of another."""
    most = max(found.values())
    equals = [prefix for prefix, count in found.items() if count == most]
    learning = [prefix for prefix in equals if not set(prefix.split(".")) & set(AVERAGES)]
    choice = learning or equals
    if len(choice) > 1:
        shown = ", ".join(f"'{prefix}'" for prefix in choice)
        raise CheckpointError(
            f"{what} holds {len(choice)} such networks, behind {shown}: save the state_dict of the one that is meant "
            "in a file of its own"
        )
    return choice[0]
