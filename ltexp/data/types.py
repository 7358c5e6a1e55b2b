"""What a dataset is made of: the arrays of its source, and the long-tailed subset that a run trains on."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """The samples of a split; a subclass says what a sample is.

    Attributes:
        labels: int64 (N,), from 0.
        index: int64 (N,), each sample's position in the source's split.
        loader: dotted path of the `ltexp.data.loader.Loader` that makes batches of such a split; imported when one is
            needed, since it needs torch.
        unit: what one sample is called, in the plural.
    """

    labels: Ints
    index: Ints
    loader: ClassVar[str]
    unit: ClassVar[str]

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self) -> str:
        """What a sample is like, in a few words."""
        raise NotImplementedError

    def where(self, row: int) -> str:
        """How to find the sample of a row, for messages."""
        return f"number {self.index[row]}"

    def missing(self) -> Ints:
        """The rows whose sample is not there; none of one in memory is."""
        return np.empty(0, dtype=np.int64)

    @property
    def identity(self) -> str:
        """A hash of the samples, their labels and their positions; of files, of their names."""
        arrays = [value for field in fields(self) if isinstance(value := getattr(self, field.name), np.ndarray)]
        state = hashlib.blake2b(digest_size=10)
        for array in arrays:
            state.update(f"{array.dtype.str}{array.shape}".encode())
            state.update(np.ascontiguousarray(array).data)
        return state.hexdigest()

    def take(self, rows: npt.NDArray[Any]) -> Self:
        """A part of the split: the rows of a mask (N,), or of positions in that order."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value[rows] for name, value in values.items() if isinstance(value, np.ndarray)})


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSplit(Split):
    """Images in memory.

    Attributes:
        images: uint8 (N, H, W, 3), RGB.
    """

    images: Images
    loader: ClassVar[str] = "ltexp.data.images.loader.ImageLoader"
    unit: ClassVar[str] = "images"

    def describe(self) -> str:
        """Height and width."""
        return f"{self.images.shape[1]}x{self.images.shape[2]} pixels"


class RawDataset(Protocol):
    """A whole dataset in its own order, before any subset is taken."""

    class_names: tuple[str, ...]
    unit: ClassVar[str]

    @property
    def labels(self) -> dict[str, Ints]:
        """int64 (N,) of each split that there is, positions in `class_names`."""

    def describe(self) -> str:
        """What a sample is like, in a few words."""


@dataclass(frozen=True, eq=False)
class SourceArrays:
    """A whole dataset in its own order, before any subset is taken; arrays may be memory-mapped.

    Attributes:
        train_images: uint8 (N, H, W, 3), RGB; so is `test_images`, with the same H and W.
        train_labels: int64 (N,), positions in `class_names`; so is `test_labels`. A reader may give any integers:
            `ltexp.data.intake` makes them int64.
        class_names: one for each label.
        unit: what one sample is called, in the plural.
    """

    train_images: Images
    train_labels: Ints
    test_images: Images
    test_labels: Ints
    class_names: tuple[str, ...]
    unit: ClassVar[str] = "images"

    def describe(self) -> str:
        """What a sample is like, in a few words."""
        return f"{self.train_images.shape[1]}x{self.train_images.shape[2]} pixels"

    @property
    def labels(self) -> dict[str, Ints]:
        """By split."""
        return {"train": self.train_labels, "test": self.test_labels}


class Unreadable(NamedTuple):
    """A sample that cannot be read.

    Attributes:
        split: its name.
        path: its file's path, relative to the dataset's folder.
        what: `are missing` or `cannot be read`.
        text: where it is named, and why.
    """

    split: str
    path: bytes
    what: str
    text: str


class Source(ABC):
    """Where a dataset's samples come from; `source` of a file in conf/dataset/ names one."""

    @abstractmethod
    def inspect(self, root: Path) -> tuple[Any, list[str]]:
        """The dataset under the data root `root`, and everything that is wrong and what to do about it, one line each.

        If anything is wrong there is no dataset but None.
        """

    def open(self, root: Path) -> Any:
        """The dataset; see `ltexp.data.intake.open_source` for the errors."""
        from ltexp.data.intake import open_source  # which imports this class

        return open_source(self, root, object)

    def place(self, root: Path) -> str:
        """What an error begins with where the problems do not say where they are, such as `data/cifar10: `."""
        return ""

    def notes(self, opened: Any) -> list[str]:
        """What else to know about a dataset that `open` gave, one line each."""
        return []

    def unreadable(self, opened: Any, decode: bool) -> list["Unreadable"]:
        """The samples of a dataset that `open` gave which are not there or, with `decode`, cannot be read."""
        return []


@dataclass(frozen=True, eq=False)
class LongTailedData:
    """A dataset as a run uses it, with C classes.

    Attributes:
        name: the dataset's name, e.g. `cifar100_lt`.
        imbalance: `longtail`, `step` or `balanced`; `given`: all that there is.
        imbalance_ratio: largest over smallest class as asked for; 1.0 for `balanced`; of `given` as it is.
        train: the training samples, sorted by class.
        validation: the dataset's own, or held out of the training images and sorted by class; None if there is none.
        test: the test samples, in the source's order.
        class_names: C names.
        subset_hash: a hash of the positions of all chosen training images (held-out ones included) in the source.
        content_hash: a hash of the samples and labels of `train`.
        test_hash: a hash of those of `test`, and of the class names.
        validation_contents: a hash of what the files of `validation` hold; empty where it is in memory.
        preprocessing: keywords that the loaders of all splits take; of images: `channel_mean` and `channel_std`.
        kind: what a sample is, `images` or what else a backbone `reads`.
        backbone_settings: keywords that the backbone takes from the data, such as the size of a vocabulary.
        loading: keywords that the loaders take as well, which say how and not what they load: of files, `workers` and
            `cache`.
        facts: what else there is to know about the data, for the record.
        last_drawn: gives so many images of each class from the end of the order whose beginning `train` is: mostly
            images that the subset leaves out. None where the dataset cannot say.
        notes: what a command says of it before it uses it, one line each.
    """

    name: str
    imbalance: str
    imbalance_ratio: float
    train: Split
    validation: Split | None
    test: Split
    class_names: tuple[str, ...]
    subset_hash: str
    content_hash: str
    preprocessing: dict[str, Any]
    kind: str = "images"
    backbone_settings: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    test_hash: str = ""
    validation_contents: str = ""
    last_drawn: Callable[[int], Split] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @cached_property
    def class_counts(self) -> Ints:
        """int64 (C,), the images of each class in `train`."""
        return np.bincount(self.train.labels, minlength=self.num_classes).astype(np.int64)

    @cached_property
    def validation_hash(self) -> str:
        """A hash of the samples of `validation`; empty: there are none."""
        return "" if self.validation is None else f"{self.validation.identity}{self.validation_contents}"

    @property
    def splits(self) -> dict[str, Split]:
        """Those that there are, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}
