"""What a dataset is made of: the arrays of its source, and the long-tailed subset that a run trains on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """Images in memory.

    Attributes:
        images: uint8 (N, H, W, 3), RGB.
        labels: int64 (N,), from 0.
        index: int64 (N,), each image's position in the source's split.
    """

    images: Images
    labels: Ints
    index: Ints

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class SourceArrays:
    """A whole dataset in its own order, before any subset is taken; arrays may be memory-mapped.

    Attributes:
        train_images: uint8 (N, H, W, 3), RGB; so is `test_images`, with the same H and W.
        train_labels: int64 (N,), positions in `class_names`; so is `test_labels`.
        class_names: one for each label.
    """

    train_images: Images
    train_labels: Ints
    test_images: Images
    test_labels: Ints
    class_names: tuple[str, ...]


class Source(Protocol):
    """Where a dataset's images come from; `source` of a file in conf/dataset/ names one."""

    def open(self, root: Path) -> SourceArrays:
        """The dataset under the data root `root`. Raises a DataError that says what is missing or wrong."""

    def problems(self, root: Path) -> list[str]:
        """Everything that keeps `open` from working, one line each; empty when nothing does."""


@dataclass(frozen=True, eq=False)
class LongTailedData:
    """A dataset as a run uses it, with C classes.

    Attributes:
        name: of the dataset, e.g. `cifar100_lt`.
        imbalance: `longtail`, `step` or `balanced`.
        imbalance_ratio: largest over smallest class as asked for; 1.0 for `balanced`.
        train: sorted by class.
        validation: held out of the training images, sorted by class; None unless asked for.
        test: in the source's order.
        class_names: C names.
        class_counts: int64 (C,), the images of each class in `train`.
        subset_hash: of the positions of all chosen training images (held-out ones included) in the source.
        content_hash: of the images and labels of `train`.
        channel_mean, channel_std: of R, G and B, for images scaled to [0, 1].
    """

    name: str
    imbalance: str
    imbalance_ratio: float
    train: Split
    validation: Split | None
    test: Split
    class_names: tuple[str, ...]
    class_counts: Ints
    subset_hash: str
    content_hash: str
    channel_mean: tuple[float, float, float]
    channel_std: tuple[float, float, float]

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)
