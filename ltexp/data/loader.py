"""Batches of a split in the order of a sampler, of which every process takes its share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from ltexp.data.augmentation import Augmentation, NoAugmentation
from ltexp.data.types import Split
from ltexp.randomness import generator, key_to_seed

LEAST_TO_TRAIN_ON = 2  # rows of a last batch: of one alone batch norm may have no variance
SMALL_REMAINDER = 8  # a last batch smaller than 1 / 8 of the others is not made
AnySplit = TypeVar("AnySplit", bound=Split)


class Batch(NamedTuple):
    """This process's rows of a global batch.

    Attributes:
        inputs: (b, ...), what the model reads; of images float32 (b, 3, H, W), normalised, with channels_last strides.
        labels: int64 (b,).
        index: int64 (b,), rows of the split (`split.index[...]` gives their positions in the source).
        share: by how much a mean over these rows counts so that the mean over processes is that of the global batch:
            b * processes / size, or 0.0 where the rows only stand in for an empty share.
        size: rows of the global batch.
        epoch, step: from 0.
        views: (V, b, ...), V versions of each sample, the first of them `inputs`; None: there is only that.
        streams: the stage's further batches of the same step, by name.
    """

    inputs: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # a tuple's own method of this name is of no use here
    share: float
    size: int
    epoch: int
    step: int
    views: Tensor | None = None
    streams: Mapping[str, "Batch"] = MappingProxyType({})


class Recipe(NamedTuple):
    """What this process's rows of a global batch are made of, by `Loader.make`.

    Attributes:
        index: int64 (b,), rows of the split.
        draws: these rows of what each view's augmentation drew for the epoch.
        rows: where they are in the epoch's order.
        share, size, epoch, step: the batch's.
        streams: the recipes of the stage's further batches.
    """

    index: Tensor  # type: ignore[assignment]
    draws: Sequence[dict[str, Tensor]]
    rows: slice
    share: float
    size: int
    epoch: int
    step: int
    streams: Mapping[str, "Recipe"] = MappingProxyType({})


class IndexSampler(Protocol):
    """What the loader asks of a sampler."""

    def indices(self, seed: int, epoch: int, max_epochs: int) -> Tensor:
        """int64 (L,): the epoch's order of rows, the same on every process."""


class Learner(Protocol):
    """What changes an augmentation or a sampler from one epoch to the next."""

    def before_epoch(self, epoch: int) -> None:
        """Called on every process before an epoch's first batch is made."""

    def state(self) -> dict[str, Tensor]:
        """What it has learned, for the checkpoint to resume from."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state`."""


def steps_of(rows: int, batch_size: int, least: int = LEAST_TO_TRAIN_ON) -> int:
    """The batches of so many rows, where a last one that is too small joins the batch before it.

    Args:
        rows: those of an epoch, 1 or more.
        batch_size: rows of a batch.
        least: rows of a last batch that is made, beside an eighth of the others.
    """
    steps, remainder = divmod(rows, batch_size)
    return steps + int(remainder >= max(least, batch_size / SMALL_REMAINDER) or steps == 0)


def stream_seed(seed: int, name: str) -> int:
    """The seed of the draws of a stream, of a stage with the seed `seed`."""
    return key_to_seed("stream", seed, name)


class Stretched:
    """As many rows as another loader's steps need: the sampler's order, followed by further orders of the same epoch.

    Args:
        sampler: whose orders they are.
        rows: a function that gives their number, asked in each epoch.
    """

    def __init__(self, sampler: IndexSampler, rows: Callable[[], int]) -> None:
        self.sampler, self.rows = sampler, rows

    def indices(self, seed: int, epoch: int, max_epochs: int) -> Tensor:
        """int64 (rows,)."""
        order, rows, number = self.sampler.indices(seed, epoch, max_epochs), self.rows(), 1
        while len(order) < rows:
            more = self.sampler.indices(key_to_seed("again", seed, number), epoch, max_epochs)
            order, number = torch.cat([order, more]), number + 1
        return order[:rows]


