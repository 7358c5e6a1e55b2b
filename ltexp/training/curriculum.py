"""Levels of augmentation by class that follow what the model can tell (CUDA; Ahn et al., ICLR 2023)."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltexp.data.augmentation import Augmentation, Curriculum
from ltexp.data.loader import Loader
from ltexp.distributed import rank, sum_over_ranks
from ltexp.models.model import Model
from ltexp.randomness import generator, key_to_seed
from ltexp.run_folder import LEVELS, write_metrics
from ltexp.training.predict import autocast, evaluating
from ltexp.training.session import Session


class Trial(Augmentation):
    """Training images changed at one level, in an order that is told: sampler and augmentation of a trial.

    Args:
        curriculum: whose changes are tried.
    """

    def __init__(self, curriculum: Curriculum) -> None:
        self.curriculum, self.samples, self.padding = curriculum, curriculum.samples, curriculum.padding
        self.order, self.level = torch.zeros(0, dtype=torch.int64), 0

    def indices(self, seed: int, epoch: int, max_epochs: int) -> Tensor:
        """int64 (L,): the rows that are tried."""
        return self.order

    def draws(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        return self.curriculum.draws(count, generator)

    def __call__(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        levels = torch.full((len(images),), self.level, device=images.device)
        return self.curriculum.at(images, draws, levels, self.level)


class ClassLevels:
    """Before every epoch, the first included, each class's level rises or falls by one.

    Of class c with the level l, 10 (s + 1) training images are drawn with replacement and changed at level s, for s
    from 0 to l. If the model, in eval mode, tells more than the threshold of each of these groups, the level rises,
    else it falls. All processes try their shares, and count together.

    Args:
        session: of the stage.
        model: that tells.
        curriculum: the augmentation whose levels these are.
        seed: of the draws.
    """

    def __init__(self, session: Session, model: Model, curriculum: Curriculum, seed: int) -> None:
        self._curriculum, self._model, self._seed = curriculum, model, seed
        self._precision, classes = session.config.trainer.precision, session.num_classes
        labels = session.data.train.labels
        self._rows = [torch.from_numpy(np.flatnonzero(labels == label)) for label in range(classes)]
        curriculum.levels = torch.zeros(classes, dtype=torch.int64)
        self._history = torch.zeros(0, classes, dtype=torch.int64)
        self._trial = Trial(curriculum)
        size, seed = session.evaluation_batch, key_to_seed("trial", seed)
        self._loader: Loader[Any] = session.loader(
            session.data.train, batch_size=size, augmentation=self._trial, sampler=self._trial, seed=seed
        )

    def before_epoch(self, epoch: int) -> None:
        """Tries every class; once for each epoch."""
        if epoch < len(self._history):
            return
        levels, highest = self._curriculum.levels, self._curriculum.highest
        rises = torch.ones(len(levels), dtype=torch.bool)
        for level in range(int(levels.max()) + 1):
            tried = rises & (levels >= level)  # one group that is not told is enough
            if tried.any():
                told = self._told(tried, level, epoch * (highest + 1) + level)
                rises = torch.where(tried, told > self._curriculum.threshold, rises)
        self._curriculum.levels = torch.where(rises, levels + 1, levels - 1).clamp(0, highest)
        self._history = torch.cat([self._history, self._curriculum.levels[None]])

    def _told(self, tried: Tensor, level: int, number: int) -> Tensor:
        """float64 (C,): of the classes (C,) that are `tried`, the share of their images that are told at a level.

        Args:
            number: of the trial, by which its draws are keyed.
        """
        draws, count = generator("levels", self._seed, number), self._curriculum.images * (level + 1)
        own = [self._rows[label] for label in tried.nonzero().flatten().tolist()]
        self._trial.order = torch.cat([rows[torch.randint(len(rows), (count,), generator=draws)] for rows in own])
        self._trial.level = level
        self._loader.set_epoch(number)
        right = torch.zeros(len(tried), dtype=torch.float64, device=self._loader.device)
        with evaluating(self._model), autocast(self._precision, self._loader.device):
            for batch in self._loader:
                if batch.share > 0:
                    told = self._model(batch.inputs).logits.argmax(1) == batch.labels
                    right.index_add_(0, batch.labels, told.double())
        return sum_over_ranks(right).cpu() / count

    def state(self) -> dict[str, Tensor]:
        """The levels of every epoch so far, (E, C)."""
        return {"levels": self._history}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on after the last epoch of `state`."""
        self._history = state["levels"].cpu()
        if len(self._history):
            self._curriculum.levels = self._history[-1]

    def history(self) -> list[dict[str, Any]]:
        """A row for each epoch and class."""
        return [
            {"epoch": epoch, "class": label, "level": level}
            for epoch, levels in enumerate(self._history.tolist())
            for label, level in enumerate(levels)
        ]


def curriculum_of(augmentation: Augmentation) -> Curriculum | None:
    """The curriculum that the augmentation of the first view is; None if it is none."""
    first = augmentation.views[0]
    return first if isinstance(first, Curriculum) else None


def write_levels(loader: Loader[Any], folder: Path) -> None:
    """Writes levels.csv of a finished stage, where it had such levels."""
    for learner in loader.learners:
        if isinstance(learner, ClassLevels) and rank() == 0:
            write_metrics(folder / LEVELS, learner.history())
