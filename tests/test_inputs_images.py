"""Folders and pictures as people have them: numbers as names, other endings, folders of systems, orientations."""

from pathlib import Path

import numpy as np
import pytest
from image_trees import make_image, write_split, write_tree
from PIL import Image, ImageOps

from ltexp.config.build import build
from ltexp.data.__main__ import main
from ltexp.data.commands.catalog import dataset_config
from ltexp.data.files.cache import make_cache
from ltexp.data.files.decode import Crop, Reading, open_rgb, read_crop
from ltexp.data.files.folder_source import in_label_order
from ltexp.data.files.split import FileSplit
from ltexp.data.types import LongTailedData
from ltexp.errors import ConfigError, DataError


def folders(folder: Path, **source: object) -> LongTailedData:
    config = dataset_config("image_folder")
    config["source"] |= {"folder": str(folder)} | source
    data: LongTailedData = build(config | {"test": {"fraction": 0.2}}, root=folder)
    return data


def checked(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["check", "image_folder", f"source.folder={folder}", *words])
    return code, capsys.readouterr().out


def test_folders_of_numbers_are_labelled_by_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_split(tmp_path, [str(number) for number in range(12)], range(2, 14))
    data = folders(tmp_path)
    assert data.class_names == tuple(map(str, range(12)))
    assert np.bincount(np.concatenate([data.train.labels, data.test.labels])).tolist() == list(range(2, 14))
    assert "labels, by number: 0 is 0, 1 is 1, 2 is 2, ..., 9 is 9, 10 is 10, 11 is 11" in checked(tmp_path, capsys)[1]


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "9", "1"], ("1", "9", "10")),
        (["007", "7", "3"], ("3", "007", "7")),
        (["c10", "c9", "c1"], ("c1", "c10", "c9")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["٣", "10", "9"], ("10", "9", "٣")),  # digits of other scripts are text
    ],
)
def test_other_names_are_sorted_as_text(names: list[str], order: tuple[str, ...]) -> None:
    assert in_label_order(names) == order


def test_what_is_passed_over_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path, [6, 4])
    for name in ("a.HEIC", "b.heic", "notes.txt", "README"):
        (tmp_path / "train" / "class001" / name).write_bytes(b"")
    make_image(0, 0).save(tmp_path / "train" / "loose.jpg")
    code, said = checked(tmp_path, capsys)
    assert code == 0
    note = "note: 5 files in class folders are passed over as no images: 2 .heic, 1 .txt, 1 images in no class folder"
    assert note in said
    assert "1 without an ending" in said
    data = build(dataset_config("image_folder") | {"source": source_of(tmp_path)}, root=tmp_path)
    assert data.facts["passed_over"] == {
        ".heic": 2,
        ".txt": 1,
        "without an ending": 1,
        "images in no class folder": 1,
    }
    assert data.notes[0].startswith("note: 5 files")


def source_of(folder: Path) -> dict[str, object]:
    return dict(dataset_config("image_folder")["source"]) | {"folder": str(folder)}


