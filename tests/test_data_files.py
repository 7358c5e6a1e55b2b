"""Datasets of image files: from lists and from folders, whole and cut to a tail, and what each split holds."""

import os
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_trees import ODD, long_tail, write_list, write_odd, write_tree

from benchmarks import startup
from ltexp.config.build import build
from ltexp.data.commands.catalog import dataset_config
from ltexp.data.commands.show import shots
from ltexp.data.files.places import by_class, by_letter
from ltexp.data.types import LongTailedData
from ltexp.errors import ConfigError, DataError

SIZES = long_tail(6, 30, 2)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", SIZES, test=3, validation=1)


def dataset(name: str, root: Path, source: Mapping[str, Any], **changes: Any) -> LongTailedData:
    config = dataset_config(name)
    config["source"] |= source
    data: LongTailedData = build(config | changes, root=root)
    return data


def lists(tree: Path, **changes: Any) -> LongTailedData:
    source = {"folder": str(tree), "validation": "val.txt", "test": "test.txt"}
    return dataset("image_list", tree, source | changes.pop("source", {}), **changes)


def folders(tree: Path, **changes: Any) -> LongTailedData:
    return dataset("image_folder", tree, {"folder": str(tree)}, **changes)


def test_lists_and_folders_of_one_tree_are_the_same_dataset(tree: Path) -> None:
    one, other = lists(tree), folders(tree)
    for data in (one, other):
        assert data.class_counts.tolist() == SIZES
        assert (data.imbalance, data.imbalance_ratio) == ("given", 15.0)
        assert data.class_names == tuple(f"class{label:03}" for label in range(6))
        assert data.validation is not None
        assert (len(data.validation), len(data.test)) == (6, 18)
    for split in ("train", "validation", "test"):
        of_lists, of_folders = getattr(one, split), getattr(other, split)
        assert sorted(of_lists.paths.tolist()) == sorted(of_folders.paths.tolist())
        assert of_lists.root == of_folders.root == str(tree)


def test_every_row_has_its_own_path_label_and_line(tree: Path) -> None:
    """The list is shuffled, so labels, paths and lines can only agree if they stay together."""
    lines = (tree / "train.txt").read_text().splitlines()
    np.random.default_rng(0).shuffle(lines)
    (tree / "train.txt").write_text("\n".join(lines))
    data = lists(tree, imbalance="longtail", imbalance_ratio=10, validation={"fraction": 0.3})
    assert data.validation is not None
    for split in (data.train, data.validation):
        for row in range(len(split)):
            line = lines[split.index[row]]
            assert line == f"{split.paths[row].decode()} {split.labels[row]}"
            assert split.where(row) == f"{tree}/{line.split()[0]} (train.txt, line {split.index[row] + 1})"


def test_a_tail_is_cut_and_a_part_held_out(tree: Path) -> None:
    data = folders(tree, imbalance="longtail", imbalance_ratio=10, validation={"fraction": 0.25})
    total = [25, 15, 9, 6, 3, 2]  # 25 * 10^(-c/5), cut to whole numbers: 26 would ask for 4 of the fifth class's 3
    assert data.validation is not None
    held = np.bincount(data.validation.labels).tolist()
    assert [kept + out for kept, out in zip(data.class_counts, held, strict=True)] == total
    assert held == [6, 3, 2, 1, 1, 1]
    assert not set(data.train.index) & set(data.validation.index)
    again = folders(tree, imbalance="longtail", imbalance_ratio=10)
    assert again.subset_hash == data.subset_hash
    assert again.subset_hash != folders(tree, imbalance="longtail", imbalance_ratio=10, subset={"seed": 1}).subset_hash


def test_a_tail_without_a_ratio_has_the_usual_one(tree: Path) -> None:
    with pytest.raises(DataError, match="image_folder cannot be cut to ratio 100: classes have 2 to 30 training"):
        folders(tree, imbalance="longtail")


