"""Sets of small images that are published as image files or MATLAB arrays: SVHN, CINIC-10, Tiny ImageNet."""

import re
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ltexp.data.files.decode import open_rgb
from ltexp.data.types import SourceArrays
from ltexp.errors import DataError

SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")
ANNOTATIONS = "val/val_annotations.txt"


class Sample(NamedTuple):
    """Where an image of a published set belongs.

    Attributes:
        split: `train` or `test`.
        class_name: its class.
        order: what images of a split are sorted by.
        entry: its name in the archive.
    """

    split: str
    class_name: str
    order: tuple[object, ...]
    entry: str


@dataclass(frozen=True)
class PackedSet:
    """A set as published.

    Attributes:
        archives: names that its archive has; none where there are only the files of its folder.
        folders: names that its folder has.
        holds: what such a folder holds.
        side: of its images, in pixels.
        classes, train_images, test_images: how many there are.
        read: its arrays, in the published order, of a folder or an archive.
        site: where it is to be had.
    """

    archives: tuple[str, ...]
    folders: tuple[str, ...]
    holds: tuple[str, ...]
    side: int
    classes: int
    train_images: int
    test_images: int
    read: Callable[[Path, "PackedSet"], SourceArrays]
    site: str


def entries(place: Path, wanted: Collection[str] | None = None) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files that a folder, a .tar or a .zip holds, those in `wanted`; None: names alone, of all.

    Names are as the archive has them, without a leading `./`; in a folder they are relative to it.
    """
    if place.is_dir():
        for path in sorted(place.rglob("*")):
            name = path.relative_to(place).as_posix()
            if path.is_file() and (wanted is None or name in wanted):
                yield name, b"" if wanted is None else path.read_bytes()
    elif zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as packed:
            for info in packed.infolist():
                if not info.is_dir() and (wanted is None or info.filename in wanted):
                    yield info.filename, b"" if wanted is None else packed.read(info)
    else:
        with tarfile.open(place) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isfile() and (wanted is None or name in wanted):
                    content = None if wanted is None else archive.extractfile(member)
                    yield name, b"" if content is None else content.read()


def read_samples(place: Path, official: PackedSet, samples: list[Sample]) -> SourceArrays:
    """The arrays of image files in a folder or an archive, classes sorted by name, as torchvision's ImageFolder does.

    Raises:
        DataError: if there are not as many classes and images as are published, or one cannot be read.
    """
    names = sorted({sample.class_name for sample in samples})
    if len(names) != official.classes:
        raise DataError(f"{place} holds {len(names)} classes, not {official.classes}")
    images, labels = {}, {}
    rows: dict[str, tuple[str, int]] = {}
    for split, count in (("train", official.train_images), ("test", official.test_images)):
        own = sorted((sample for sample in samples if sample.split == split), key=lambda sample: sample.order)
        if len(own) != count:
            raise DataError(f"{place} holds {len(own):,} {split} images, not {count:,}: incomplete?")
        images[split] = np.empty((count, official.side, official.side, 3), dtype=np.uint8)
        labels[split] = np.array([names.index(sample.class_name) for sample in own], dtype=np.int64)
        rows |= {sample.entry: (split, row) for row, sample in enumerate(own)}
    for name, content in entries(place, rows):
        split, row = rows[name]
        image = open_rgb(f"{place}: {name}", content)
        if image.size != (official.side, official.side):
            raise DataError(
                f"{place}: {name} has {image.width}x{image.height} pixels, not {official.side}x{official.side}"
            )
        images[split][row] = np.asarray(image)
    return SourceArrays(images["train"], labels["train"], images["test"], labels["test"], tuple(names))


def read_cinic10(place: Path, official: PackedSet) -> SourceArrays:
    """train/CLASS/*.png and test/CLASS/*.png, by class and file name; the part `valid` is left out."""
    samples = []
    for name, _ in entries(place):
        if found := re.search(r"(?:^|/)(train|test)/([^/]+)/([^/]+\.png)$", name):
            split, class_name, file = found.groups()
            samples.append(Sample(split, class_name, (class_name, file), name))
    return read_samples(place, official, samples)


def read_tiny_imagenet(place: Path, official: PackedSet) -> SourceArrays:
    """train/WNID/images/*.JPEG, by class and file name, and as the test set val/, in the order of its annotations.

    The labels of the official test images are not published.
    """
    found = [name for name, _ in entries(place)]
    samples, images = [], {}
    for name in found:
        if of_class := re.search(r"(?:^|/)train/(n\d+)/images/([^/]+\.JPEG)$", name):
            samples.append(Sample("train", of_class[1], of_class.groups(), name))
        elif plain := re.search(r"(?:^|/)val/images/([^/]+\.JPEG)$", name):
            images[plain[1]] = name
    annotations = [name for name in found if name == ANNOTATIONS or name.endswith(f"/{ANNOTATIONS}")]
    if len(annotations) != 1:
        raise DataError(f"{place} holds {len(annotations)} files {ANNOTATIONS}, not one")
    text = next(content for _, content in entries(place, annotations)).decode()
    for number, line in enumerate(text.splitlines()):
        fields = line.split("\t")
        if len(fields) < 2 or fields[0] not in images:
            raise DataError(f"{place}: {ANNOTATIONS}, line {number + 1}: expected an image of val/images and its class")
        samples.append(Sample("test", fields[1], (number,), images[fields[0]]))
    return read_samples(place, official, samples)


def read_svhn(place: Path, official: PackedSet, download: bool = False) -> SourceArrays:
    """The cropped digits, by torchvision, which compares their MD5 sums; labels in their own order, 1 to 9 and then 0.

    Raises:
        DataError: if a file is missing or another one.
    """
    from torchvision.datasets import SVHN

    try:
        train, test = (SVHN(str(place), split, download=download) for split in ("train", "test"))
    except RuntimeError as error:
        files = " and ".join(SVHN_FILES)
        raise DataError(f"{place}: {files} are not both there, complete and the published ones ({error})") from None
    arrays = [np.ascontiguousarray(part.data.transpose(0, 2, 3, 1)) for part in (train, test)]
    labels = [(part.labels.astype(np.int64) - 1) % official.classes for part in (train, test)]
    names = tuple(str((label + 1) % official.classes) for label in range(official.classes))
    return SourceArrays(arrays[0], labels[0], arrays[1], labels[1], names)


PACKED = {
    "svhn": PackedSet(
        archives=(),
        folders=("svhn", "SVHN"),
        holds=SVHN_FILES,
        side=32,
        classes=10,
        train_images=73_257,
        test_images=26_032,
        read=read_svhn,
        site="http://ufldl.stanford.edu/housenumbers",
    ),
    "cinic10": PackedSet(
        archives=("CINIC-10.tar.gz",),
        folders=("CINIC-10", "cinic-10", "cinic10"),
        holds=("train", "test"),
        side=32,
        classes=10,
        train_images=90_000,
        test_images=90_000,
        read=read_cinic10,
        site="https://datashare.ed.ac.uk/handle/10283/3192",
    ),
    "tiny_imagenet": PackedSet(
        archives=("tiny-imagenet-200.zip",),
        folders=("tiny-imagenet-200", "tiny_imagenet"),
        holds=("train", "val"),
        side=64,
        classes=200,
        train_images=100_000,
        test_images=10_000,
        read=read_tiny_imagenet,
        site="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    ),
}


def find_packed(place: Path, official: PackedSet) -> Path | None:
    """The folder or the archive of a set that `place` is or holds; None if there is none."""
    if place.is_file():
        return place
    folders = [place, *(place / name for name in official.folders)]
    found = [folder for folder in folders if all((folder / name).exists() for name in official.holds)]
    archives = [place / name for name in official.archives]
    return next((path for path in (*found, *archives) if path.exists()), None)
