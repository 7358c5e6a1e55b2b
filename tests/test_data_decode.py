"""Whatever an image file holds becomes RGB, and whatever is wrong with it is said in one line that names it."""

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from ltexp.data.files.decode import Crop, open_rgb, read_crop
from ltexp.errors import DataError


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_images().images[0])  # 640 x 427


def whole(width: int, height: int) -> Crop:
    return Crop((0, 0, width, height))


def saved(folder: Path, image: Image.Image, name: str, **settings: object) -> str:
    image.save(folder / name, **settings)
    return str(folder / name)


def pixels(path: str) -> np.ndarray:
    image = open_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_grey_cmyk_palette_and_alpha_become_rgb(tmp_path: Path, photo: Image.Image) -> None:
    colours = np.asarray(photo)
    grey = pixels(saved(tmp_path, photo.convert("L"), "grey.png"))
    assert np.array_equal(grey, np.repeat(np.asarray(photo.convert("L"))[..., None], 3, axis=2))
    with_alpha = photo.copy()
    with_alpha.putalpha(Image.new("L", photo.size, 100))
    assert np.array_equal(pixels(saved(tmp_path, with_alpha, "alpha.png")), colours)  # dropped, as torchvision does
    cmyk = pixels(saved(tmp_path, photo.convert("CMYK"), "cmyk.jpg", quality=95))
    assert np.abs(cmyk.astype(int) - colours).mean() < 4
    palette = pixels(saved(tmp_path, photo.quantize(256), "palette.png", transparency=bytes(range(256))))
    assert np.abs(palette.astype(int) - colours).mean() < 10
    one_bit = pixels(saved(tmp_path, photo.convert("1"), "bits.png"))
    assert set(np.unique(one_bit)) == {0, 255}


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path: Path, name: str) -> None:
    levels = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    found = pixels(saved(tmp_path, Image.fromarray(levels), name))
    assert np.array_equal(found[..., 0], np.rint(levels / 257).astype(np.uint8))
    assert found.min() == 0
    assert found.max() == 255


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    path = saved(tmp_path, frames[0], "moving.gif", save_all=True, append_images=frames[1:])
    assert (pixels(path) == [255, 0, 0]).all()
    assert (read_crop(path, None, 4, whole) == [255, 0, 0]).all()


def test_bad_files_are_named_in_one_line(tmp_path: Path, photo: Image.Image) -> None:
    content = Path(saved(tmp_path, photo, "good.jpg")).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    image = io.BytesIO()
    photo.save(image, "PNG")
    (tmp_path / "cut.png").write_bytes(image.getvalue()[:5000])
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    for name in ("cut.jpg", "empty.jpg", "text.jpg", "cut.png", "float.tif", "missing.jpg"):
        for read in (open_rgb, lambda path: read_crop(path, None, 32, whole)):
            with pytest.raises(DataError) as caught:
                read(str(tmp_path / name))
            assert str(caught.value).startswith(f"{tmp_path / name}: ")
            assert "\n" not in str(caught.value)


def test_threads_that_read_leave_the_process_as_it_was(tmp_path: Path, photo: Image.Image) -> None:
    """The first that begins ends first, while the other still reads."""
    path, both_read, one_ended, limits = saved(tmp_path, photo, "photo.png"), Event(), Event(), []
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)

    def first(width: int, height: int) -> Crop:
        assert both_read.wait(60)
        return whole(width, height)

    def second(width: int, height: int) -> Crop:
        both_read.set()
        assert one_ended.wait(60)
        limits.append(Image.MAX_IMAGE_PIXELS)
        return whole(width, height)

    with ThreadPoolExecutor(2) as threads:
        one, other = (threads.submit(read_crop, path, None, 4, crop_of) for crop_of in (first, second))
        one.result()
        one_ended.set()
        other.result()
    assert limits == [None]
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_a_crop_is_what_pillow_cuts_and_resizes(tmp_path: Path, photo: Image.Image) -> None:
    path = saved(tmp_path, photo, "photo.jpg")
    box = (31, 17, 331, 257)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB").resize((96, 96), Image.Resampling.BILINEAR, box=box))
    assert np.array_equal(read_crop(path, None, 96, lambda *_: Crop(box)), expected)
    assert np.array_equal(read_crop(path, None, 96, lambda *_: Crop(box, mirrored=True)), expected[:, ::-1])
    assert np.array_equal(read_crop("not read", Path(path).read_bytes(), 96, lambda *_: Crop(box)), expected)


def test_decoding_at_a_fraction_of_the_size_hardly_changes_a_large_photo(tmp_path: Path, photo: Image.Image) -> None:
    path = saved(tmp_path, photo, "photo.jpg", quality=90)
    for size in (13, 26, 53, 100):  # an eighth, a quarter, a half, and a half of which twice as many pixels remain
        with Image.open(path) as image:
            full = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)).astype(int)
        assert np.array_equal(read_crop(path, None, size, whole), full)
        reduced = read_crop(path, None, size, whole, exact=False)
        assert not np.array_equal(reduced, full)  # it is decoded at a fraction
        assert np.abs(reduced - full).mean() < 3
    assert np.array_equal(read_crop(path, None, 110, whole), read_crop(path, None, 110, whole, exact=False))