def test_a_test_set_is_held_out_where_there_is_none(tree: Path) -> None:
    """Always the same images, and none of them in the training set, whatever is cut and held out further."""
    settings = {"test": {"fraction": 0.2, "max_per_class": 4}}
    with pytest.raises(ConfigError, match=r"dataset\.test\.fraction=0\.2"):
        dataset("image_folder", tree, {"folder": str(tree / "train")})
    one = dataset("image_folder", tree, {"folder": str(tree / "train")}, **settings)
    assert np.bincount(one.test.labels).tolist() == [4, 3, 2, 1, 1, 1]
    assert (one.class_counts + np.bincount(one.test.labels)).tolist() == SIZES
    cut = dataset(
        "image_folder",
        tree,
        {"folder": str(tree / "train")},
        imbalance="step",
        imbalance_ratio=2,
        subset={"seed": 3},
        **settings,
    )
    assert cut.test.paths.tolist() == one.test.paths.tolist()
    assert not set(cut.train.paths.tolist()) & set(cut.test.paths.tolist())
    assert one.facts["held_out_test"] == 0.2
    with pytest.raises(ConfigError, match=r"test images of its own"):
        folders(tree, **settings)


def test_class_names_and_their_order_may_come_from_a_file(tree: Path) -> None:
    names = [f"class{label:03}" for label in (5, 4, 3, 2, 1, 0)]
    (tree / "classes.txt").write_text("\n".join(names))
    data = dataset("image_folder", tree, {"folder": str(tree), "classes": "classes.txt"})
    assert (list(data.class_names), data.class_counts.tolist()) == (names, SIZES[::-1])
    (tree / "classes.txt").write_text("\n".join(names[:3]))
    few = dataset("image_folder", tree, {"folder": str(tree), "classes": "classes.txt"})
    assert (list(few.class_names), few.class_counts.tolist()) == (names[:3], SIZES[:2:-1])
    with pytest.raises(DataError, match=r"classes.txt names 3 classes, and num_classes is 6"):
        lists(tree, source={"classes": "classes.txt", "num_classes": 6})
    (tree / "classes.txt").write_text("\n".join(f"name {label}" for label in range(6)))
    assert lists(tree, source={"classes": "classes.txt"}).class_names[3] == "name 3"


def test_odd_files_are_images_and_others_are_not(tree: Path) -> None:
    write_odd(tree / "train" / "class005")
    (tree / "train" / "class005" / "notes.txt").write_text("no image")
    (tree / "train" / "class005" / ".hidden.jpg").write_text("no image")
    assert folders(tree).class_counts.tolist() == [*SIZES[:5], SIZES[5] + len(ODD)]


def test_spaces_and_windows_line_ends(tree: Path) -> None:
    text = (tree / "train.txt").read_text()
    (tree / "train" / "class000" / "00000.jpg").rename(tree / "train" / "class000" / "an image 1.jpg")
    text = (
        text.replace("class000/00000.jpg", "class000/an image 1.jpg").replace("\n", "\r\n").replace(".jpg ", ".jpg\t")
    )
    (tree / "train.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    data = lists(tree)
    assert data.class_counts.tolist() == SIZES
    assert b"train/class000/an image 1.jpg" in data.train.paths.tolist()
    assert not len(data.train.missing())


def test_a_split_knows_what_is_missing(tree: Path) -> None:
    data = lists(tree)
    assert not len(data.train.missing())
    gone = data.train.paths[7].decode()
    (tree / gone).unlink()
    for file in (tree / "train" / "class001").iterdir():
        file.unlink()
    (tree / "train" / "class001").rmdir()
    absent = data.train.missing()
    assert set(absent.tolist()) == {7, *np.flatnonzero(data.train.labels == 1).tolist()}


@pytest.mark.parametrize(
    ("letter", "easy", "name"),
    [
        ("data_256/a/airfield/00000001.jpg", "train/airfield/00000001.jpg", "airfield"),
        ("data_256/a/atrium/public/00000001.jpg", "train/atrium-public/00000001.jpg", "atrium-public"),
        ("val_256/Places365_val_00000001.jpg", "val/airfield/Places365_val_00000001.jpg", "airfield"),
    ],
)
def test_places_has_two_spellings(letter: str, easy: str, name: str) -> None:
    assert by_letter(easy) == letter
    assert by_letter(letter) == letter
    assert by_class(letter, name) == easy


def spelled(split: str, folder: str, file: str, spelling: str) -> str:
    name = folder.partition("/")[2].replace("/", "-")
    if spelling == "letter":
        return f"data_256/{folder}/{file}" if split == "train" else f"val_256/{file}"
    return f"train/{name}/{file}" if split == "train" else f"val/{name}/{file}"


def test_places_lists_find_the_images_of_either_archive(tmp_path: Path) -> None:
    """Four combinations of how the list and the archive spell paths, and one dataset."""
    entries = {
        "train": [("a/airfield", "1.jpg", 0), ("a/atrium/public", "1.jpg", 1), ("a/atrium/public", "2.jpg", 1)],
        "test": [("a/airfield", "Places365_val_1.jpg", 0), ("a/atrium/public", "Places365_val_2.jpg", 1)],
    }
    hashes = set()
    for listed, archive in product(("letter", "easy"), repeat=2):
        root = tmp_path / f"{listed}-{archive}"
        for split, rows in entries.items():
            write_list(root / f"{split}.txt", [(spelled(split, *row[:2], listed), row[2]) for row in rows])
            for row in rows:
                file = root / spelled(split, *row[:2], archive)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"")
        source = {"folder": str(root), "train": "train.txt", "validation": None, "test": "test.txt"}
        data = dataset("places_lt", tmp_path, source | {"num_classes": 2, "published": None})
        assert data.class_names == ("airfield", "atrium-public")
        assert not len(data.train.missing())
        assert not len(data.test.missing())
        hashes.add(data.content_hash)
    assert len(hashes) == 1


