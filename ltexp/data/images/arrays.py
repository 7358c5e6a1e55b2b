"""Small-image datasets at rest as plain `.npy` arrays: the prepared form. Nothing is unpickled.

A folder under the data root holds `train_images.npy` and `test_images.npy` (uint8 (N, H, W, 3), RGB),
`train_labels.npy` and `test_labels.npy` (int64 (N,), from 0) and `classes.txt` (a name a line, in label order).
"""

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.data.images.official import OFFICIAL
from ltexp.data.types import Source, SourceArrays

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
FILES = (*(f"{name}.npy" for name in ARRAYS), "classes.txt")
PREPARED_BY_COMMAND = ("cifar10", "cifar100", "svhn", "cinic10", "tiny_imagenet")

_Array = np.ndarray[Any, np.dtype[Any]]


def default_root() -> Path:
    """The data root where none is given: the environment variable LTEXP_DATA, else `data` here."""
    return Path(os.environ.get("LTEXP_DATA") or "data")


class PreparedArrays(Source):
    """The prepared arrays in `<data root>/<folder>`.

    Args:
        folder: its name, e.g. `cifar100`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def inspect(self, root: Path) -> tuple[SourceArrays | None, list[str]]:
        """The arrays, memory-mapped, and everything that is missing or wrong."""
        arrays, problems = inspect_folder(root / self.folder)
        return arrays, [*problems, self.remedy(root)] if problems else []

    def place(self, root: Path) -> str:
        return f"{root / self.folder}: "

    def notes(self, opened: SourceArrays) -> list[str]:
        """A line if CIFAR's images are not in the order that they are published in."""
        official = OFFICIAL.get(self.folder)
        if official is None or tuple(opened.train_labels[: len(official.first_labels)]) == official.first_labels:
            return []
        return ["note: not in the published order, so a subset holds other images than the same one elsewhere"]

    def remedy(self, root: Path) -> str:
        """What to do."""
        if self.folder not in PREPARED_BY_COMMAND:
            return "it must hold the prepared form (see `ltexp data check --help`)"
        where = "" if root == default_root() else f" root={root}"
        return f"run `ltexp data prepare {self.folder}{where}`"


def inspect_folder(folder: Path) -> tuple[SourceArrays | None, list[str]]:
    """The arrays in `folder` and what is wrong with them: all problems at once; arrays only if there is none."""
    if not folder.is_dir():
        return None, [f"missing {', '.join(FILES)} (there is no such folder)"]
    missing = [name for name in FILES if not (folder / name).is_file()]
    problems = [f"missing {', '.join(missing)}"] if missing else []
    found: dict[str, Any] = {}
    for name in ARRAYS:
        if f"{name}.npy" not in missing:
            found[name], problem = _read(folder / f"{name}.npy")
            problems += problem
    if "classes.txt" not in missing:
        found["class_names"], problem = _read_names(folder / "classes.txt")
        problems += problem
    whole = {name: value for name, value in found.items() if value is not None}
    problems += array_problems(whole)
    if problems or len(whole) < len(fields(SourceArrays)):
        return None, problems
    return SourceArrays(**whole), []


def array_problems(found: dict[str, Any]) -> list[str]:
    """What is wrong with arrays of the prepared form, by their field names in `SourceArrays`; some may be absent."""
    problems = [line for name in ARRAYS if name in found for line in _type_problems(name, found[name])]
    if problems:
        return problems
    sizes = {name: found[name].shape[1:3] for name in ("train_images", "test_images") if name in found}
    if len(set(sizes.values())) > 1:
        problems.append(f"train_images and test_images differ in size: {' and '.join(map(str, sizes.values()))}")
    for split in ("train", "test"):
        images, labels = found.get(f"{split}_images"), found.get(f"{split}_labels")
        if images is not None and labels is not None and len(images) != len(labels):
            problems.append(f"{split}_images.npy has {len(images)} images but {split}_labels.npy {len(labels)} labels")
        if labels is not None and "class_names" in found:
            problems += _range_problems(f"{split}_labels.npy", labels, len(found["class_names"]))
    return problems


def _type_problems(name: str, array: _Array) -> list[str]:
    if name.endswith("images"):
        right = array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3
        expected = "uint8 (N, H, W, 3)"
    else:
        right = array.dtype == np.int64 and array.ndim == 1
        expected = "int64 (N,)"
    if not right:
        return [f"{name}.npy is {array.dtype} {array.shape}, not {expected}"]
    return [] if array.size else [f"{name}.npy is empty"]


def _range_problems(file: str, labels: _Array, classes: int) -> list[str]:
    least, most = int(labels.min()), int(labels.max())
    if least >= 0 and most < classes:
        return []
    wrong = int(((labels < 0) | (labels >= classes)).sum())
    return [f"{file} holds labels from {least} to {most}, {wrong} of them outside the {classes} classes of classes.txt"]


def _read(path: Path) -> tuple[_Array | None, list[str]]:
    try:
        # labels are read whole, since all of them are looked at; of the images only the chosen ones will be
        array = np.load(path, mmap_mode="r" if path.stem.endswith("images") else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        # NumPy takes a file without its signature for a pickle, which is never read here
        reason = "not a .npy file" if "pickle" in str(error) else str(error).splitlines()[0] if str(error) else "empty"
        return None, [f"{path.name} is damaged or truncated ({path.stat().st_size} bytes: {reason})"]
    if not isinstance(array, np.ndarray):
        return None, [f"{path.name} is not a .npy file"]
    return array, []


def _read_names(path: Path) -> tuple[tuple[str, ...] | None, list[str]]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (UnicodeDecodeError, OSError) as error:
        return None, [f"classes.txt cannot be read ({error})"]
    if len(names) < 2 or not all(names):
        return None, [f"classes.txt holds {len(names)} lines, blank ones included, not one name for each class"]
    return names, []
