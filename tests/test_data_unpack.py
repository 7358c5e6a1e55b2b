"""`ltexp data unpack`: the images of a folder of Hugging Face datasets, byte for byte, with their labels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import run_here

from ltexp.data.__main__ import main
from ltexp.evaluation.record import read_record

datasets = pytest.importorskip("datasets")

NAMES = ["red kite", "crow/raven", "heron"]
SIZES = {"train": 12, "val": 3, "test": 6, "unlabelled": 2}


def encoded(number: int, kind: str) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def rows(split: str) -> list[dict[str, Any]]:
    first = list(SIZES).index(split) * 100
    return [
        {
            "photo": {"bytes": encoded(first + row, "JPEG" if row % 2 else "PNG"), "path": None},
            "bird": -1 if split == "unlabelled" else row % 3,
            "place": ["wood", "shore"][row % 2],
        }
        for row in range(SIZES[split])
    ]


def made(*splits: str) -> Any:
    kinds = {
        "photo": datasets.Image(),
        "bird": datasets.ClassLabel(names=NAMES),
        "place": datasets.Value("string"),
    }
    features = datasets.Features(kinds)
    return datasets.DatasetDict({split: datasets.Dataset.from_list(rows(split), features=features) for split in splits})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "saved"
    made(*SIZES).save_to_disk(folder)
    return folder


def unpack(root: Path, source: Path, *words: str, name: str = "birds") -> int:
    return main(["unpack", name, f"source={source}", f"root={root}", *words])


def listed(folder: Path, split: str) -> list[tuple[bytes, int]]:
    lines = [line.rsplit(" ", 1) for line in (folder / f"{split}.txt").read_text().splitlines()]
    return [((folder / path).read_bytes(), int(label)) for path, label in lines]


def test_images_are_byte_for_byte_those_of_the_source(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unpack(tmp_path, saved) == 0
    folder = tmp_path / "birds"
    for split, own in (("train", "train"), ("validation", "val"), ("test", "test")):
        assert listed(folder, split) == [(row["photo"]["bytes"], row["bird"]) for row in rows(own)]
    assert (folder / "classes.txt").read_text().splitlines() == NAMES
    assert {path.suffix for path in (folder / "images" / "train").iterdir()} == {".png", ".jpg"}
    said = capsys.readouterr().out
    assert "12 train, 3 validation, 6 test images; not taken: unlabelled" in said
    assert "image_list: ok: 12 train images (4 a class)" in said


def test_parquet_files_as_they_are_downloaded_give_the_same(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, part in made("train", "test").items():
        part.to_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    assert unpack(tmp_path, tmp_path / "hub") == 0
    assert unpack(tmp_path, saved, "validation=none", name="others") == 0
    for split in ("train", "test"):
        assert listed(tmp_path / "birds", split) == listed(tmp_path / "others", split)
    assert not (tmp_path / "others" / "validation.txt").exists()


def test_classes_written_as_text_are_sorted(saved: Path, tmp_path: Path) -> None:
    assert unpack(tmp_path, saved, "label=place") == 0
    assert (tmp_path / "birds" / "classes.txt").read_text() == "shore\nwood\n"
    assert [label for _, label in listed(tmp_path / "birds", "train")] == [1, 0] * 6


@pytest.mark.slow
def test_the_line_that_it_prints_trains(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack(tmp_path, saved)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("for a run:"))
    words = line.removeprefix("for a run: ltexp train ").split()
    small = ["backbone=resnet10", "dataset.image_size=16", "dataset.resize=20", "dataset.workers=0", "stage1.epochs=1"]
    run_here(tmp_path / "run", *words, *small, f"paths.data={tmp_path}", "method=ce")
    record = read_record(tmp_path / "run")
    assert (record["dataset"], record["class_names"], record["class_counts"]) == ("birds", NAMES, [4, 4, 4])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["label=brid"], "label=: unknown column 'brid': did you mean 'bird'?"),
        (["label=photo"], "label=photo is no column of classes"),
        (["image=place"], "image=place is no column of images"),
        (["train=trian"], "train=: unknown split 'trian': did you mean 'train'?"),
        (["test=unlabelled"], "2 of 2 test images have no label: test=none leaves them out"),
        (["train=none"], "no split is called train"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_leaves_nothing(
    saved: Path, tmp_path: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unpack(tmp_path, saved, *words) != 0
    said = capsys.readouterr().err.strip()
    assert line in said
    assert "\n" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_and_a_damaged_image(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "mine.txt").write_text("mine")
    assert unpack(tmp_path, saved) != 0
    assert f"{tmp_path / 'birds'} exists" in capsys.readouterr().err
    bad = [{"image": {"bytes": b"no image", "path": None}, "label": 0}]
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_list(bad, features=kinds).save_to_disk(tmp_path / "bad")
    assert unpack(tmp_path, tmp_path / "bad", name="new") != 0
    assert "row 0 of the train split holds no image that can be read" in capsys.readouterr().err
    assert unpack(tmp_path, tmp_path / "nowhere", name="new") != 0
    assert f"source={tmp_path / 'nowhere'} is no folder" in capsys.readouterr().err
    assert unpack(tmp_path, tmp_path / "birds", name="new") != 0
    assert "image=: unknown column 'image': choose one of text" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"birds", "bad"}
    assert (tmp_path / "birds" / "mine.txt").read_text() == "mine"