def test_bad_settings_have_one_line(tree: Path) -> None:
    for changed, words in (
        ({"imbalance": "long"}, r"expected given \| longtail \| step \| balanced; did you mean 'longtail'"),
        ({"max_per_class": 5}, "invalid max_per_class=5: expected null, or imbalance=longtail to cut a tail"),
        ({"imbalance_ratio": 10}, "invalid imbalance_ratio=10: expected null, or imbalance=longtail to cut a tail"),
        (
            {"validation": {"max_per_class": 2}},
            r"invalid validation\.max_per_class=2: expected null, or validation\.fraction above 0 to hold some out",
        ),
        ({"test": {"max_per_class": 2}}, r"invalid test\.max_per_class=2: expected null, or test\.fraction above 0"),
        ({"imbalance": "longtail", "imbalance_ratio": 500}, "cannot be cut to ratio 500"),
        ({"image_size": 300}, "invalid resize=256: expected a whole number of at least image_size=300"),
        ({"workers": -1}, "invalid workers=-1: expected a whole number of 0 or more, or null"),
        ({"num_classes": 7}, "image_folder has 6 classes"),
    ):
        with pytest.raises((ConfigError, DataError), match=words) as error:
            folders(tree, **changed)
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_start_of_half_a_million_images_takes_seconds(tmp_path: Path) -> None:
    """iNaturalist 2018's size: 437,513 lines read and checked, samplers built. Time on the processor: machines differ
    in how busy they are, and a start waits for nothing."""
    startup.write_lists(tmp_path)
    _, busy, bare, most = startup.run(tmp_path)
    assert busy < startup.SECONDS
    assert most - bare < startup.MEMORY


PLACES = Path(os.environ.get("LTEXP_DATA", "?"), "splits", "Places_LT_train.txt")


@pytest.mark.skipif(not PLACES.is_file(), reason="needs the published list under LTEXP_DATA")
def test_places_published_list(tmp_path: Path) -> None:
    """The counts of method-facts 12.1 and the class sizes' groups by shot; either spelling is the published list."""
    names = [line.split()[0].decode() for line in PLACES.read_bytes().splitlines()]
    labels = [int(line.split()[1]) for line in PLACES.read_bytes().splitlines()]
    write_list(tmp_path / "easy.txt", [(by_class(name, ""), label) for name, label in zip(names, labels, strict=True)])
    test = write_list(tmp_path / "test.txt", [(f"val_256/{label}.jpg", label) for label in range(365)])
    published = dataset_config("places_lt")["source"]["published"]
    hashes = set()
    for train in (PLACES, tmp_path / "easy.txt"):
        source = {"folder": str(tmp_path), "train": str(train), "validation": None, "test": str(test)}
        data = dataset("places_lt", tmp_path, source | {"published": {"train": published["train"]}})
        assert (len(data.train), data.num_classes) == (62_500, 365)
        assert (data.class_counts.max(), data.class_counts.min(), data.imbalance_ratio) == (4980, 5, 996.0)
        assert [len(group) for group in shots(data.class_counts).values()] == [131, 163, 71]
        hashes.add(data.facts["hashes"]["train"])
    assert hashes == {published["train"]["hash"]}
