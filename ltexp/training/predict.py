"""What a model says of every sample of a split: the one path that every evaluation takes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ltexp.data.loader import Loader
from ltexp.distributed import gather_objects
from ltexp.evaluation.metrics import merge_predictions
from ltexp.models.model import Model
from ltexp.outputs import ModelOutput

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


def predict(model: Model, loader: Loader[Any], precision: str) -> Predictions:
    """The predictions for every sample of the loader's split, on every process.

    Args:
        model: evaluated in eval mode.
        loader: without sampler; each process holds its share.
        precision: as in `trainer.precision`; logits come back in float32.

    Stand-in rows of an empty share never count.
    """
    index, values, labels = _collect(model, loader, precision, lambda images: _logits_and_norm(model(images)))
    return Predictions(index, np.ascontiguousarray(values[:, :-1]), labels, values[:, -1])


def extract_features(model: Model, loader: Loader[Any], precision: str) -> Arrays:
    """(index, features (N, D) as the classifier reads them, labels) of every sample, as `predict` gives logits."""
    return _collect(model, loader, precision, model.features)


def _logits_and_norm(output: ModelOutput) -> Tensor:
    """(B, C + 1): the norm of the feature as a further column, so that both take one way to the other processes."""
    logits, features = output.logits.float(), output.features
    if features is None or features.ndim != 2:
        norm = logits.new_full((len(logits),), torch.nan)
    else:
        norm = features.float().flatten(1).norm(dim=1)
    return torch.cat([logits, norm[:, None]], dim=1)


def _collect(model: Model, loader: Loader[Any], precision: str, values_of: Callable[[Tensor], Tensor]) -> Arrays:
    index, values, labels = [], [], []
    with evaluating(model), autocast(precision, loader.device):
        for batch in loader:
            if batch.share > 0:
                index.append(batch.index)
                values.append(values_of(batch.inputs).float())
                labels.append(batch.labels)
    width = values[0].shape[1] if values else 0
    own = (
        torch.cat(index).cpu().numpy() if index else np.empty(0, np.int64),
        torch.cat(values).cpu().numpy() if values else np.empty((0, width), np.float32),
        torch.cat(labels).cpu().numpy() if labels else np.empty(0, np.int64),
    )
    parts = [part for part in gather_objects(own) if len(part[0])]
    merged: Arrays = merge_predictions(parts, loader.rows)
    return merged
