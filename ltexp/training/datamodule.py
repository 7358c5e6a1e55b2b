"""A stage's batches, as Lightning asks for them."""

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch

from ltexp.data.loader import Batch, Loader, Recipe


class StageData(pl.LightningDataModule):
    """The training batches of a stage, and the splits that are evaluated while it trains.

    Args:
        train: batches in the sampler's order; it may learn from one epoch to the next.
        evaluated: batches of each split, by its name.
        overfit: batches of the first epoch that take the place of every epoch's; a number or a fraction. 0: none.
        recipes: whether training gets what batches are made of in the place of batches.
    """

    def __init__(
        self, train: Loader[Any], evaluated: dict[str, Loader[Any]], overfit: float = 0, recipes: bool = False
    ) -> None:
        super().__init__()
        self.train, self.evaluated, self.overfit, self.recipes = train, evaluated, overfit, recipes

    def train_dataloader(self) -> Any:
        """Batches of an epoch; Lightning tells the loader which."""
        loader = FirstEpoch(self.train) if self.overfit else self.train
        return Unmade(loader) if self.recipes else loader

    def val_dataloader(self) -> list[Any]:
        """Batches of the evaluated splits, in their order."""
        return [EveryRow(loader) for loader in self.evaluated.values()]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # loaders make batches where they are needed

    def end_epoch(self, epoch: int) -> None:
        """Called after an epoch's last step and evaluation, on every process."""
        self.train.end_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """What the training batches depend on beside seed and epoch."""
        return self.train.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        self.train.load_state(state_dict)


class EveryRow:
    """The batches of a loader that has no sampler, and for which no epoch needs to be announced."""

    def __init__(self, loader: Loader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)


class Unmade:
    """What the batches of a loader are made of; Lightning announces the epoch to its `sampler`."""

    def __init__(self, loader: "Loader[Any] | FirstEpoch") -> None:
        self.loader, self.sampler = loader, loader.sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Recipe]:
        return self.loader.recipes()


class FirstEpoch:
    """The batches of a loader's first epoch in every epoch, said to be of that one; for `overfit_batches`."""

    def __init__(self, loader: Loader[Any]) -> None:
        self.loader, self.epoch = loader, 0
        self.sampler = self  # where Lightning announces the epoch

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the batches are handed over in."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        self.loader.set_epoch(0)
        return (batch._replace(epoch=self.epoch) for batch in self.loader)

    def recipes(self) -> Iterator[Recipe]:
        """What these batches are made of."""
        self.loader.set_epoch(0)
        return (recipe._replace(epoch=self.epoch) for recipe in self.loader.recipes())
