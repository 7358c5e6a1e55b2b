"""Images given to a finished run are read as its evaluation read them, whatever they come in, or refused in a line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import long_tail, make_image, write_tree
from PIL import Image, ImageOps
from runs import run_here

import ltexp
from ltexp.data.files.decode import Reading
from ltexp.errors import ConfigError, DataError
from ltexp.inference.transform import ImageTransform, find_images, listed
from ltexp.predict import main as predict_main

ORIENTATION = 0x0112
PLAIN = ImageTransform(16, 16, [0.0] * 3, [1.0] * 3)


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a tree whose test images lie on their side, a run that turns them upright)."""
    root = tmp_path_factory.mktemp("turned")
    tree = write_tree(root / "tree", long_tail(3, 8, 2), test=4)
    exif = Image.Exif()
    for number, path in enumerate(sorted((tree / "test").rglob("*.jpg"))):
        exif[ORIENTATION] = (6, 8, 3, 1)[number % 4]
        make_image(number % 3, number).save(path, exif=exif)
    run_here(
        root / "run",
        *("method=ce", "dataset=image_list", f"dataset.source.folder={tree}", "dataset.workers=0"),
        *("dataset.source.train=train.txt", "dataset.source.test=test.txt", "stage1.epochs=1"),
        *("dataset.source.exif_orientation=true", "dataset.source.max_pixels=2000", "stage_cache.enabled=false"),
        *("backbone=resnet10", "dataset.image_size=32", "dataset.resize=36"),
    )
    return tree, root / "run"


def test_images_are_turned_upright_where_the_run_turned_them(turned: tuple[Path, Path]) -> None:
    """The run's own predictions, from the files and from images that Pillow opened."""
    tree, folder = turned
    recorded = np.load(folder / "predictions.npz")["logits"]
    run = ltexp.load(folder, accelerator="cpu")
    paths = sorted((tree / "test").rglob("*.jpg"))
    np.testing.assert_allclose(run.predict(tree / "test").logits, recorded, atol=1e-5)
    np.testing.assert_allclose(run.predict([Image.open(path) for path in paths]).logits, recorded, atol=1e-5)
    upright = [ImageOps.exif_transpose(Image.open(path)) for path in paths]  # nothing is left to turn
    np.testing.assert_allclose(run.predict(upright).logits, recorded, atol=1e-5)
    torch.testing.assert_close(run.transform(paths[0]), run.transform(np.asarray(upright[0])))


def test_an_image_too_large_for_the_run_is_refused(turned: tuple[Path, Path], tmp_path: Path) -> None:
    make_image(0, 0, (64, 48)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"64x48 pixels are more than max_pixels=2000: raise it"):
        ltexp.load(turned[1], accelerator="cpu").predict(tmp_path / "x.png")


def test_the_limit_of_an_images_size_can_be_raised(turned: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    make_image(0, 0, (64, 48)).save(tmp_path / "x.png")
    words = [str(turned[1]), str(tmp_path / "x.png"), "accelerator=cpu"]
    assert predict_main([*words, "max_pixels=3072"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert predict_main([*words, "max_pixels=3071"]) != 0
    assert "64x48 pixels are more than max_pixels=3071: raise it" in capsys.readouterr().err
    for wrong in ("0", "many"):
        assert predict_main([*words, f"max_pixels={wrong}"]) != 0
        assert f"invalid max_pixels={wrong}: expected a whole number of 1 or more" in capsys.readouterr().err


def test_files_of_systems_are_no_images(tmp_path: Path) -> None:
    for name in ("b/0.png", "a.JPG", "._a.png", ".hidden/1.png", "@eaDir/b/2.png", "__MACOSX/3.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == [tmp_path / "a.JPG", tmp_path / "b" / "0.png"]
    (tmp_path / "a.JPG").unlink()
    (tmp_path / "b" / "0.png").unlink()
    with pytest.raises(DataError, match=f"^no images in {tmp_path}: expected files ending in "):
        find_images(tmp_path)


@pytest.mark.parametrize(("mode", "ending"), [("I;16", "png"), ("I", "tif")])
def test_16_bits_are_scaled_in_an_opened_image_too(mode: str, ending: str, tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 16 * 16).reshape(16, 16)
    image = Image.fromarray(levels.astype(np.uint16 if mode == "I;16" else np.int32))
    assert image.mode == mode
    image.save(tmp_path / f"x.{ending}")
    scaled = torch.from_numpy(np.rint(levels.astype(int) / 257) / 255).float().expand(3, 16, 16)
    for given in (image, Image.open(tmp_path / f"x.{ending}"), tmp_path / f"x.{ending}"):
        torch.testing.assert_close(PLAIN(given), scaled)


def test_an_image_that_cannot_be_converted_is_one_line() -> None:
    with pytest.raises(DataError, match=r"of mode F: not a readable image \(its pixels are floating-point numbers"):
        PLAIN(Image.fromarray(np.ones((4, 4), np.float32)))


def test_what_is_stored_is_read_where_nothing_else_is_asked_for() -> None:
    image = make_image(0, 0, (16, 16))
    image.getexif()[ORIENTATION] = 3
    half_turned = ImageTransform(16, 16, [0.0] * 3, [1.0] * 3, Reading(exif_orientation=True))
    torch.testing.assert_close(half_turned(image), PLAIN(image).flip(1, 2))


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((48, 64), 1),
        ((48, 64, 3), 1),
        ((3, 64, 3), 1),
        ((5, 48, 64), 5),
        ((4, 48, 64), 4),
        ((1, 48, 64), 1),
        ((2, 48, 64, 3), 2),
        ((2, 3, 48, 64), 2),
    ],
)
@pytest.mark.parametrize("of", [lambda array: array, torch.from_numpy])
def test_an_array_holds_so_many_images(shape: tuple[int, ...], rows: int, of: object) -> None:
    images, names = listed(of(np.zeros(shape, np.uint8)))  # type: ignore[operator]
    assert PLAIN.batch(images).shape == (rows, 3, 16, 16)
    assert names == [str(row) for row in range(rows)]


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_are_not_taken_for_grey_images(channels: int) -> None:
    image = np.zeros((48, 64, channels), np.uint8)
    hint = r", without its alpha channel image\[\.\.\., :3\]" if channels == 4 else ""
    message = rf"of shape \(48, 64, {channels}\): expected \(H, W, 3\), .*\(H, W\){hint}$"
    for given in (image, [image], image[None]):
        with pytest.raises(DataError, match=message):
            PLAIN.batch(listed(given)[0])


def test_three_grey_images_are_not_taken_for_one_in_colour() -> None:
    images = np.zeros((3, 48, 64), np.uint8)
    with pytest.raises(DataError, match=r"shape \(3, 48, 64\): give \[images\] if it is one image, list\(images\) if"):
        listed(images)
    assert len(listed([images])[0]) == 1
    assert len(listed(list(images))[0]) == 3


def test_a_missing_gpu_is_said_with_the_arguments_name(
    turned: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"^torch sees no GPU here: set accelerator=cpu$"):
        ltexp.load(turned[1], accelerator="gpu")
    with pytest.raises(ConfigError, match=r"^invalid accelerator=tpu: expected"):
        ltexp.load(turned[1], accelerator="tpu")
