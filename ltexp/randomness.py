"""Random draws keyed by what they are for, so that nothing depends on what was drawn before.

Every draw in ltexp comes from a private generator whose seed is a hash of a key such as
`("order", seed, epoch)` or `("mixing", seed, epoch, step)`. A resumed run therefore draws what the
uninterrupted run would have drawn, and no global generator is ever reseeded.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor

Numbers = Callable[[int], Sequence[float]]  # of a step


class StepDraws(Protocol):
    """Who hands out the draws of a training step that is replayed rather than run; see `drawing`."""

    def generator(self, key: tuple[int | str, ...], device: torch.device) -> torch.Generator:
        """In the place of `generator`."""

    def numbers(self, draw: Numbers, step: int, device: torch.device) -> Sequence[float | Tensor]:
        """In the place of `numbers`."""


_hands_out: ContextVar[StepDraws | None] = ContextVar("_hands_out", default=None)


def key_to_seed(*key: int | str) -> int:
    """A 63-bit seed for `key`; equal keys give equal seeds on every machine and in every process."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on `device` for the draws named by `key`; a step's key is (word, seed, epoch, step, ...)."""
    if (draws := _hands_out.get()) is not None:
        return draws.generator(key, torch.device(device))
    return torch.Generator(device=device).manual_seed(key_to_seed(*key))


def numbers(draw: Numbers, step: int, device: torch.device) -> Sequence[float | Tensor]:
    """What the host draws for a step of training: `draw(step)`, or tensors () that hold it where steps are replayed."""
    draws = _hands_out.get()
    return draw(step) if draws is None else draws.numbers(draw, step, device)


@contextmanager
def drawing(draws: StepDraws) -> Iterator[None]:
    """Within the block `draws` hands out generators and numbers."""
    token = _hands_out.set(draws)
    try:
        yield
    finally:
        _hands_out.reset(token)


@contextmanager
def default_generator(*key: int | str) -> Iterator[None]:
    """Within the block the default CPU generator is seeded by `key`; afterwards it is as it was before.

    For code that takes no generator, such as the default initialisation of torch's own layers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key_to_seed(*key))
        yield
