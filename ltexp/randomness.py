"""Random draws keyed by what they are for, so that nothing depends on what was drawn before.

Every draw in ltexp comes from a private generator whose seed is a hash of a key such as
`("order", seed, epoch)` or `("mixing", seed, epoch, step)`. A resumed run therefore draws what the
uninterrupted run would have drawn, and no global generator is ever reseeded.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def key_to_seed(*key: int | str) -> int:
    """A 63-bit seed for `key`; equal keys give equal seeds on every machine and in every process."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on `device` for the draws named by `key`."""
    return torch.Generator(device=device).manual_seed(key_to_seed(*key))


@contextmanager
def default_generator(*key: int | str) -> Iterator[None]:
    """Within the block the default CPU generator is seeded by `key`; afterwards it is as it was before.

    For code that takes no generator, such as the default initialisation of torch's own layers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key_to_seed(*key))
        yield
