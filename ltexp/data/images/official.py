"""Reads CIFAR-10 and CIFAR-100 from the archives that their authors publish, or from such an archive unpacked.

An archive is read only if its MD5 sum is the published one. The Python versions are pickles: beside the sum, the
unpickler allows nothing but plain containers and NumPy arrays.
"""

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.data.types import SourceArrays
from ltexp.errors import DataError

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Form:
    """One published form of a dataset.

    Attributes:
        archive, md5: name and sum of the archive.
        folder: where its files lie in it.
        train, test: the data files in order, with their MD5 sums (None: not published).
        names: the file of class names, with its sum.
        label_key, names_key: the keys in the pickles of the Python form.
        label_bytes: before the pixels of each image in the binary form, the label being the last; None: Python form.
    """

    archive: str
    md5: str
    folder: str
    train: Mapping[str, str | None]
    test: Mapping[str, str | None]
    names: Mapping[str, str | None]
    label_key: str = ""
    names_key: str = ""
    label_bytes: int | None = None

    @property
    def files(self) -> dict[str, str | None]:
        """All files of this form, with their sums."""
        return {**self.train, **self.test, **self.names}


@dataclass(frozen=True)
class OfficialSet:
    """A dataset as published; `first_labels` are those of its first train images, by which its order is known."""

    classes: int
    train_images: int
    test_images: int
    first_labels: tuple[int, ...]
    python: Form
    binary: Form


OFFICIAL = {
    "cifar10": OfficialSet(
        classes=10,
        train_images=50_000,
        test_images=10_000,
        first_labels=(6, 9, 9, 4, 1, 1, 2, 7, 8, 3),
        python=Form(
            archive="cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            folder="cifar-10-batches-py",
            train={
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            test={"test_batch": "40351d587109b95175f43aff81a1287e"},
            names={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
            label_key="labels",
            names_key="label_names",
        ),
        binary=Form(
            archive="cifar-10-binary.tar.gz",
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            folder="cifar-10-batches-bin",
            train={f"data_batch_{number}.bin": None for number in range(1, 6)},
            test={"test_batch.bin": None},
            names={"batches.meta.txt": None},
            label_bytes=1,
        ),
    ),
    "cifar100": OfficialSet(
        classes=100,
        train_images=50_000,
        test_images=10_000,
        first_labels=(19, 29, 0, 11, 1, 86, 90, 28, 23, 31),
        python=Form(
            archive="cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            folder="cifar-100-python",
            train={"train": "16019d7e3df5f24257cddd939b257f8d"},
            test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
            names={"meta": "7973b15100ade9c7d40fb424638fde48"},
            label_key="fine_labels",
            names_key="fine_label_names",
        ),
        binary=Form(
            archive="cifar-100-binary.tar.gz",
            md5="03b5dce01913d631647c71ecec9e9cb8",
            folder="cifar-100-binary",
            train={"train.bin": None},
            test={"test.bin": None},
            names={"fine_label_names.txt": None},
            label_bytes=2,
        ),
    ),
}


def read_archive(path: Path, official: OfficialSet) -> SourceArrays:
    """The arrays of a published archive, in its order.

    Raises:
        DataError: if the file is none of the dataset's archives, by its MD5 sum.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    forms = [form for form in (official.python, official.binary) if form.md5 == found]
    if not forms:
        expected = " or ".join(f"{form.md5} ({form.archive})" for form in (official.python, official.binary))
        raise DataError(f"{path} is not the published archive, or incomplete: its MD5 sum is {found}, not {expected}")
    wanted = {f"{forms[0].folder}/{name}": name for name in forms[0].files}
    files = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name in wanted else None
            if content is not None:
                files[wanted[member.name]] = content.read()
    return _decode(path, official, forms[0], files)


def find_folder(folder: Path, official: OfficialSet) -> Form | None:
    """The form whose files `folder` holds, or None."""
    for form in (official.python, official.binary):
        if all((folder / name).is_file() for name in form.files):
            return form
    return None


def read_folder(folder: Path, official: OfficialSet, form: Form) -> SourceArrays:
    """The arrays of an unpacked archive, in its order.

    Raises:
        DataError: if a file is not the published one.
    """
    files = {name: (folder / name).read_bytes() for name in form.files}
    for name, md5 in form.files.items():
        found = hashlib.md5(files[name], usedforsecurity=False).hexdigest()
        if md5 is not None and found != md5:
            raise DataError(f"{folder / name} is damaged or not the published file: its MD5 sum is {found}, not {md5}")
    return _decode(folder, official, form, files)


def _decode(path: Path, official: OfficialSet, form: Form, files: Mapping[str, bytes]) -> SourceArrays:
    missing = [name for name in form.files if name not in files]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}")
    decode = _decode_python if form.label_bytes is None else _decode_binary
    names_file = files[next(iter(form.names))]
    if form.label_bytes is None:
        names = [str(name) for name in load_restricted(names_file)[form.names_key]]
    else:
        names = [line.strip() for line in names_file.decode("utf-8").splitlines() if line.strip()]
    splits = []
    for wanted, count in ((form.train, official.train_images), (form.test, official.test_images)):
        images, labels = decode(path, form, [(name, files[name]) for name in wanted])
        if len(images) != count:
            raise DataError(f"{path}: {', '.join(wanted)} hold {len(images)} images, not {count}: truncated?")
        splits += [images, labels]
    return SourceArrays(splits[0], splits[1], splits[2], splits[3], tuple(names))


def _decode_python(path: Path, form: Form, files: Sequence[tuple[str, bytes]]) -> tuple[Any, Any]:
    batches = [load_restricted(content) for _, content in files]
    pixels = np.concatenate([np.asarray(batch["data"], dtype=np.uint8) for batch in batches])
    return _to_rgb(pixels), np.concatenate([np.asarray(batch[form.label_key], dtype=np.int64) for batch in batches])


def _decode_binary(path: Path, form: Form, files: Sequence[tuple[str, bytes]]) -> tuple[Any, Any]:
    assert form.label_bytes is not None
    record = form.label_bytes + PIXELS
    for name, content in files:
        if len(content) % record:
            raise DataError(f"{path}: {name} is truncated: {len(content)} bytes are no multiple of {record}")
    rows = np.concatenate([np.frombuffer(content, dtype=np.uint8).reshape(-1, record) for _, content in files])
    return _to_rgb(rows[:, form.label_bytes :]), rows[:, form.label_bytes - 1].astype(np.int64)


def _to_rgb(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Any:
    """(N, 3072), all red values first -> (N, 32, 32, 3)."""
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


_RECONSTRUCT: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return _ALLOWED[module, name]


def load_restricted(content: bytes) -> Any:
    """Unpickles plain containers and NumPy arrays, as Python 2 wrote them.

    Raises:
        DataError: if the pickle names anything else, or is damaged.
    """
    try:
        return _RestrictedUnpickler(io.BytesIO(content), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"a pickle holds more than arrays and plain containers, or is damaged: {error}") from None
