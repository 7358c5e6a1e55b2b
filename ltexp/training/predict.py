"""What a model says of every sample of a split: the one path that every evaluation takes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ltexp.data.loader import Batch, Loader
from ltexp.distributed import broadcast_object, gather_objects, rank, rows_to_first
from ltexp.evaluation.metrics import Top1, merge_predictions, top1_of
from ltexp.models.model import Model
from ltexp.outputs import ModelOutput, in_float32

Arrays = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64]]


class Predictions(NamedTuple):
    """What a model says of the N samples of a split, in index order.

    Attributes:
        index: (N,) int64, positions in the split.
        logits: (N, C) float32.
        labels: (N,) int64.
        feature_norms: (N,) float32, the length of each sample's feature; NaN where the model hands over none.
    """

    index: npt.NDArray[np.int64]  # type: ignore[assignment]  # a tuple's own method of this name is of no use here
    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    feature_norms: npt.NDArray[np.float32]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The autocast context that Lightning uses for `precision` (32-true, bf16-mixed or 16-mixed)."""
    if precision == "32-true":
        return nullcontext()
    dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return torch.autocast(device.type, dtype=dtypes[precision])


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Within the block the model is in eval mode; afterwards it is as it was."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


class Collector:
    """What a model says of the samples of a split, batch by batch; each process keeps its own share.

    Every process has to call what gathers.

    Args:
        rows: samples of the split.
        whole: whether all of them will come.
    """

    def __init__(self, rows: int, whole: bool = True) -> None:
        self.rows, self.whole = rows, whole
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.empty: Tensor | None = None  # no rows of values, of their shape

    def add(self, batch: Batch, values: Tensor) -> None:
        """Keeps this process's rows (b, ...) of a batch; stand-ins of an empty share never count."""
        values = values.float()
        self.empty = values[:0]
        if batch.share > 0:
            self.parts.append((batch.index, values, batch.labels))

    def top1(self, logit_scale: float) -> Top1:
        """What metrics need, of all processes and on each, where the values are those of `logits_and_norm`."""
        index, labels = self._keys()
        values = [part.numpy() for _, part, _ in self.parts]
        found = [(*top1_of(part[:, :-1], logit_scale), part[:, -1]) for part in values]
        none = (np.empty(0, np.int64), np.empty(0), np.empty(0, np.float32))
        own = [np.concatenate(column) for column in zip(*(found or [none]), strict=True)]
        return Top1(*merge_predictions(gather_objects([index, labels, *own]), self.rows, self.whole))

    def merged(self) -> Arrays:
        """(index, values, labels) of all samples in index order on the first process, no rows on the others."""
        keys = gather_objects(self._keys())
        index, labels = merge_predictions(keys, self.rows, self.whole)
        assert self.empty is not None
        places = [torch.from_numpy(np.searchsorted(index, own)) for own, _ in keys]
        values = rows_to_first([part for _, part, _ in self.parts], self.empty, places, len(index))
        return (index, values.numpy(), labels) if rank() == 0 else (index[:0], values.numpy(), labels[:0])

    def predictions(self) -> Predictions:
        """The same as predictions, where the values are those of `logits_and_norm`."""
        index, values, labels = self.merged()
        return Predictions(index, np.ascontiguousarray(values[:, :-1]), labels, values[:, -1])

    def _keys(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(index, labels) of this process's samples, which leave the device."""
        self.parts = [(index.cpu(), values.cpu(), labels.cpu()) for index, values, labels in self.parts]
        none = torch.empty(0, dtype=torch.int64)
        index, labels = (torch.cat([none, *(part[column] for part in self.parts)]) for column in (0, 2))
        return index.numpy(), labels.numpy()


def predict(
    model: Model,
    loader: Loader[Any],
    precision: str,
    batches: int | None = None,
    examined: Callable[[Batch], Batch] | None = None,
) -> Predictions:
    """The predictions for every sample of the loader's split, on the first process.

    Args:
        model: evaluated in eval mode.
        loader: without sampler; each process holds its share.
        precision: as in `trainer.precision`; logits come back in float32.
        batches: only so many; None: all.
        examined: makes of each batch what the model is to answer (`Mixing.examined`); None: it is answered as it is.

    Stand-in rows of an empty share never count.
    """
    return collect(model, loader, precision, batches, examined).predictions()


def collect(
    model: Model,
    loader: Loader[Any],
    precision: str,
    batches: int | None = None,
    examined: Callable[[Batch], Batch] | None = None,
) -> Collector:
    """The same, each process's share with itself."""
    answer = model.classify if loader.feeds_classifier else model
    return _collect(model, loader, precision, lambda inputs: logits_and_norm(answer(inputs)), batches, examined)


def values_of_samples(
    model: Model, loader: Loader[Any], precision: str, value: Callable[[ModelOutput, Tensor], Tensor]
) -> Arrays:
    """(index, values (N,), labels) of every sample of the loader's split, on every process.

    Args:
        model: asked in eval mode.
        loader: without sampler.
        precision: as in `trainer.precision`.
        value: of an output in float32 and its labels, one number for each sample, (B,).
    """
    collector = Collector(loader.rows)
    with evaluating(model):
        for batch in loader:
            with autocast(precision, loader.device):
                output = model(batch.inputs)
            collector.add(batch, value(in_float32(output), batch.labels))
    found: Arrays = broadcast_object(collector.merged())  # the first process alone has them
    return found


def extract_features(model: Model, loader: Loader[Any], precision: str) -> Arrays:
    """(index, features (N, D) as the classifier reads them, labels) of every sample, as `predict` gives logits."""
    return _collect(model, loader, precision, model.features).merged()


def logits_and_norm(output: ModelOutput) -> Tensor:
    """(B, C + 1): the norm of the feature as a further column, so that both take one way to the other processes."""
    logits, features = output.logits.float(), output.features
    if features is None or features.ndim != 2:
        norm = logits.new_full((len(logits),), torch.nan)
    else:
        norm = features.float().flatten(1).norm(dim=1)
    return torch.cat([logits, norm[:, None]], dim=1)


def _collect(
    model: Model,
    loader: Loader[Any],
    precision: str,
    values_of: Callable[[Tensor], Tensor],
    batches: int | None = None,
    examined: Callable[[Batch], Batch] | None = None,
) -> Collector:
    collector = Collector(loader.rows, whole=batches is None or batches >= len(loader))
    with evaluating(model), autocast(precision, loader.device):
        for batch in islice(loader, batches):
            asked = batch if examined is None else examined(batch)
            collector.add(asked, values_of(asked.inputs))
    return collector


def batches_of(loader: Loader[Any], limit: float | None) -> int | None:
    """How many batches a limit of Lightning's lets through: a number, or a fraction of them; None: all."""
    if limit is None or (isinstance(limit, float) and limit == 1.0):
        return None
    return max(1, int(limit * len(loader))) if isinstance(limit, float) else limit
