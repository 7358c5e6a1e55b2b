"""The samplers that `conf/sampler/` names, and what makes one an ordinary sampler of torch's `DataLoader`.

labels = torch.tensor(dataset.targets)
sampler = ltexp.samplers.ClassAware(labels, torch.bincount(labels))
loader = DataLoader(dataset, batch_size=128, sampler=ltexp.samplers.EpochSampler(sampler, epochs=200))
"""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Sampler as TorchSampler

from ltexp.config.require import is_whole, require
from ltexp.data.samplers import Sampler
from ltexp.errors import ConfigError
from ltexp.parts import classes, find

__all__ = ["EpochSampler", "Sampler"]


class EpochSampler(TorchSampler[int]):
    """A sampler as torch's `DataLoader` takes one: each iteration is the next epoch's order.

    The order of an epoch depends on the seed and the epoch alone, so an epoch can be repeated (`set_epoch`, which
    Lightning calls by itself). Of several processes each takes every `world_size`-th position from its `rank` on, so
    that together they show what one process shows; under Lightning leave that to its own wrapper.

    Args:
        sampler: whose orders they are.
        epochs: of the training, for samplers that change over it.
        seed: of the draws. Default 0.
        rank: this process's number. Default 0.
        world_size: how many processes there are. Default 1.

    Raises:
        ConfigError: for what is no sampler of ltexp's, fewer than one epoch, or a rank that is none.
    """

    def __init__(self, sampler: Sampler, epochs: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        if not isinstance(sampler, Sampler):
            raise ConfigError(f"EpochSampler takes a sampler of ltexp.samplers, got {type(sampler).__name__}")
        require(is_whole(epochs, 1), "epochs", epochs, "a whole number of 1 or more")
        require(is_whole(world_size, 1), "world_size", world_size, "a whole number of 1 or more")
        right = is_whole(rank, 0, world_size - 1)
        require(right, "rank", rank, f"a whole number from 0 to world_size - 1 = {world_size - 1}")
        self.sampler, self.epochs, self.seed, self.rank, self.world_size = sampler, epochs, seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, from 0, that the next iteration is of."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(range(self.rank, self.sampler.epoch_length, self.world_size))

    def __iter__(self) -> Iterator[int]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = self.sampler.indices(self.seed, epoch, max(self.epochs, epoch + 1))
        return iter(order[self.rank :: self.world_size].tolist())


def __getattr__(name: str) -> Any:
    return find(__name__, "sampler", name)


def __dir__() -> list[str]:
    return [*__all__, *classes("sampler")]
