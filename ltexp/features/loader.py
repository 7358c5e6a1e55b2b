"""Batches of features: those of the training samples, extracted once an epoch, and those generated from them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ltexp.data.loader import Loader, Recipe
from ltexp.data.types import Split
from ltexp.distributed import sum_over_ranks
from ltexp.features.bank import FeatureBank
from ltexp.features.extraction import extract
from ltexp.features.generation import Generation
from ltexp.features.kept import KeptFeatures
from ltexp.features.source import ExtractedFeatures
from ltexp.models.model import Model
from ltexp.randomness import generator
from ltexp.training.predict import autocast, evaluating

CHUNK = 2**26  # numbers that are generated at a time: 256 MiB


class FeatureLoader(Loader[Split]):
    """Global batches of features as the classifier reads them, of which every process takes its share.

    At the start of an epoch every training sample is augmented and goes once through the backbone, in eval mode; each
    process then holds the features of all. Further features are generated a chunk of batches at a time: their number
    may be many times what fits into memory. All draws are keyed by (seed, epoch, chunk).

    Args:
        split: labels of the N extracted features, then those of the G generated ones.
        images: the samples whose features are extracted, in the order of their labels, each once an epoch.
        scored: samples that keep the source's score; None: there are none.
        model: whose backbone extracts, and whose classifier is scored.
        source: of the generated features, started.
        stage1: gives the model that the backbone was trained in, with its own classifier; asked where the source
            compares its score with that model's.
        precision: as in `trainer.precision`.
        fixed: whether the images are the same in every epoch, so that once is enough.
        class_names: for messages.
        kept: where the features are shared with other runs; None: they are this run's alone.
        settings: see `Loader`.
    """

    feeds_classifier = True

    def __init__(
        self,
        split: Split,
        *,
        images: Loader[Any],
        scored: Loader[Any] | None,
        model: Model,
        source: ExtractedFeatures,
        stage1: Callable[[], Model],
        precision: str,
        fixed: bool,
        class_names: Sequence[str],
        kept: KeptFeatures | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(split, **settings)
        self._images, self._scored = images, scored
        self._model, self._stage1, self._precision, self._fixed = model, stage1, precision, fixed
        self.source, self._class_names, self._kept = source, class_names, kept
        self._steps = max(1, CHUNK // (model.backbone.feature_dim * self.batch_size))
        self._bank: FeatureBank
        self._extracted = False
        self._generation: Generation | None = None
        self._chunk: tuple[int, Tensor, Tensor] | None = None

    def recipes(self) -> Iterator[Recipe]:
        self._prepare(self.epoch)
        yield from super().recipes()

    def _prepare(self, epoch: int) -> None:
        self._chunk = self._generation = None  # the last epoch's are gone before this one's come
        if not (self._fixed and self._extracted):
            self._images.set_epoch(epoch)
            if self._kept is None:
                found = extract(self._model, self._images, self._precision, self._class_names)
            else:
                found = self._kept.obtain(self._model, self._precision, self._class_names)
            self._bank = FeatureBank(*found)
            self._extracted = True
        self._generation = self.source.plan(self._bank, epoch, self._seed)

    def _inputs(self, index: Tensor, draws: dict[str, Tensor], view: int) -> Tensor:
        return self._bank.features[self._bank.place[index]]

    def _batch_inputs(self, recipe: Recipe) -> Tensor:
        if self._generation is None:
            return super()._batch_inputs(recipe)
        rows, number = recipe.rows, recipe.step // self._steps
        start = number * self._steps * self.batch_size
        if self._chunk is None or self._chunk[0] != number:
            self._chunk = None
            self._chunk = (number, *self._generate(number, start, self._generation))
        _, features, place = self._chunk
        return features[place[rows.start - start : rows.stop - start : rows.step]]

    def _generate(self, number: int, start: int, generation: Generation) -> tuple[Tensor, Tensor]:
        """This process's features of a chunk of batches, and where among them each position of the chunk is."""
        steps = range(number * self._steps, min((number + 1) * self._steps, len(self)))
        shares = [self._share(step)[0] for step in steps]
        stop = self.rows if steps.stop == len(self) else steps.stop * self.batch_size
        index = self._plan()[0][start:stop]
        own = torch.cat([torch.arange(share.start, share.stop, share.step or 1) for share in shares]) - start
        own = own.to(self.device)
        place = torch.full((len(index),), -1, device=self.device)
        place[own] = torch.arange(len(own), device=self.device)
        extracted = len(self._bank.features)
        is_made = index >= extracted
        made = is_made.nonzero().flatten()
        mine = (place[made] >= 0).nonzero().flatten()
        features = torch.empty(len(own), self._bank.features.shape[1], device=self.device)
        real = ~is_made[own]
        features[real] = self._bank.features[self._bank.place[index[own][real]]]
        draws = generator("generate", self._seed, self.epoch, number, device=self.device)
        features[~real] = generation.generate(index[made] - extracted, mine, draws)
        return features, place

    def examples(self, beta: dict[int, float], most: int) -> tuple[Tensor, Tensor]:
        """(features (M, D), labels (M,)): up to `most` generated features of each class of which `beta` gives the β."""
        self._prepare(self.epoch)
        assert self._generation is not None, "this source makes no features"
        labels, values = self._generation.labels, self._generation.beta.clone()
        values[list(beta)] = torch.tensor(list(beta.values()), device=self.device)
        within = torch.arange(len(labels), device=self.device) - torch.searchsorted(labels, labels)
        wanted = ((within < most) & self._generation.is_tail[labels]).nonzero().flatten()
        draws = generator("examples", self._seed, device=self.device)
        mine = torch.arange(len(wanted), device=self.device)
        return replace(self._generation, beta=values).generate(wanted, mine, draws), labels[wanted]

    def end_epoch(self, epoch: int) -> None:
        """Tells the source how each class does on the samples that keep the score."""
        if self._scored is not None:
            if epoch == 0 and self.source.compares_with_stage1:
                self.source.set_reference(class_scores(self._stage1(), self._scored, self._precision))
            score = class_scores(self._model, self._scored, self._precision)
            self.source.end_epoch(epoch, score)

    def history(self) -> list[dict[str, Any]]:
        return self.source.history()

    def state(self) -> dict[str, Tensor]:
        """The source's."""
        return self.source.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See `state`."""
        self.source.load_state(state)


class StoredFeatures(Loader[Split]):
    """The kept features of a split, each once in its order: what an evaluation of the classifier reads.

    Args:
        split: their labels and positions.
        features: (N, D), asked for once.
        settings: see `Loader`.
    """

    feeds_classifier = True

    def __init__(self, split: Split, features: Callable[[], Tensor], **settings: Any) -> None:
        super().__init__(split, **settings)
        self._obtain = cache(features)

    def _inputs(self, index: Tensor, draws: dict[str, Tensor], view: int) -> Tensor:
        return self._obtain()[index]


def class_scores(model: Model, loader: Loader[Any], precision: str) -> Tensor:
    """(C,) float64 mean probability of the true class over the samples of each class, NaN for a class without any.

    Sums over all processes in float64, so that shares cannot be seen.
    """
    classes = model.classifier.num_classes
    sums = torch.zeros(2, classes, dtype=torch.float64, device=loader.device)
    with evaluating(model), autocast(precision, loader.device):
        for batch in loader:
            if batch.share > 0:
                output = model(batch.inputs)
                logits = output.logit_scale * output.logits.double()
                right = logits.softmax(1).gather(1, batch.labels[:, None]).squeeze(1)
                sums[0].index_add_(0, batch.labels, right)
                sums[1].index_add_(0, batch.labels, torch.ones_like(right))
    total = sum_over_ranks(sums)
    return total[0] / total[1]
