"""The few facts and exchanges that code needs from torch.distributed; each is a no-op on one process."""

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
PIECE = 2**24  # bytes that a process sends at a time where rows go to the first one


def active() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if active() else 1


def wait_for_all() -> None:
    """Returns when every process has come here."""
    if active():
        dist.barrier()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """`tensor` summed over all processes (no gradient flows through the sum)."""
    if not active():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def broadcast_object(value: T) -> T:
    """Rank 0's `value`, on every process."""
    if not active():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Every process's `value`, in rank order, on every process."""
    if not active():
        return [value]
    box: list[T] = [value] * world_size()
    dist.all_gather_object(box, value)
    return box


def gather_batch(local: Tensor, total: int) -> Tensor:
    """The global batch of `total` rows, of which this process holds rows rank, rank + world size, ...

    Args:
        local: (n, ...) this process's rows. A process whose share is empty may hold a stand-in row.
        total: rows of the global batch, the same on every process.

    Returns:
        (total, ...) the rows of all processes in global order; no gradient flows through it.
    """
    if not active():
        return local
    world, width = world_size(), -(-total // world_size())
    padded = local.new_zeros((width, *local.shape[1:]))
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[:total]


def rows_to_first(own: Sequence[Tensor], empty: Tensor, places: Sequence[Tensor], total: int) -> Tensor:
    """Rows of all processes on the first one, sent a few at a time, so that no other process holds more than its own.

    Args:
        own: (n, ...) parts of this process's rows, in order, on the CPU.
        empty: (0, ...) of their shape and dtype, on the device that the processes exchange on.
        places: int64 (n_r,) for each process, where its rows go; known to all.
        total: rows of the result.

    Returns:
        (total, ...) on the CPU; on the other processes without rows.
    """
    first = rank() == 0
    result = torch.empty((total if first else 0, *empty.shape[1:]), dtype=empty.dtype)
    if not active():
        for place, part in zip(torch.split(places[0], [len(part) for part in own]), own, strict=True):
            result[place] = part
        return result
    rows = torch.cat([empty.cpu(), *own])
    width = max(1, PIECE // (empty.element_size() * max(1, empty.shape[1:].numel())))
    for start in range(0, max(map(len, places)), width):
        mine = rows[start : start + width]
        piece = empty.new_zeros((width, *empty.shape[1:]))
        piece[: len(mine)] = mine
        parts = [torch.empty_like(piece) for _ in places] if first else None
        dist.gather(piece, parts)
        for place, part in zip(places, parts or (), strict=first):
            there = place[start : start + width]
            result[there] = part[: len(there)].cpu()
    return result


def broadcast_state(module: nn.Module) -> None:
    """Gives every process rank 0's parameters and buffers of `module`."""
    if active():
        for value in module.state_dict().values():
            dist.broadcast(value, 0)


def own_rows(total: int, device: torch.device | str = "cpu") -> Tensor:
    """int64 (n,): which rows of a global batch of `total` this process holds; the last one where its share is empty."""
    return torch.arange(rank() if rank() < total else total - 1, total, world_size(), device=device)


def gather_with_gradient(local: Tensor, total: int) -> Tensor:
    """`gather_batch` for losses that compare samples of the whole batch: the gradient flows back to every process.

    Where each process's loss is a mean over its own rows, the gradient of their mean over processes is that of the
    mean over the global batch, as one process has it.
    """
    return cast(Tensor, _Gathered.apply(local, total)) if active() else local


class _Gathered(torch.autograd.Function):
    """The losses of all processes depend on a row, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, total: int) -> Tensor:
        ctx.rows, ctx.own = len(local), own_rows(total, local.device)
        ctx.stand_in = rank() >= total
        return gather_batch(local, total)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        mine = sum_over_ranks(gradients[0].contiguous())[ctx.own]
        return mine.new_zeros((ctx.rows, *mine.shape[1:])) if ctx.stand_in else mine, None
