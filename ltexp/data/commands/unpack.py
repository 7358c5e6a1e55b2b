"""`ltexp data unpack`: the images of a folder of Hugging Face `datasets` become image files and lists."""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ltexp.data.commands.prepare import temporary_folder
from ltexp.data.types import Ints
from ltexp.errors import ConfigError, DataError
from ltexp.names import unknown_name

COLUMNS = ("image", "label")
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
ROWS = 64  # read at a time
UNLABELLED = -1  # what `datasets` has in the place of a label that is not published


class Unpacked(NamedTuple):
    """What was written.

    Attributes:
        images: of each split.
        left: splits of the source that were not taken.
    """

    images: dict[str, int]
    left: list[str]


def unpack(
    source: Path,
    folder: Path,
    columns: Mapping[str, str],
    splits: Mapping[str, str],
    done: Callable[[int, int], None] = lambda images, of: None,
) -> Unpacked:
    """Writes images/SPLIT/NUMBER.ENDING as they are stored, SPLIT.txt and classes.txt to a folder, whole or not at all.

    Args:
        source: what `save_to_disk` writes, or a dataset's folder as it is downloaded (Parquet, Arrow or image files).
        folder: must not exist.
        columns: of `image` and `label`, the source's; absent: the one column of images, the one of classes.
        splits: of `train`, `validation` and `test`, the source's name of it, or none; absent: as it is usually called.
        done: is told (images written, images in all) now and then.

    Raises:
        ConfigError: if the `datasets` library is missing, or a column or split is.
        DataError: if the source cannot be read, an image has no label, or the folder cannot be written or exists.
    """
    if folder.exists():
        raise DataError(f"{folder} exists: give another name, or remove it")
    with TemporaryDirectory() as cache:
        found = _opened(source, cache)
        taken = _taken(list(found), splits)
        parts = {split: found[name].with_format(None) for split, name in taken.items()}
        image, label = _columns(next(iter(parts.values())).features, columns)
        labels, names = _labels(parts, label)
        of, written = sum(len(part) for part in parts.values()), 0
        try:
            with temporary_folder(folder.parent, folder.name) as made:
                for split, part in parts.items():
                    (made / "images" / split).mkdir(parents=True)
                    with (made / f"{split}.txt").open("w", encoding="utf-8") as lines:
                        for row, content in enumerate(_contents(part, image, source)):
                            path = f"images/{split}/{row:07d}{_ending(content, split, row)}"
                            (made / path).write_bytes(content)
                            lines.write(f"{path} {labels[split][row]}\n")
                            written += 1
                            done(written, of)
                (made / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
                os.replace(made, folder)
        except OSError as error:
            raise DataError(f"could not write {folder}: {error.strerror or error}") from None
    sizes = {split: len(part) for split, part in parts.items()}
    return Unpacked(sizes, sorted(set(found) - set(taken.values())))


def _opened(source: Path, cache: str) -> Any:
    """A mapping of the source's splits, read without a network."""
    if not source.is_dir():
        raise DataError(f"source={source} is no folder")
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    try:
        import datasets
    except ImportError:
        raise ConfigError('unpack needs datasets, which is not installed: pip install "ltexp[datasets]"') from None
    datasets.disable_progress_bars()
    saved = any((source / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        found = datasets.load_from_disk(str(source)) if saved else datasets.load_dataset(str(source), cache_dir=cache)
    except Exception as error:  # of any of the library's readers
        raise DataError(f"source={source} is no folder of `datasets`: {' '.join(str(error).split())}") from None
    return found if isinstance(found, datasets.DatasetDict) else {"train": found}


def _taken(found: Sequence[str], splits: Mapping[str, str]) -> dict[str, str]:
    """For each split of ltexp the source's name of it."""
    taken = {}
    for split, usual in SPLITS.items():
        name = splits.get(split, next((name for name in usual if name in found), "none"))
        if name != "none" and name not in found:
            raise ConfigError(f"{split}=: {unknown_name('split', name, [*found, 'none'])}")
        if name != "none":
            taken[split] = name
    if "train" not in taken:
        raise ConfigError(f"no split is called train: give train= one of {', '.join(found)}")
    return taken


def _columns(features: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, str]:
    """The columns of images and of labels."""
    import datasets

    kinds: dict[str, type] = {"image": datasets.Image, "label": datasets.ClassLabel}
    found = {}
    for key, kind in kinds.items():
        those = [name for name, feature in features.items() if isinstance(feature, kind)]
        named = columns.get(key, those[0] if len(those) == 1 else key)
        if named not in features:
            raise ConfigError(f"{key}=: {unknown_name('column', named, features)}")
        found[key] = named
    if not isinstance(features[found["image"]], datasets.Image):
        raise ConfigError(f"image={found['image']} is no column of images but of {features[found['image']]}")
    if not isinstance(features[found["label"]], datasets.Value | datasets.ClassLabel):
        raise ConfigError(f"label={found['label']} is no column of classes but of {features[found['label']]}")
    return found["image"], found["label"]


def _labels(parts: Mapping[str, Any], label: str) -> tuple[dict[str, Ints], list[str]]:
    """(labels from 0 by split, names of the classes)."""
    columns = {split: part[label][:] for split, part in parts.items()}
    for split, column in columns.items():
        if unlabelled := sum(value is None or value == UNLABELLED for value in column):
            what = f"{unlabelled:,} of {len(column):,} {split} images have no label"
            raise DataError(what if split == "train" else f"{what}: {split}=none leaves them out")
    names = getattr(parts["train"].features[label], "names", None)
    if names is not None:
        return {split: np.array(column, np.int64) for split, column in columns.items()}, [
            " ".join(name.split()) for name in names
        ]
    known = sorted(set(columns["train"]))
    for split, column in columns.items():
        if strange := sorted(set(column) - set(known)):
            raise DataError(f"the {split} split has a class that the training images have not: {strange[0]}")
    numbers = {value: number for number, value in enumerate(known)}
    labels = {split: np.array([numbers[value] for value in column]) for split, column in columns.items()}
    return labels, [" ".join(str(value).split()) for value in known]


def _contents(part: Any, image: str, source: Path) -> Iterator[bytes]:
    """The images' files, as they are stored."""
    import datasets

    stored = part.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    for rows in stored.iter(batch_size=ROWS):
        for cell in rows[image]:
            content = cell["bytes"] if cell else None
            if content is None:
                if not cell or not cell["path"]:
                    raise DataError(f"source={source} has a row without an image")
                content = Path(cell["path"]).read_bytes()
            yield content


def _ending(content: bytes, split: str, row: int) -> str:
    try:
        kind = Image.open(io.BytesIO(content)).format
    except (OSError, SyntaxError) as error:
        reason = " ".join(str(error).split()).partition(" <")[0]
        raise DataError(f"row {row} of the {split} split holds no image that can be read: {reason}") from None
    return {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2", "MPO": ".jpg"}.get(
        kind or "", f".{(kind or 'png').lower()}"
    )
