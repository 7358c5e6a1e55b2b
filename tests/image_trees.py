"""Trees of real, long-tailed JPEG files, small and quickly made, for tests of image files."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ODD = ("grey.jpg", "cmyk.jpg", "sixteen_bit.png", "palette.gif", "animated.gif", "alpha.png", "with space.jpg")


def long_tail(classes: int, largest: int, smallest: int = 1) -> list[int]:
    """Class sizes that fall exponentially from `largest` to `smallest`."""
    share = (smallest / largest) ** (1 / max(classes - 1, 1))
    return [max(smallest, round(largest * share**label)) for label in range(classes)]


def make_image(label: int, number: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """RGB noise around a colour of the class's own, so that a network can learn the classes; always the same."""
    draws = np.random.default_rng((label, number))
    colour = np.random.default_rng(label).integers(40, 216, 3)
    noise = draws.integers(-30, 31, (size[1] // 4 + 1, size[0] // 4 + 1, 3))
    pixels = np.clip(colour + noise, 0, 255).astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    return Image.fromarray(pixels[: size[1], : size[0]])


def write_split(
    folder: Path, names: Sequence[str], sizes: Sequence[int], first: int = 0, size: tuple[int, int] = (40, 32)
) -> list[tuple[str, int]]:
    """Writes `<folder>/<name>/<number>.jpg`, numbered from `first`; (path relative to the folder, label) of each."""
    written = []
    for label, (name, count) in enumerate(zip(names, sizes, strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            path = f"{name}/{number:05}.jpg"
            make_image(label, number, size).save(folder / path, quality=90)
            written.append((path, label))
    return written


def write_tree(
    folder: Path,
    train: Sequence[int],
    test: int = 2,
    validation: int = 0,
    names: Sequence[str] | None = None,
    size: tuple[int, int] = (40, 32),
) -> Path:
    """Writes train/, test/ and, if there are any, val/ of a folder for each class, and the same as list files.

    Args:
        folder: that it is written to; returned.
        train: training images of each class.
        test, validation: images of every class.
        names: of the classes. Default: class000, class001, ...
        size: width and height of the images.
    """
    names = names or [f"class{label:03}" for label in range(len(train))]
    sizes: Mapping[str, Sequence[int]] = {
        "train": train,
        "val": [validation] * len(train),
        "test": [test] * len(train),
    }
    first = 0
    for split, counts in sizes.items():
        if sum(counts):
            write_list(folder / f"{split}.txt", write_split(folder / split, names, counts, first, size), f"{split}/")
        first += max(counts)
    return folder


def write_list(path: Path, entries: Sequence[tuple[str, int]], prefix: str = "") -> Path:
    """Writes a list file of "path label" lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{prefix}{name} {label}\n" for name, label in entries))
    return path


def write_odd(folder: Path) -> list[str]:
    """Writes an image of every unusual but readable kind into `folder`; their names, `ODD`."""
    folder.mkdir(parents=True, exist_ok=True)
    image = make_image(0, 0)
    grey = np.asarray(image.convert("L"))
    image.convert("L").save(folder / "grey.jpg")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "sixteen_bit.png")
    image.quantize(16).save(folder / "palette.gif")
    image.save(folder / "animated.gif", save_all=True, append_images=[make_image(1, 0), make_image(2, 0)])
    image.convert("RGBA").save(folder / "alpha.png")
    image.save(folder / "with space.jpg")
    return list(ODD)


def truncate(path: Path, share: float = 0.5) -> Path:
    """Cuts the end of a file off, as a broken download does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def main() -> None:
    """`python tests/image_trees.py FOLDER`: over 20,000 training images of 200 classes, 500 to 5 of each, odd ones too.

    A run on it: ltexp train dataset=image_folder dataset.source.folder=FOLDER
    """
    folder = write_tree(Path(sys.argv[1]), long_tail(200, 500, 5), size=(48, 40))
    write_odd(folder / "train" / "class000")
    print(f"{folder}: {sum(1 for _ in folder.glob('train/*/*'))} training images")


if __name__ == "__main__":
    main()
