"""Image files to RGB pixels with Pillow; without torch."""

import warnings
from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ltexp.errors import DataError

SPARE = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size only where at least this many pixels for each kept remain
LEVELS_16_BIT = 65535

Pixels = npt.NDArray[np.uint8]
T = TypeVar("T")


class Crop(NamedTuple):
    """A part of an image.

    Attributes:
        box: left, top, right and bottom in the image's own pixels, not necessarily whole ones.
        mirrored: left to right.
    """

    box: tuple[float, float, float, float]
    mirrored: bool = False


def open_rgb(path: str, content: bytes | None = None) -> Image.Image:
    """The image of a file in mode RGB, at its full size, as torchvision's loader gives it but for 16-bit images.

    Grey, CMYK and palette images are converted, an alpha channel is dropped, of an animation the first frame is taken.
    16-bit grey is scaled to 8 bits, where a plain conversion would clip it. An EXIF orientation is not applied.

    Args:
        path: the file's path, which errors name.
        content: the file's bytes; None: they are read from `path`.

    Raises:
        DataError: for a file that is missing, truncated, damaged or of no known format.
    """
    return _read(path, content, _to_rgb)


def read_crop(
    path: str, content: bytes | None, size: int, crop_of: Callable[[int, int], Crop], exact: bool = True
) -> Pixels:
    """uint8 (size, size, 3): a part of an image, resized in one step (bilinear, with antialiasing).

    Args:
        path, content: those of `open_rgb`.
        size: side of the result.
        crop_of: the part to keep of an image of some width and height.
        exact: False: a JPEG much larger than what is kept of it may be decoded at a fraction of its size, with at least
            `SPARE` decoded pixels along each side for each one that is kept. It is three times as fast for an image of
            1500x1200 pixels, and changes values by 1 to 3 of 255 on average.

    Raises:
        DataError: as `open_rgb`.
    """

    def cut(image: Image.Image) -> Pixels:
        width, height = image.size
        (left, top, right, bottom), mirrored = crop_of(width, height)
        enough = SPARE * size
        if not exact and right - left >= 2 * enough and bottom - top >= 2 * enough:
            image.draft(None, (int(width * enough / (right - left)), int(height * enough / (bottom - top))))
        across, down = image.size[0] / width, image.size[1] / height
        box = (left * across, top * down, right * across, bottom * down)
        pixels = np.asarray(_to_rgb(image).resize((size, size), Image.Resampling.BILINEAR, box=box))
        return pixels[:, ::-1] if mirrored else pixels

    return _read(path, content, cut)


def _read(path: str, content: bytes | None, use: Callable[[Image.Image], T]) -> T:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata and the like, which do not touch the pixels
            with Image.open(path if content is None else BytesIO(content)) as image:
                return use(image)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except Exception as error:  # a decoder raises whatever it stumbles over
        raise DataError(f"{path}: not a readable image ({error})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
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
