"""Places-LT's lists, whose paths circulate in two spellings for the two archives of Places365."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ltexp.data.files.list_source import ImageLists
from ltexp.data.files.lists import ImageList
from ltexp.data.files.split import Paths
from ltexp.data.types import Ints

LETTERED = ("data_256/", "val_256/")  # where the archives by letter unpack to


class PlacesLists(ImageLists):
    """Lists of Places365 images; see `ImageLists`.

    The archives by letter hold `data_256/a/airfield/00000001.jpg`, `data_256/a/apartment_building/outdoor/00000001.jpg`
    and `val_256/Places365_val_00000001.jpg`; the easy one holds `train/airfield/00000001.jpg`,
    `train/apartment_building-outdoor/00000001.jpg` and `val/airfield/Places365_val_00000001.jpg`. A list in one
    spelling finds the images of the other archive.
    """

    def canonical(self, paths: Paths) -> Paths:
        """In the spelling of the archives by letter."""
        return np.array([by_letter(path.decode()).encode() for path in paths.tolist()], dtype=np.bytes_)

    def names_of(self, train: ImageList) -> tuple[str, ...]:
        """Class names as the easy archive has them, such as `apartment_building-outdoor`."""
        first = np.unique(train.labels, return_index=True)[1]
        return tuple(by_class(by_letter(path.decode()), "").split("/")[1] for path in train.paths[first].tolist())

    def resolved(self, paths: Paths, labels: Ints, folder: Path, names: Sequence[str]) -> Paths:
        """The paths in the spelling of the folder that is there, where theirs is not."""
        absent = {top for top in (*LETTERED, "train/", "val/") if not (folder / top).is_dir()}
        changed = []
        for path, label in zip(paths.tolist(), labels.tolist(), strict=True):
            text = path.decode()
            if text[: text.find("/") + 1] in absent:
                other = by_class(text, names[label]) if text.startswith(LETTERED) else by_letter(text)
                text = text if other[: other.find("/") + 1] in absent else other
            changed.append(text.encode())
        return np.array(changed, dtype=np.bytes_)


def by_letter(path: str) -> str:
    """The path in the archives by letter."""
    if not path.startswith(("train/", "val/")):
        return path
    top, _, rest = path.partition("/")
    name, _, file = rest.rpartition("/")
    return f"val_256/{file}" if top == "val" else f"data_256/{name[:1]}/{name.replace('-', '/')}/{file}"


def by_class(path: str, class_name: str) -> str:
    """The path in the archive by class.

    Args:
        path: the path in the archives by letter.
        class_name: the image's class, as the easy archive's folder; only an image of `val_256` needs it.
    """
    if path.startswith("val_256/"):
        return f"val/{class_name}/{path.removeprefix('val_256/')}"
    *folders, file = path.split("/")
    return f"train/{'-'.join(folders[2:])}/{file}"
