"""CSV tables of images: the forms of ISIC and Kaggle are the lists that they stand for, and bad rows are named."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_trees import long_tail, write_tree
from runs import run_here

from ltexp.data.__main__ import main
from ltexp.data.files.csv_source import ImageTables
from ltexp.data.files.list_source import ImageLists
from ltexp.errors import ConfigError
from ltexp.evaluation.record import read_record

SIZES = long_tail(4, 9, 2)
NAMES = ["nevus", "melanoma", "actinic keratosis", "other, rare"]
Rows = list[list[str]]


def write_table(path: Path, header: Sequence[str], rows: Rows, separator: str = ",", encoding: str = "utf-8") -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(header)
        writer.writerows(rows)


def entries(tree: Path, split: str) -> list[tuple[str, int]]:
    """(path, label) of the list file of a split."""
    lines = (tree / f"{split}.txt").read_text().splitlines()
    return [(path, int(label)) for path, label in (line.rsplit(" ", 1) for line in lines)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Image files with lists, and the same as tables: image, age, label, the class by its number."""
    folder = write_tree(tmp_path / "tree", SIZES, test=2)
    for split in ("train", "test"):
        rows = [[path, "45", str(label)] for path, label in entries(folder, split)]
        write_table(folder / f"{split}.csv", ["image", "age", "label"], rows)
    return folder


def opened(tree: Path, **settings: Any) -> Any:
    source = {"folder": str(tree), "train": "train.csv", "test": "test.csv"} | settings
    return ImageTables(**source).open(tree)


def assert_equals_lists(tables: Any, tree: Path) -> None:
    """Paths, labels and their hashes are those of the list files; where a file is named differs."""
    lists = ImageLists(str(tree), "train.txt", test="test.txt").open(tree)
    assert tables.hashes == lists.hashes
    for split, found in tables.splits.items():
        assert found.paths.tolist() == lists.splits[split].paths.tolist()
        assert np.array_equal(found.labels, lists.splits[split].labels)
        assert np.array_equal(found.index, lists.splits[split].index)


def test_a_table_is_the_list_of_its_rows(tree: Path) -> None:
    tables = opened(tree)
    assert_equals_lists(tables, tree)
    assert tables.class_names == ("0", "1", "2", "3")
    assert tables.train.where(0) == f"{tree}/train/class000/00000.jpg (train.csv, row 2)"


def test_kaggle_names_without_endings_and_classes_as_words(tree: Path) -> None:
    """Labels follow the file of classes; without it the names are sorted."""
    for split in ("train", "test"):
        rows = [
            [NAMES[label], path.removeprefix(f"{split}/").removesuffix(".jpg")] for path, label in entries(tree, split)
        ]
        write_table(tree / f"{split}.csv", ["dx", "image_id"], rows, ";", "utf-8-sig")
    (tree / "classes.txt").write_text("\n".join(NAMES))
    form: dict[str, Any] = {"path": "image_id", "label": "dx", "separator": ";", "ending": ".jpg"}
    form["images"] = {"train": "train/", "test": "test", "validation": None}
    ordered = opened(tree, classes="classes.txt", **form)
    assert_equals_lists(ordered, tree)
    assert ordered.class_names == tuple(NAMES)
    by_text = opened(tree, **form)
    assert by_text.class_names == tuple(sorted(NAMES))
    assert [by_text.class_names[label] for label in by_text.train.labels] == [
        NAMES[label] for label in ordered.train.labels
    ]


def test_isic_marks_a_column_for_each_class(tree: Path) -> None:
    columns = ["MEL", "NV", "BCC", "AK"]
    for split in ("train", "test"):
        rows = [
            [path, *("1.0" if label == at else "0.0" for at in range(4)), "0.5"] for path, label in entries(tree, split)
        ]
        write_table(tree / f"{split}.csv", ["image", *columns, "weight"], rows)
    tables = opened(tree, label=columns)
    assert_equals_lists(tables, tree)
    assert tables.class_names == tuple(columns)


def test_numbers_are_ordered_as_numbers_and_may_be_named(tree: Path) -> None:
    for split in ("train", "test"):
        write_table(
            tree / f"{split}.csv", ["image", "label"], [[path, str(9 + label)] for path, label in entries(tree, split)]
        )
    assert_equals_lists(opened(tree), tree)  # 9, 10, 11, 12 are labels 0 to 3
    assert opened(tree).class_names == ("9", "10", "11", "12")
    for split in ("train", "test"):
        write_table(
            tree / f"{split}.csv", ["image", "label"], [[path, str(label)] for path, label in entries(tree, split)]
        )
    (tree / "classes.txt").write_text("\n".join(NAMES))
    named = opened(tree, classes="classes.txt")
    assert_equals_lists(named, tree)
    assert named.class_names == tuple(NAMES)