class EpochSetter:
    """Lets Lightning announce the epoch, which it does to a loader's `sampler`."""

    def __init__(self, loader: "Loader[Any]") -> None:
        self._loader = loader

    def set_epoch(self, epoch: int) -> None:
        """Hands the epoch on to the loader."""
        self._loader.set_epoch(epoch)


class Loader(ABC, Generic[AnySplit]):
    """Global batches in the sampler's order, of which every process takes its share.

    The order and all augmentation draws of an epoch are keyed by (seed, epoch), so an epoch can be repeated, and
    together the processes see exactly the samples, crops and flips that one process sees. Global batch s holds the
    positions from s * batch_size on; process r takes every `world_size`-th of them, from the r-th on. The last batch
    may be smaller.

    Args:
        split: what batches are made of.
        batch_size: rows of a global batch, over all processes.
        device: where batches are made.
        augmentation: None: samples as they are.
        sampler: None: every row once, in order (evaluation).
        seed: of the draws.
        max_epochs: handed to the sampler.
        shuffle_within: whether each global batch is put into a random order, so that rows at fixed distances are
            random partners of each other (mixing).
        rank, world_size: this process's number and how many there are.

    Attributes:
        samples: what the batches are made of, the same word as an augmentation's.
        streams: further loaders, of as many steps, whose batches come beside this one's.
        learners: of the augmentation and the sampler, where they depend on what the model has learned.
        feeds_classifier: whether batches are features, which the classifier reads, and not what the backbone does.
        replayable: whether `make` does the same operations on the device for every recipe, but for the augmentation.
    """

    samples: ClassVar[str] = ""
    feeds_classifier: ClassVar[bool] = False
    replayable: ClassVar[bool] = False

    def __init__(
        self,
        split: AnySplit,
        *,
        batch_size: int,
        device: torch.device | str,
        augmentation: Augmentation | None = None,
        sampler: IndexSampler | None = None,
        seed: int = 0,
        max_epochs: int = 1,
        shuffle_within: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert batch_size >= 1, batch_size
        assert 0 <= rank < world_size, (rank, world_size)
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.epoch = 0
        self.sampler = EpochSetter(self)
        self.augmentation = augmentation if augmentation is not None else NoAugmentation()
        self.streams: dict[str, Loader[Any]] = {}
        self._index_sampler = sampler
        self._seed, self._max_epochs, self._shuffle_within = seed, max_epochs, shuffle_within
        self._rank, self._world_size = rank, world_size
        self._own_labels = torch.from_numpy(split.labels)
        self._labels = self._own_labels.to(self.device)
        self.learners: list[Learner] = []
        self._plan_cache: tuple[int, Tensor, list[dict[str, Tensor]]] | None = None

    @abstractmethod
    def _inputs(self, index: Tensor, draws: dict[str, Tensor], view: int) -> Tensor:
        """What the model reads of some rows, in one of the augmentation's views.

        Args:
            index: int64 (b,) rows of the split, on the device.
            draws: these rows of what the view's augmentation drew for the epoch, on the device.
            view: its number, from 0; all are asked for in turn.
        """

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, from 0, that the next iteration is of."""
        self.epoch = epoch

    def end_epoch(self, epoch: int) -> None:
        """Called after an epoch's last step, on every process, for a loader that learns from one epoch to the next."""

    def history(self) -> list[dict[str, Any]]:
        """Rows for a file beside the stage's metrics; none: no file."""
        return []

    def state(self) -> dict[str, Tensor]:
        """What such a loader has learned, for the checkpoint to resume from."""
        return {name: value for learner in self.learners for name, value in learner.state().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state`."""
        for learner in self.learners:
            learner.load_state(state)

    def close(self) -> None:
        """Ends what a loader keeps at work between epochs; a further iteration starts it anew."""
        for loader in self.streams.values():
            loader.close()

    @property
    def rows(self) -> int:
        """Rows of the epoch over all processes."""
        return len(self._plan()[0])

    def __len__(self) -> int:
        """Steps of the epoch, the same on every process."""
        return self._steps_of(self.rows)

    def _steps_of(self, rows: int) -> int:
        return steps_of(rows, self.batch_size, least=1 if self._index_sampler is None else LEAST_TO_TRAIN_ON)

    def __iter__(self) -> Iterator[Batch]:
        for recipe in self.recipes():
            yield self.make(recipe)

    def recipes(self) -> Iterator[Recipe]:
        """What the epoch's batches are made of, each to be made before the next is asked for."""
        epoch = self.epoch
        for learner in self.learners:
            learner.before_epoch(epoch)
            self._plan_cache = None  # made of what was learned before, where the epoch's length was asked for
        steps = len(self)
        order, draws = self._plan()
        beside = {name: loader.at(epoch).recipes() for name, loader in self.streams.items()}
        for step in range(steps):
            rows, own, size = self._share(step)
            drawn = [{name: values[rows] for name, values in view.items()} for view in draws]
            streams = {name: next(recipes) for name, recipes in beside.items()}
            yield Recipe(order[rows], drawn, rows, own * self._world_size / size, size, epoch, step, streams)

    def make(self, recipe: Recipe) -> Batch:
        """The batch of a recipe."""
        labels = self._labels.index_select(0, recipe.index)
        inputs, views = self._batch_inputs(recipe), None
        if len(inputs) > len(labels):
            views = inputs.view(-1, len(labels), *inputs.shape[1:])
            inputs = inputs[: len(labels)]
        streams = {name: self.streams[name].make(own) for name, own in recipe.streams.items()}
        return Batch(inputs, labels, recipe.index, recipe.share, recipe.size, recipe.epoch, recipe.step, views, streams)

    def at(self, epoch: int) -> Self:
        """This loader, at the beginning of an epoch."""
        self.set_epoch(epoch)
        return self

    def _share(self, step: int) -> tuple[slice, int, int]:
        """(positions in the order, how many of them are this process's, rows of all) of the batch `step`.

        A process without rows gets the batch's last one, which stands in and is not its own.
        """
        start, stop = self._bounds(step, self.rows)
        own = len(range(start + self._rank, stop, self._world_size))
        rows = slice(start + self._rank, stop, self._world_size) if own else slice(stop - 1, stop)
        return rows, own, stop - start

    def _bounds(self, step: int, rows: int) -> tuple[int, int]:
        """Where the batch `step` starts and stops in an order of so many rows."""
        start = step * self.batch_size
        return start, rows if step == self._steps_of(rows) - 1 else start + self.batch_size

    def _batch_inputs(self, recipe: Recipe) -> Tensor:
        """What the model reads of the rows of a recipe, view after view."""
        views = [self._inputs(recipe.index, drawn, view) for view, drawn in enumerate(recipe.draws)]
        return views[0] if len(views) == 1 else torch.cat(views)

    def _plan(self) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """The epoch's order (L,) and the draws (L, ...) of each view's augmentation, on the device."""
        if self._plan_cache is None or self._plan_cache[0] != self.epoch:
            if self._index_sampler is None:
                order = torch.arange(len(self._labels))
            else:
                order = self._index_sampler.indices(self._seed, self.epoch, self._max_epochs)
            if self._shuffle_within:
                order = self._shuffled(order)
            random = generator("augment", self._seed, self.epoch)
            labels = self._own_labels[order]
            drawn = [view.draws_of(labels, random) for view in self.augmentation.views]
            draws = [{name: values.to(self.device) for name, values in view.items()} for view in drawn]
            self._plan_cache = (self.epoch, order.to(self.device), draws)
        return self._plan_cache[1:]

    def _shuffled(self, order: Tensor) -> Tensor:
        """The order with the rows of each global batch in a random order of their own."""
        draws = generator("partners", self._seed, self.epoch)
        bounds = (self._bounds(step, len(order)) for step in range(self._steps_of(len(order))))
        within = [start + torch.randperm(stop - start, generator=draws) for start, stop in bounds]
        return order[torch.cat(within)]
