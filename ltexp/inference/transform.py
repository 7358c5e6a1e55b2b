"""Images from anywhere to what a trained network reads, just as the evaluation of its run did it."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from ltexp.data.files.augmentation import CentreCrop
from ltexp.data.files.decode import AS_STORED, Reading, open_rgb, to_rgb, turned_upright
from ltexp.data.files.folder_source import ENDINGS, images_below
from ltexp.data.normalize import Normalize
from ltexp.errors import DataError
from ltexp.evaluation.arrays import to_numpy
from ltexp.processes.cores import usable_cores

Pixels = npt.NDArray[np.uint8]
MOST_CHANNELS = 4  # of an image, its alpha channel counted


class ImageTransform:
    """`transform(image)` is float32 (3, S, S): the middle square of a resized image, normalised.

    Args:
        size: S; None: images stay as they are, all of one size.
        resize: the length that the short side gets before the square is cut out; S where images lie in memory.
        mean, std: those of R, G and B, for images scaled to [0, 1].
        reading: how image files are read.
    """

    def __init__(
        self,
        size: int | None,
        resize: int | None,
        mean: Sequence[float],
        std: Sequence[float],
        reading: Reading = AS_STORED,
    ) -> None:
        self.size, self.mean, self.std, self.reading = size, tuple(mean), tuple(std), reading
        self.resize = size if resize is None else resize

    def __call__(self, image: Any) -> Tensor:
        """float32 (3, S, S) of a path, an image of Pillow's, or uint8 (H, W, 3), (3, H, W) or (H, W).

        Raises:
            DataError: for a file or an image of Pillow's that cannot be read, or an array of another kind.
        """
        return self.normalize(self.pixels(image)[None])[0]

    def batch(self, images: Sequence[Any]) -> Tensor:
        """float32 (B, 3, S, S) of several images, files decoded by several threads; see `__call__`."""
        with ThreadPoolExecutor(usable_cores()) as threads:
            pixels = list(threads.map(self.pixels, images))
        if len({image.shape for image in pixels}) > 1:
            raise DataError("these images are of several sizes and the run does not say which its network reads")
        return self.normalize(np.stack(pixels))

    def pixels(self, image: Any) -> Pixels:
        """uint8 (S, S, 3) of an image; see `__call__`."""
        if isinstance(image, str | os.PathLike):
            opened = open_rgb(os.fspath(image), reading=self.reading)
        elif isinstance(image, Image.Image):
            opened = _rgb_of(image, self.reading)
        else:
            opened = Image.fromarray(_channels_last(to_numpy(image)))
        if self.size is None or self.resize is None:
            return np.array(opened)
        box = CentreCrop(self.resize, self.size).crop(*opened.size, {}).box
        return np.array(opened.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box))

    def normalize(self, pixels: Pixels) -> Tensor:
        """float32 (B, 3, H, W) of uint8 (B, H, W, 3)."""
        return Normalize(self.mean, self.std, pixels.shape[2], torch.device("cpu"))(torch.from_numpy(pixels))


def _rgb_of(image: Image.Image, reading: Reading) -> Image.Image:
    """An image of Pillow's in mode RGB, as `open_rgb` has it from its file."""
    try:
        return to_rgb(turned_upright(image, reading))
    except Exception as error:  # a decoder raises whatever it stumbles over
        name = getattr(image, "filename", "") or f"an image of Pillow's of mode {image.mode}"
        raise DataError(f"{name}: not a readable image ({error})") from None


def _channels_last(image: npt.NDArray[Any]) -> Pixels:
    """uint8 (H, W, 3) of an array of an image."""
    if image.dtype != np.uint8:
        raise DataError(f"an image of {image.dtype}: expected uint8, 0 to 255")
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim == 3 and image.shape[2] != 3 and image.shape[0] == 3:
        image = image.transpose(1, 2, 0)
    if image.ndim != 3 or image.shape[2] != 3:
        alpha = ", without its alpha channel image[..., :3]" if image.ndim == 3 and image.shape[2] == 4 else ""
        raise DataError(f"an image of shape {image.shape}: expected (H, W, 3), (3, H, W) or (H, W){alpha}")
    return np.ascontiguousarray(image)


def find_images(folder: Path) -> list[Path]:
    """The image files at or below a folder, sorted by path; what `ImageFolders` passes over is none.

    Raises:
        DataError: if there are none.
    """
    found = sorted(folder / os.fsdecode(path) for path in images_below(folder, folder, Counter()))
    if not found:
        endings = sorted(ending.decode() for ending in ENDINGS)
        raise DataError(f"no images in {folder}: expected files ending in {', '.join(endings)}")
    return found


def _is_one(images: Any) -> bool:
    """Whether an array is of one image: (H, W), or (H, W, c) with so few columns c that they are channels.

    Raises:
        DataError: for (3, H, W), which may be one image in colour or three grey ones.
    """
    shape = tuple(getattr(images, "shape", ()))
    if len(shape) != 3:
        return len(shape) == 2
    if shape[0] == 3 and shape[2] > MOST_CHANNELS:
        raise DataError(f"an array of shape {shape}: give [images] if it is one image, list(images) if three grey ones")
    return bool(shape[2] <= MOST_CHANNELS)


def listed(images: Any) -> tuple[list[Any], list[str]]:
    """(single images, a name of each) of whatever holds some: see `Predictor.predict`.

    Raises:
        DataError: for a path that does not exist, a folder without images, an array of shape (3, H, W), or nothing.
    """
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        if not path.exists():
            raise DataError(f"no such image or folder: {path}")
        found = find_images(path) if path.is_dir() else [path]
        return list(found), [str(file) for file in found]
    if isinstance(images, Image.Image) or _is_one(images):
        images = [images]
    several = list(to_numpy(images)) if hasattr(images, "ndim") else list(images)
    if not several:
        raise DataError("no images to predict")
    paths = (os.fspath(image) if isinstance(image, str | os.PathLike) else None for image in several)
    return several, [str(number) if path is None else path for number, path in enumerate(paths)]