def change(row: int, *fields: str) -> Callable[[Rows], None]:
    def changed(rows: Rows) -> None:
        rows[row - 2] = list(fields)

    return changed


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (change(3, "train/x.jpg", "45"), "train.csv, row 3: 2 fields, and 3 columns have a name"),
        (change(3, "", "45", "1"), "train.csv, row 3: nothing in column 'image'"),
        (change(3, "train/x.jpg", "45", " "), "train.csv, row 3: nothing in column 'label'"),
        (change(3, "../x.jpg", "45", "1"), "train.csv, row 3: '../x.jpg' is outside the dataset's folder"),
        (change(3, "train\\x.jpg", "45", "1"), r"train.csv, row 3: 'train\\x.jpg': write / between folders"),
        (change(3, "", "", ""), "train.csv, row 3: it is blank"),
        (change(4, "train/class000/00000.jpg", "", "0"), "train.csv, row 4: 'train/class000/00000.jpg' is also row 2"),
        (
            change(4, "./train//./class000/00000.jpg", "", "0"),
            "train.csv, row 4: 'train/class000/00000.jpg' is also row 2",
        ),
        (
            change(4, "train/class000/00000.jpg", "", "1"),
            "train.csv, row 4: 'train/class000/00000.jpg' is also row 2, there with label 0",
        ),
    ],
)
def test_a_bad_row_is_one_line(edit: Callable[[Rows], None], line: str, tree: Path) -> None:
    rows = [[path, "45", str(label)] for path, label in entries(tree, "train")]
    edit(rows)
    write_table(tree / "train.csv", ["image", "age", "label"], rows)
    found, problems = ImageTables(str(tree), "train.csv", test="test.csv").inspect(tree)
    assert found is None
    assert problems == [line]


def test_many_bad_rows_are_counted(tree: Path) -> None:
    rows = [[path, "45", ""] for path, _ in entries(tree, "train")]
    write_table(tree / "train.csv", ["image", "age", "label"], rows)
    problems = ImageTables(str(tree), "train.csv").inspect(tree)[1]
    assert problems[:3] == [f"train.csv, row {row}: nothing in column 'label'" for row in (2, 3, 4)]
    assert problems[3:] == [f"train.csv: {len(rows) - 3} more rows with no class"]


def test_what_is_wrong_between_tables_and_classes(tree: Path) -> None:
    def problems(**settings: Any) -> list[str]:
        source = {"folder": str(tree), "train": "train.csv", "test": "test.csv"} | settings
        return ImageTables(**source).inspect(tree)[1]

    rows = [[path, str(label)] for path, label in entries(tree, "test")]
    write_table(tree / "new.csv", ["image", "label"], [*rows[:2], ["train/class000/00000.jpg", "0"], ["x.jpg", "7"]])
    assert problems(test="new.csv") == [
        "new.csv, row 5: class '7' is none of train.csv",
        "new.csv, row 4: 'train/class000/00000.jpg' is also in train.csv, row 2",
    ]
    (tree / "classes.txt").write_text("\n".join([*NAMES, "never seen"]))
    assert problems(classes="classes.txt") == ["train.csv: no image of 1 classes: never seen"]
    assert problems(label="dx") == [
        f"{name} has no column 'dx' (dataset.source.label) but image, age, label" for name in ("train.csv", "test.csv")
    ]
    assert problems(path="id", test=None) == [
        "train.csv has no column 'id' (dataset.source.path) but image, age, label"
    ]
    assert problems(separator=";", test=None) == [
        "train.csv has no column 'image' (dataset.source.path) but image,age,label; fields seem to be separated by "
        "',', see dataset.source.separator"
    ]
    assert problems(label=["age", "label"], test=None)[0].startswith(
        "train.csv, row 2: expected 1 in one of the columns of classes, 0 elsewhere: '45, 0'"
    )
    (tree / "bytes.csv").write_bytes(b"image,label\nx\xff.jpg,0\n")
    assert problems(train="bytes.csv", test=None) == [
        "bytes.csv: not a table of text (it is not UTF-8): save it as CSV in UTF-8"
    ]
    (tree / "empty.csv").write_text("image,label\n")
    assert problems(train="empty.csv", test=None) == ["empty.csv names no image"]
    assert problems(train="absent.csv", test=None) == [f"{tree}/absent.csv: No such file or directory"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"separator": "x"}, "invalid separator="),
        ({"label": ["a", "a"]}, "invalid label="),
        ({"label": "image"}, "invalid path="),
        ({"images": {"extra": "x"}}, "invalid images="),
        ({"images": {"train": "a", "test": "b"}}, r"invalid images\.test=b: expected null, or test to name a table"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        ImageTables("x", "train.csv", **settings)


def test_the_command_and_a_run(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checked with their files, trained on, and the same data as the lists for the stage cache."""
    assert main(["check", "image_csv", f"source.folder={tree}", "source.test=test.csv", "decode=true"]) == 0
    assert "labels, by number: 0 is 0, 1 is 1, 2 is 2, 3 is 3" in capsys.readouterr().out
    words = ["method=ce", "stage1.epochs=1", "backbone=resnet10", "dataset.image_size=32", "dataset.resize=36"]
    words += [f"dataset.source.folder={tree}", "dataset.workers=0"]
    run_here(tmp_path / "tables", "dataset=image_csv", "dataset.source.test=test.csv", *words)
    run_here(tmp_path / "lists", "dataset=image_list", "dataset.source.test=test.txt", *words)
    tables, lists = (read_record(tmp_path / name) for name in ("tables", "lists"))
    assert lists["stages"][0]["cached"]
    assert tables["metrics"] == lists["metrics"]
    (tree / "train/class000/00000.jpg").unlink()
    capsys.readouterr()
    assert main(["check", "image_csv", f"source.folder={tree}", "source.test=test.csv"]) == 1
    gone = f"{tree}/train/class000/00000.jpg (train.csv, row 2)"
    assert f"image_csv: 1 of {sum(SIZES)} train images are missing: {gone}" in capsys.readouterr().out
