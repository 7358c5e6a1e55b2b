"""Where the arrays of a dataset's reader are taken in: training and `ltexp data check` both come by here.

The readers of ltexp look at their files themselves. One of a user's own may give anything, so what it gives is checked
here, before anything is trained.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ltexp.config.own_code import place_of
from ltexp.config.sources import is_ours
from ltexp.data.types import Ints, Source, SourceArrays
from ltexp.errors import ConfigError, DataError, LtexpError

T = TypeVar("T")


def open_source(source: Any, root: Path, kind: type[T]) -> T:
    """The dataset that a source gives.

    Args:
        source: what `dataset.source` names.
        root: the data root.
        kind: what the dataset is to be, such as `SourceArrays`.

    Raises:
        DataError: with everything that the source says is wrong.
        ConfigError: for a source of a user's own that gives something else, or raises an error of its own.
    """
    found, problems = take_in(source, root)
    if found is None:
        with own_errors_told(source):
            raise DataError(f"{source.place(root)}{'; '.join(problems)}")
    if not isinstance(found, kind):
        raise _refused(source, f"inspect gives a {type(found).__name__}, and this dataset reads a {kind.__name__}")
    return found


def take_in(source: Any, root: Path) -> tuple[Any, list[str]]:
    """What `source.inspect(root)` gives, labels as int64: (the dataset, none), or (None, what is wrong).

    Raises:
        ConfigError: see `open_source`.
    """
    if not isinstance(source, Source):
        raise _refused(source, "expected a subclass of ltexp.data.types.Source, whose inspect(root) gives the arrays")
    if _is_ours(type(source)):
        return source.inspect(root)
    with own_errors_told(source):
        given: Any = source.inspect(root)
    pair = "a pair: the dataset and [], or None and a list of what is wrong, a text each"
    if not isinstance(given, tuple) or len(given) != 2:
        raise _refused(source, f"inspect gives a {type(given).__name__}, expected {pair}")
    found, problems = given
    if not isinstance(problems, list) or not all(isinstance(line, str) for line in problems):
        raise _refused(source, f"inspect gives {problems!r} as what is wrong, expected {pair}")
    if problems:
        return None, problems
    if found is None:
        raise _refused(source, f"inspect gives None and no text of what is wrong, expected {pair}")
    try:
        return _checked(found), []
    except ConfigError as error:
        raise _refused(source, error.message) from None


@contextmanager
def own_errors_told(source: Source) -> Iterator[None]:
    """An error that a source of a user's own raises within the block is told in one line.

    Raises:
        ConfigError: with the class of the source, the error's class and message, and the line of the user's code.
    """
    try:
        yield
    except LtexpError:
        raise
    except Exception as error:
        if _is_ours(type(source)):
            raise  # a bug, which keeps its traceback
        message = next((f": {line}" for line in str(error).splitlines() if line.strip()), "")
        place = f" ({found})" if (found := place_of(error)) else ""
        raise _refused(source, f"{type(error).__name__}{message}{place}") from error


def _is_ours(kind: type) -> bool:
    return is_ours(kind.__module__)


def _refused(source: object, message: str) -> ConfigError:
    return ConfigError(f"{type(source).__module__}.{type(source).__qualname__}: {message}", "source")


def _checked(found: Any) -> Any:
    """The dataset with int64 labels. Raises a ConfigError that names the array that is wrong."""
    from ltexp.data.files.split import SourceFiles
    from ltexp.data.text.articles import SourceTexts

    if isinstance(found, SourceArrays):
        return _checked_arrays(found)
    if isinstance(found, SourceTexts):
        return _checked_texts(found)
    if isinstance(found, SourceFiles):
        return _checked_files(found)
    raise ConfigError(f"inspect gives a {type(found).__name__} as the dataset, expected a SourceArrays")


def _checked_arrays(found: SourceArrays) -> SourceArrays:
    names = _class_names(found.class_names)
    parts = {"train": (found.train_images, found.train_labels), "test": (found.test_images, found.test_labels)}
    labels: dict[str, Any] = {}
    for split, (images, own) in parts.items():
        _check_images(f"{split}_images", images)
        labels[f"{split}_labels"] = _labels(f"{split}_labels", own, f"{split}_images", len(images), len(names))
    train, test = (images.shape[1:3] for images, _ in parts.values())
    if train != test:
        raise ConfigError(f"test_images are of {test[0]}x{test[1]} pixels, expected {train[0]}x{train[1]} as in train")
    return replace(found, class_names=names, **labels)


def _checked_texts(found: Any) -> Any:
    names = _class_names(found.class_names)
    parts = {"train": (found.train_texts, found.train_labels), "test": (found.test_texts, found.test_labels)}
    labels = {}
    for split, (texts, own) in parts.items():
        if not isinstance(texts, list):
            raise ConfigError(f"{split}_texts is a {type(texts).__name__}, expected a list of str")
        if others := [text for text in texts if not isinstance(text, str)]:
            raise ConfigError(f"{split}_texts holds a {type(others[0]).__name__}, expected a list of str")
        _require_any(f"{split}_texts", len(texts))
        labels[f"{split}_labels"] = _labels(f"{split}_labels", own, f"{split}_texts", len(texts), len(names))
    return replace(found, class_names=names, **labels)


def _checked_files(found: Any) -> Any:
    from ltexp.data.files.split import FileSplit

    names = _class_names(found.class_names)
    splits = {}
    for name in ("train", "validation", "test"):
        split = getattr(found, name)
        if split is None and name != "train":
            continue
        if not isinstance(split, FileSplit):
            raise ConfigError(f"{name} is a {type(split).__name__}, expected a FileSplit")
        typed = isinstance(split.paths, np.ndarray) and split.paths.dtype.kind == "S"
        _check_array(f"{name}.paths", split.paths, "bytes (N,)", typed, ndim=1)
        _require_any(f"{name}.paths", len(split.paths))
        labels = _labels(f"{name}.labels", split.labels, f"{name}.paths", len(split.paths), len(names))
        splits[name] = replace(split, labels=labels)
    return replace(found, class_names=names, **splits)


def _class_names(names: Any) -> tuple[str, ...]:
    expected = "expected a tuple of at least two names, one str for each label"
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"class_names is {names!r}, {expected}")
    if len(names) < 2:
        raise ConfigError(f"class_names holds {len(names)}, {expected}")
    (most, times), *_ = Counter(names).most_common(1)
    if times > 1:
        raise ConfigError(f"class_names holds {most!r} {times} times, expected names that differ")
    return tuple(names)


def _check_images(name: str, images: Any) -> None:
    expected = "uint8 (N, H, W, 3), RGB from 0 to 255"
    shaped = isinstance(images, np.ndarray) and images.shape[3:] == (3,)
    _check_array(name, images, expected, shaped and images.dtype == np.uint8, ndim=4)
    _require_any(name, images.size)


def _labels(name: str, labels: Any, of: str, count: int, classes: int) -> Ints:
    """Labels (N,) of any integer type as int64, one for each of the `count` samples of the array `of`."""
    whole = isinstance(labels, np.ndarray) and labels.dtype.kind in "iu"
    _check_array(name, labels, "integers (N,), such as int64", whole, ndim=1)
    if len(labels) != count:
        raise ConfigError(f"{name} holds {len(labels):,} labels, expected one for each of the {count:,} of {of}")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise ConfigError(
            f"{name} holds labels from {least} to {most}, expected 0 to {classes - 1}, positions in the {classes} "
            "names of class_names"
        )
    as_taken: Ints = labels.astype(np.int64, copy=False)
    return as_taken


def _check_array(name: str, array: Any, expected: str, typed: bool, ndim: int) -> None:
    if not isinstance(array, np.ndarray):
        raise ConfigError(f"{name} is a {type(array).__name__}, expected a NumPy array, {expected}")
    if not typed or array.ndim != ndim:
        raise ConfigError(f"{name} is {array.dtype} {array.shape}, expected {expected}")


def _require_any(name: str, count: int) -> None:
    if not count:
        raise ConfigError(f"{name} is empty, expected at least one sample of each class")
