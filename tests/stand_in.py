"""A stand-in for a GPU: a device with a memory of its own, which computes on the CPU.

Its tensors hold tensors of the CPU that nothing outside reaches: an operation on tensors of both devices fails, as does
`numpy()`, while copies between them and `item()` work, all as on a GPU. torch knows it as its meta device, whose
tensors have no values otherwise.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.autograd.grad_mode import inference_mode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

from ltexp.analysis import restored
from ltexp.data.augmentation import constant
from ltexp.inference import predictor
from ltexp.training import trainer

DEVICE = torch.device("meta")
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
# which take indices of the host
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray)


class Held(Tensor):
    """A tensor of the device.

    Attributes:
        held: of the host, with its values.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Held":
        made: Held = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist:
            return args[0].held.tolist()
        if func is Tensor.is_meta.__get__:  # type: ignore[attr-defined]
            return False
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError("a tensor of the device has to be copied to the host first: .cpu()")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the values, whose results lie where a GPU's would."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Held)]
    asked = kwargs.get("device")
    if ours and func not in COPIES and not (func in INDEXED and isinstance(args[0], Held)):
        strangers = [tensor for tensor in tensors if not isinstance(tensor, Held) and tensor.ndim > 0]
        if strangers:
            raise RuntimeError(f"{func}: tensors of two devices")
    if asked is not None:
        here = torch.device(asked).type == DEVICE.type
    else:
        here = isinstance(args[0], Held) if func in COPIES else bool(ours)
    inner = kwargs | ({"device": torch.device("cpu")} if asked is not None and here else {})
    result = func(*held_in(args), **held_in(inner))
    if not here:
        return result
    return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, Held, result))


def held_in(values: Any) -> Any:
    return tree_map_only(Held, lambda tensor: tensor.held, values)


class Operations(TorchDispatchMode):
    """Sees those that make a tensor, and those on tensors of the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class FromData(TorchFunctionMode):
    """torch.tensor and its kin, whose values torch drops where they are to be of its meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FROM_DATA and kwargs.get("device") is not None and torch.device(kwargs["device"]) == DEVICE:
            return func(*held_in(args), **held_in(kwargs) | {"device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


class ItsAccelerator(CPUAccelerator):
    """Lightning's for the CPU, which would refuse another device."""

    def setup_device(self, device: torch.device) -> None:
        pass


class OneStandIn(SingleDeviceStrategy):
    """Lightning's for one device; a module stays there, since torch cannot move one of such tensors in place."""

    def __init__(self) -> None:
        super().__init__(device=DEVICE, accelerator=ItsAccelerator())

    def teardown(self) -> None:
        pass


def _enter(block: inference_mode) -> None:
    block.grad = torch.no_grad() if block.mode else torch.enable_grad()  # type: ignore[attr-defined]
    block.grad.__enter__()  # type: ignore[attr-defined]


@contextmanager
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device, on which ltexp trains, evaluates and predicts within the block; in full precision."""
    make, generator = pl.Trainer, torch.Generator

    def on_stand_in(accelerator: str, strategy: str, **keywords: Any) -> pl.Trainer:
        return make(strategy=OneStandIn(), **keywords)

    swaps = torch.__future__.get_swap_module_params_on_conversion()
    with monkeypatch.context() as patch:
        patch.setattr(trainer.pl, "Trainer", on_stand_in)
        for module in (predictor, restored):
            patch.setattr(module, "pick_device", lambda accelerator, number: DEVICE)
        # torch has none of these for its meta device, or for tensors of a class of one's own
        patch.setattr(torch, "Generator", lambda device="cpu": generator())
        patch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
        patch.setattr(torch, "is_autocast_enabled", lambda *_: False)
        patch.setattr(inference_mode, "__enter__", _enter)
        patch.setattr(inference_mode, "__exit__", lambda block, *error: block.grad.__exit__(*error))
        torch.__future__.set_swap_module_params_on_conversion(True)
        constant.cache_clear()  # of tensors of torch's own meta device
        try:
            with Operations(), FromData():
                yield DEVICE
        finally:
            constant.cache_clear()
            torch.__future__.set_swap_module_params_on_conversion(swaps)
