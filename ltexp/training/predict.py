"""What a model says of every sample of a split: the one path that every evaluation takes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ltexp.data.loader import Loader
from ltexp.distributed import gather_objects
from ltexp.evaluation.metrics import merge_predictions
from ltexp.models.model import Model

Arrays = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64]]


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


def predict(model: Model, loader: Loader[Any], precision: str) -> Arrays:
    """(index, logits, labels) of every sample of the loader's split, in index order, on every process.

    Args:
        model: evaluated in eval mode.
        loader: without sampler; each process holds its share.
        precision: as in `trainer.precision`; logits come back in float32.

    Returns:
        index (N,), logits (N, C), labels (N,). Stand-in rows of an empty share never count.
    """
    return _collect(model, loader, precision, features=False)


def extract_features(model: Model, loader: Loader[Any], precision: str) -> Arrays:
    """(index, features (N, D), labels) of every sample, as `predict` gives logits."""
    return _collect(model, loader, precision, features=True)


def _collect(model: Model, loader: Loader[Any], precision: str, features: bool) -> Arrays:
    index, values, labels = [], [], []
    with evaluating(model), autocast(precision, loader.device):
        for batch in loader:
            if batch.share > 0:
                found = model.backbone(batch.inputs) if features else model(batch.inputs).logits
                index.append(batch.index)
                values.append(found.float())
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
