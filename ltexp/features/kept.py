"""Extracted features that runs share: what a network says of the same samples is computed once."""

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltexp.config.identity import digest
from ltexp.data.loader import Loader
from ltexp.data.types import Split
from ltexp.distributed import broadcast_object, rank, world_size
from ltexp.errors import LtexpError
from ltexp.features.extraction import extract
from ltexp.features.statistics import ClassStatistics
from ltexp.files import atomic_write
from ltexp.lock import alone
from ltexp.models.model import Model

PART = 8192  # samples whose features are one file: what a killed run loses at most


class KeptFeatures:
    """A folder of features, part by part, under all that determines them.

    Args:
        folder: of these features alone, its name their identity; made when first written to.
        rows: N, the samples.
        images: a loader of those from one row to another, not augmented.

    Attributes:
        taken: how many samples' features were there already; None before `obtain`.
    """

    def __init__(self, folder: Path, rows: int, images: Callable[[int, int], Loader[Any]]) -> None:
        self.folder, self.rows, self.images = folder, rows, images
        self.taken: int | None = None

    def obtain(
        self, model: Model, precision: str, class_names: Sequence[str]
    ) -> tuple[Tensor, Tensor, ClassStatistics]:
        """As `extract`, on every process; parts that are not there are extracted and kept.

        Raises:
            TrainingError: see `extract`.
        """
        device, found = next(model.parameters()).device, []
        self.taken = 0
        with alone(self.folder.with_suffix(".lock"), "extracting these features"):
            for start in range(0, self.rows, PART):
                stop = min(start + PART, self.rows)
                part = broadcast_object(self._read(start, stop) if rank() == 0 else None)
                if part is None:
                    features, labels, _ = extract(model, self.images(start, stop), precision, class_names)
                    part = {"features": features.cpu(), "labels": labels.cpu()}
                    self._write(start, part)
                    if rank() == 0 and self.rows > PART:
                        print(f"features of {stop:,} of {self.rows:,} samples", flush=True)
                else:
                    self.taken += stop - start
                found.append(part)
        if rank() == 0 and self.taken:
            print(f"features of {self.taken:,} of {self.rows:,} samples taken from {self.folder}", flush=True)
        features, labels = (torch.cat([part[key] for part in found]).to(device) for key in ("features", "labels"))
        statistics = ClassStatistics(len(class_names), features.shape[1], device)
        for start in range(0, self.rows, PART):
            own = slice(start + rank(), start + PART, world_size())
            statistics.update(features[own], labels[own])
        statistics.merge()
        return features, labels, statistics

    def _read(self, start: int, stop: int) -> dict[str, Tensor] | None:
        """The part from that row on, if it is here and whole."""
        path = self._path(start)
        if not path.exists():
            return None
        try:
            part: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
            whole = len(part["features"]) == len(part["labels"]) == stop - start
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError):
            whole = False
        if not whole:
            print(f"{path} is damaged; it is extracted again", flush=True)
            return None
        return part

    def _write(self, start: int, part: dict[str, Tensor]) -> None:
        if rank() != 0:
            return
        try:
            with atomic_write(self._path(start)) as file:
                torch.save(part, file)
        except LtexpError as error:  # the run itself has them; only sharing them failed
            print(f"these features were not kept ({error})", flush=True)

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:09d}.pt"


class FeatureStore:
    """The features of one network that runs share, of any samples.

    Args:
        folder: that holds a folder for those of each set of samples.
        network: all that determines them beside the samples.
        loader: of a split, not augmented.
    """

    def __init__(self, folder: Path, network: Mapping[str, Any], loader: Callable[[Split], Loader[Any]]) -> None:
        self.folder, self.network, self.loader = folder, network, loader

    def of(self, split: Split, content: Sequence[Any]) -> KeptFeatures:
        """Those of a split, with what tells its samples from others'."""
        identity = digest({**self.network, "data": [*content, split.identity]})

        def images(start: int, stop: int) -> Loader[Any]:
            return self.loader(split.take(np.arange(start, stop)))

        return KeptFeatures(self.folder / identity, len(split), images)


def state_identity(module: torch.nn.Module) -> str:
    """A hash of all names and values of a module's state."""
    state = hashlib.blake2b(digest_size=16)
    for name, value in module.state_dict().items():
        state.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        state.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
