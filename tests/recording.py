"""A CUDA graph's like on a CPU: takes down the operations of a step, and does them again on the same memory.

What Python does in between is not done again, as in a graph: a number that a replay should have been given, and was
not, shows in what it computes.
"""

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

import ltexp

aten = torch.ops.aten
ROOT = Path(ltexp.__file__).parent


def caller() -> str:
    """Where in ltexp the current operation is called: `losses/x.py:12`; empty: not in ltexp."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT):
            return f"{path.relative_to(ROOT)}:{frame.lineno} {frame.line}"
    return ""


class Recorder(TorchDispatchMode):
    """Takes down operations with what they read and wrote; afterwards memory is as it was before."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor | None]]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.own: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not aten._local_scalar_dense.default, f"the host reads a number: {caller()}"
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.keep(value)
        for argument in func._schema.arguments:
            if argument.name in kwargs and argument.alias_info is not None and argument.alias_info.is_write:
                self.keep(kwargs[argument.name])
        if func is aten.native_batch_norm.default:  # whose schema does not say that running statistics move
            self.keep(args[3:5])
        result = func(*args, **kwargs)
        written = [value for value in tree_flatten(result)[0] if isinstance(value, Tensor)]
        read = {id_of(value) for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)}
        fresh = [None if id_of(value) in read else value for value in written]
        self.own |= {id_of(value) for value in fresh if value is not None}
        self.operations.append((func, args, kwargs, fresh))
        return result

    def keep(self, value: Any) -> None:
        """Remembers the content of memory that was there before and is about to change."""
        for tensor in (one for one in tree_flatten(value)[0] if isinstance(one, Tensor)):
            key = id_of(tensor)
            if key not in self.own and key not in self.before:
                whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                self.before[key] = whole, whole.clone()

    def restore(self) -> None:
        """Gives what was there before its content."""
        for whole, content in self.before.values():
            whole.copy_(content)


def id_of(tensor: Tensor) -> int:
    """Of the memory that a tensor is a view of."""
    return tensor.untyped_storage()._cdata


class RecordedGraph:
    """See `ltexp.training.step_graph.Graph`.

    Attributes:
        captures, replays: of all of them, since `reset`.
    """

    captures = replays = 0

    @classmethod
    def reset(cls) -> None:
        cls.captures = cls.replays = 0

    def capture(self, step: Callable[[], None], generators: Sequence[torch.Generator]) -> None:
        type(self).captures += 1
        recorder = Recorder()
        with recorder:
            step()
        recorder.restore()
        self.operations = recorder.operations

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)  # or it would cast once more
    def replay(self) -> None:
        type(self).replays += 1
        for function, arguments, keywords, fresh in self.operations:
            writes = any(own.alias_info and own.alias_info.is_write for own in function._schema.arguments)
            if not writes and all(value is None for value in fresh):
                continue  # views, which still show the same memory
            if function._schema.name.startswith(("aten::empty", "aten::new_empty")):
                continue
            again = tree_flatten(function(*detached(arguments), **detached(keywords)))[0]
            results = [one for one in again if isinstance(one, Tensor)]
            for before, after in zip(fresh, results, strict=True):
                if before is not None:
                    before.detach().copy_(after)


def detached(value: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.detach(), value)
