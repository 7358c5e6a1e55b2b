"""Image files to RGB pixels with Pillow; without torch."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ltexp.errors import DataError

SPARE = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size only where at least this many pixels for each kept remain
LEVELS_16_BIT = 65535
MOST_PIXELS = 178_956_970  # of an image, unless more are allowed: where Pillow, by default, refuses one as an attack
ORIENTATION = 0x0112  # the EXIF tag
ON_THEIR_SIDE = (5, 6, 7, 8)  # its values of images that are stored with width and height exchanged

Pixels = npt.NDArray[np.uint8]
T = TypeVar("T")


class Reading(NamedTuple):
    """How the image files of a dataset are read.

    Attributes:
        exif_orientation: whether images are turned upright as cameras note it in them. Default False: the field's
            loaders (torchvision's ImageFolder) take the pixels as they are stored.
        max_pixels: larger images are refused.
        key: the one that says so, for messages.
    """

    exif_orientation: bool = False
    max_pixels: int = MOST_PIXELS
    key: str = "dataset.source.max_pixels"


AS_STORED = Reading()


class Crop(NamedTuple):
    """A part of an image.

    Attributes:
        box: left, top, right and bottom in the image's own pixels, not necessarily whole ones.
        mirrored: left to right.
    """

    box: tuple[float, float, float, float]
    mirrored: bool = False


def open_rgb(path: str, content: bytes | None = None, reading: Reading = AS_STORED) -> Image.Image:
    """The image of a file in mode RGB, at its full size, as torchvision's loader gives it but for 16-bit images.

    Grey, CMYK and palette images are converted, an alpha channel is dropped, of an animation the first frame is taken.
    16-bit grey is scaled to 8 bits, where a plain conversion would clip it.

    Args:
        path: the file's path, which errors name.
        content: the file's bytes; None: they are read from `path`.
        reading: whether an EXIF orientation is applied, and how large an image may be.

    Raises:
        DataError: for a file that is missing, truncated, damaged, too large or of no known format.
    """
    return _read(path, content, lambda image: to_rgb(turned_upright(image, reading)), reading)


def read_crop(
    path: str,
    content: bytes | None,
    size: int,
    crop_of: Callable[[int, int], Crop],
    exact: bool = True,
    reading: Reading = AS_STORED,
) -> Pixels:
    """uint8 (size, size, 3): a part of an image, resized in one step (bilinear, with antialiasing).

    Args:
        path, content: those of `open_rgb`.
        size: side of the result.
        crop_of: the part to keep of an image of some width and height.
        exact: False: a JPEG much larger than what is kept of it may be decoded at a fraction of its size, with at least
            `SPARE` decoded pixels along each side for each one that is kept. It is three times as fast for an image of
            1500x1200 pixels, and changes values by 1 to 3 of 255 on average.
        reading: that of `open_rgb`.

    Raises:
        DataError: as `open_rgb`.
    """

    def cut(image: Image.Image) -> Pixels:
        exchanged = reading.exif_orientation and _orientation(image) in ON_THEIR_SIDE
        width, height = image.size[::-1] if exchanged else image.size
        (left, top, right, bottom), mirrored = crop_of(width, height)
        enough = SPARE * size
        if not exact and right - left >= 2 * enough and bottom - top >= 2 * enough:
            reduced = int(width * enough / (right - left)), int(height * enough / (bottom - top))
            image.draft(None, reduced[::-1] if exchanged else reduced)
        image = turned_upright(image, reading)
        across, down = image.size[0] / width, image.size[1] / height
        box = (left * across, top * down, right * across, bottom * down)
        pixels = np.asarray(to_rgb(image).resize((size, size), Image.Resampling.BILINEAR, box=box))
        return pixels[:, ::-1] if mirrored else pixels

    return _read(path, content, cut, reading)


def _read(path: str, content: bytes | None, use: Callable[[Image.Image], T], reading: Reading) -> T:
    try:
        with _leniency, Image.open(path if content is None else BytesIO(content)) as image:
            if image.width * image.height > reading.max_pixels:
                raise DataError(
                    f"{path}: {image.width}x{image.height} pixels are more than {reading.key}={reading.max_pixels}: "
                    "raise it, or leave the image out"
                )
            return use(image)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except Exception as error:  # a decoder raises whatever it stumbles over
        raise DataError(f"{path}: not a readable image ({error})") from None


@contextmanager
def _no_limit_of_pillow() -> Iterator[None]:
    """Pillow's limit is one for all images of a process, and a key of a dataset is to stand above it."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


class _Leniency:
    """No warnings, of damaged metadata and the like which do not touch the pixels, and no limit of Pillow's.

    Both are settings of the process: the first of the threads that read at a time makes them, the last undoes them.
    """

    def __init__(self) -> None:
        self.lock, self.readers, self.settings = Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            if self.readers == 0:
                self.settings.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                self.settings.enter_context(_no_limit_of_pillow())
            self.readers += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.readers -= 1
            if self.readers == 0:
                self.settings.close()


_leniency = _Leniency()


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(ORIENTATION, 1))


def turned_upright(image: Image.Image, reading: Reading) -> Image.Image:
    """The image as its camera noted it is to be seen, where `reading` says so."""
    if not reading.exif_orientation or _orientation(image) == 1:
        return image
    return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB: 16 bits scaled, transparency left out; ValueError for floating-point pixels."""
    mode = image.mode
    if mode == "F":
        raise ValueError("its pixels are floating-point numbers; store them as integers of 8 or 16 bits")
    if mode == "I" or mode.startswith("I;16"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if mode in ("P", "PA", "La", "RGBa"):
        image = image.convert("RGBA")  # their alpha is dropped below
    return image.convert("RGB")


def _to_8_bits(values: npt.NDArray[Any]) -> Pixels:
    if values.min() < 0 or values.max() > LEVELS_16_BIT:
        raise ValueError("its pixels have more than 16 bits; store them as integers of 8 or 16 bits")
    scaled: Pixels = np.rint(values.astype(np.float32) * (255 / LEVELS_16_BIT)).astype(np.uint8)
    return scaled
