"""Features of all samples of a loader, on every process."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ltexp.data.loader import Loader
from ltexp.data.tail.profile import name_class
from ltexp.distributed import gather_batch
from ltexp.errors import TrainingError
from ltexp.features.statistics import ClassStatistics
from ltexp.models.model import Model
from ltexp.training.predict import autocast, evaluating


def extract(
    model: Model, loader: Loader[Any], precision: str, class_names: Sequence[str]
) -> tuple[Tensor, Tensor, ClassStatistics]:
    """(features (N, D) float32, labels (N,), their statistics) of all samples of a loader, on every process.

    Raises:
        TrainingError: for features that are not numbers, or below 0 where the model raises them to a power.
    """
    rows, width, device = loader.rows, model.backbone.feature_dim, loader.device
    features = torch.empty(rows, width, device=device)
    labels = torch.empty(rows, dtype=torch.int64, device=device)
    negative, broken = (torch.zeros(rows, dtype=torch.bool, device=device) for _ in range(2))
    statistics = ClassStatistics(len(class_names), width, device)
    start = 0
    with evaluating(model):
        for batch in loader:
            with autocast(precision, device):
                plain = model.backbone(batch.inputs).float()
            found = model.transform(plain)
            if batch.share > 0:
                statistics.update(found, batch.labels)
            part = slice(start, start + batch.size)
            features[part] = gather_batch(found, batch.size)
            labels[part] = gather_batch(batch.labels, batch.size)
            negative[part] = gather_batch((plain < 0).any(1), batch.size)
            broken[part] = gather_batch(~plain.isfinite().all(1), batch.size)
            start += batch.size
    statistics.merge()
    if broken.any():
        raise TrainingError(
            "the backbone gives features that are not finite, first for class "
            f"{_first(broken, labels, class_names)}: train it with a lower learning rate, or trainer.precision=32-true"
        )
    if model.feature_power != 1 and negative.any():
        raise TrainingError(
            f"feature_power={model.feature_power} needs features of 0 or more, and the backbone gives negative ones, "
            f"first for class {_first(negative, labels, class_names)}: set the stage's feature_power=1"
        )
    return features, labels, statistics


def _first(marked: Tensor, labels: Tensor, class_names: Sequence[str]) -> str:
    return name_class(int(labels[marked.nonzero()[0, 0]]), class_names)