def test_a_class_of_unread_pictures_alone_says_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(tmp_path, ["crow", "heron"], [3, 3])
    for path in (tmp_path / "heron").iterdir():
        path.rename(path.with_suffix(".heic"))
    code, said = checked(tmp_path, capsys)
    assert code == 1
    assert "no images of 1 classes: heron" in said
    assert "3 .heic" in said


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".JPEG", ".pnm", ".pbm", ".jp2", ".avif", ".webp"])
def test_every_ending_that_is_read_is_decoded(ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_split(tmp_path, ["crow", "heron"], [3, 3])
    kinds = {".jfif": "JPEG", ".jpe": "JPEG", ".pnm": "PPM", ".pbm": "PPM"}
    make_image(1, 9).save(tmp_path / "heron" / f"x{ending}", kinds.get(ending.lower()))
    code, said = checked(tmp_path, capsys, "decode=true")
    assert (code, "7 train images (3 to 4 a class)" in said) == (0, True), said
    assert "passed over" not in said


def test_folders_of_systems_are_no_classes(tmp_path: Path) -> None:
    names = ["crow", "heron", "@eaDir", "__MACOSX", ".ipynb_checkpoints", "lost+found"]
    write_split(tmp_path, names, [3] * 6)
    for name in names[2:]:
        write_split(tmp_path / "crow", [name], [2])
    data = folders(tmp_path)
    assert data.class_names == ("crow", "heron")
    assert len(data.train) + len(data.test) == 6


def test_a_link_that_leads_back_ends(tmp_path: Path) -> None:
    write_split(tmp_path, ["crow", "heron"], [3, 3])
    (tmp_path / "crow" / "again").symlink_to(tmp_path / "crow")
    data = folders(tmp_path)
    assert len(data.train) + len(data.test) == 6


@pytest.mark.parametrize("name", ["Train", "TEST", "Validation", "Val"])
def test_a_split_in_other_letters_is_no_class(name: str, tmp_path: Path) -> None:
    write_split(tmp_path, ["crow", "heron", name], [2, 2, 2])
    with pytest.raises(DataError, match="folders of splits are called train, val and test"):
        folders(tmp_path)


def turned(path: Path, orientation: int) -> Path:
    """An image of 40x32 pixels with a bright corner, stored as a camera of that orientation does."""
    image = make_image(3, 1)
    image.paste((255, 255, 255), (0, 0, 12, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, quality=95, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_applied_if_it_is_asked_for(orientation: int, tmp_path: Path) -> None:
    """Against Pillow's own turning of the whole image; without the key the pixels are as stored."""
    path = turned(tmp_path / "x.jpg", orientation)
    with Image.open(path) as stored:
        plain, upright = np.asarray(stored.convert("RGB")), np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert np.array_equal(open_rgb(str(path)), plain)
    assert np.array_equal(open_rgb(str(path), reading=Reading(exif_orientation=True)), upright)

    def corner(width: int, height: int) -> Crop:
        assert (height, width) == upright.shape[:2]
        return Crop((0, 0, 16, 16))

    crop = read_crop(str(path), None, 16, corner, reading=Reading(exif_orientation=True))
    assert np.array_equal(crop, upright[:16, :16])


def test_a_large_photo_on_its_side_is_decoded_at_a_fraction(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    make_image(3, 1, (640, 480)).save(tmp_path / "x.jpg", quality=95, exif=exif)

    def whole(width: int, height: int) -> Crop:
        assert (width, height) == (480, 640)
        return Crop((0, 0, width, height))

    exact, quick = (
        read_crop(str(tmp_path / "x.jpg"), None, 32, whole, exact, Reading(exif_orientation=True)).astype(int)
        for exact in (True, False)
    )
    assert np.abs(exact - quick).mean() < 4


def test_an_orientation_is_other_data_and_a_cache_has_one(tmp_path: Path) -> None:
    tree = tmp_path / "birds"
    write_split(tree, ["crow", "heron"], [3, 3], size=(48, 40))
    for number in range(3):
        turned(tree / "crow" / f"t{number}.jpg", 6)
    stored, upright = folders(tree), folders(tree, exif_orientation=True)
    assert stored.content_hash != upright.content_hash
    assert stored.test_hash != upright.test_hash
    assert isinstance(upright.train, FileSplit)
    make_cache(tmp_path / "cache", [upright.train, upright.test], 256, 1)  # type: ignore[list-item]
    config = dataset_config("image_folder") | {"cache": str(tmp_path / "cache"), "test": {"fraction": 0.2}}
    build(config | {"source": source_of(tree) | {"exif_orientation": True}}, root=tmp_path)
    with pytest.raises(DataError, match=r"was made with source\.exif_orientation=true, this run has false"):
        build(config | {"source": source_of(tree)}, root=tmp_path)


def test_how_large_an_image_may_be_is_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_split(tmp_path, ["crow", "heron"], [3, 3])
    code, said = checked(tmp_path, capsys, "decode=true", "source.max_pixels=1279")
    assert code == 1
    assert "40x32 pixels are more than dataset.source.max_pixels=1279: raise it" in said
    assert checked(tmp_path, capsys, "decode=true", "source.max_pixels=1280")[0] == 0
    with pytest.raises(ConfigError, match=r"invalid source\.max_pixels=0: expected a whole number of 1 or more"):
        folders(tmp_path, max_pixels=0)
    with pytest.raises(ConfigError, match=r"invalid source\.exif_orientation=1: expected true or false"):
        folders(tmp_path, exif_orientation=1)


def test_pillows_own_limit_does_not_stand_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_image(0, 0).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert open_rgb(str(tmp_path / "x.png")).size == (40, 32)
    assert Image.MAX_IMAGE_PIXELS == 100
