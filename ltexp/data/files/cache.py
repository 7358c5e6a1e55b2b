"""A one-time copy of a dataset's images, resized so that they decode quickly; without torch.

The copies lie one after the other in shards, each written in one step, so that what an interrupted command has made is
kept. `index.npz` is written last: without it there is no cache.
"""

import hashlib
import json
import os
import signal
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from ltexp.data.files.decode import AS_STORED, Reading, open_rgb
from ltexp.data.files.split import FileSplit, Paths
from ltexp.data.tail.selection import hash_of
from ltexp.data.types import Ints
from ltexp.errors import DataError

SCHEMA = 1
QUALITY = 95  # of JPEG, with Pillow's chroma subsampling
SHARD = 512  # images
INDEX, LOCK = "index.npz", "making.lock"
OTHERWISE = "make another cache, or set dataset.cache=null"
AGAIN = "delete the folder and run `ltexp data cache` again"
COMPARED = 100  # originals whose size is looked at when a cache is opened
FACTS = 3  # of each image, int64: bytes of its copy, their CRC-32, bytes of the original


class ImageCache:
    """A finished cache, opened for reading.

    Args:
        folder: the cache's folder.
        short_side: that its images must have.

    Raises:
        DataError: if it is not there, not finished, damaged, or of another size.
    """

    def __init__(self, folder: str, short_side: int) -> None:
        self.folder = Path(folder)
        if not (self.folder / INDEX).is_file():
            state = "is not finished" if any(self.folder.glob("*.shard")) else "holds no cache"
            raise DataError(f"{folder} {state}: run `ltexp data cache NAME out={folder}`")
        try:
            with np.load(self.folder / INDEX) as arrays:
                settings = json.loads(str(arrays["settings"]))
                self._paths, facts = arrays["paths"], arrays["facts"]
        except Exception as error:  # whatever a damaged archive leads to
            raise DataError(f"{self.folder / INDEX} is damaged ({error}): {AGAIN}") from None
        if settings["schema"] != SCHEMA or settings["short_side"] != short_side:
            raise DataError(
                f"{folder} holds images of {settings['short_side']} pixels on the short side, and dataset.resize="
                f"{short_side}: {OTHERWISE}"
            )
        self._digest = settings["digest"]
        self._upright = bool(settings.get("exif_orientation"))
        self._lengths, self._sums, self._originals = facts.T
        self._offsets = np.empty_like(self._lengths)
        for number, start in enumerate(range(0, len(facts), SHARD)):
            part = slice(start, start + SHARD)
            self._offsets[part] = _offsets(facts[part])
            shard = self._shard(number)
            if not shard.is_file() or shard.stat().st_size != _size(facts[part]):
                raise DataError(f"{shard} is missing or not as long as it was: {AGAIN}")

    def places(self, split: FileSplit) -> Ints:
        """int64 (N,): where in the cache the images of a split are.

        Raises:
            DataError: if it does not hold all of them, or originals that are there have changed.
        """
        if self._upright != split.reading.exif_orientation:
            raise DataError(
                f"{self.folder} was made with source.exif_orientation={str(self._upright).lower()}, this run has "
                f"{str(not self._upright).lower()}: {OTHERWISE}"
            )
        places = np.searchsorted(self._paths, split.paths).clip(max=len(self._paths) - 1)
        absent = np.flatnonzero(self._paths[places] != split.paths)
        if len(absent):
            example = os.fsdecode(split.paths[absent[0]])
            raise DataError(
                f"{self.folder} is a cache of other lists, without {len(absent):,} images of these, such as {example}: "
                f"{OTHERWISE}"
            )
        for row in np.linspace(0, len(places) - 1, min(COMPARED, len(places))).astype(int).tolist():
            path = os.path.join(split.root, os.fsdecode(split.paths[row]))
            if os.path.exists(path) and os.path.getsize(path) != self._originals[places[row]]:
                raise DataError(f"{path} is not the file that {self.folder} was made of: {OTHERWISE}")
        return places.astype(np.int64)

    def contents_hash(self, split: FileSplit) -> str:
        """A hash of the small copies of a split's images, in their order.

        Raises:
            DataError: as `places`.
        """
        return hash_of(self._sums[self.places(split)])

    def read(self, place: int) -> tuple[str, bytes]:
        """(what to call it in errors, the bytes) of an image. Raises a DataError if they are not what was written."""
        shard = self._shard(place // SHARD)
        with open(shard, "rb") as file:
            file.seek(self._offsets[place])
            content = file.read(self._lengths[place])
        name = f"{shard}, {os.fsdecode(self._paths[place])}"
        if zlib.crc32(content) != self._sums[place]:
            raise DataError(f"{name} is damaged: {AGAIN}")
        return name, content

    def _shard(self, number: int) -> Path:
        return self.folder / _shard_name(self._digest, number)


def open_cache(folder: str, short_side: int) -> ImageCache:
    """As `ImageCache`; the loaders of a process share one as long as it does not change."""
    index = Path(folder) / INDEX
    return _opened(folder, short_side, index.stat().st_mtime_ns if index.exists() else 0)


@lru_cache(maxsize=2)
def _opened(folder: str, short_side: int, changed: int) -> ImageCache:
    return ImageCache(folder, short_side)


class Shard(NamedTuple):
    """A shard to be made: of the images `paths` below `root`, read so."""

    target: Path
    paths: Paths
    root: str
    short_side: int
    reading: Reading = AS_STORED


def make_cache(
    folder: Path,
    splits: Iterable[FileSplit],
    short_side: int,
    workers: int,
    report: Callable[[int, int], None] = lambda done, images: None,
) -> int:
    """Makes a cache of all images of some splits of one dataset, or what is lacking of it.

    Args:
        folder: the cache's folder; made if need be.
        splits: those of one source; an image that several have is cached once.
        short_side: the short side of the images, resized as evaluation does; smaller ones stay as they are.
        workers: processes that decode.
        report: told now and then how many of how many images are done.

    Returns:
        How many images it holds.

    Raises:
        DataError: for an image that cannot be read, or a folder that holds something else; finished shards stay.
    """
    every = list(splits)
    root, reading = every[0].root, every[0].reading
    assert all((split.root, split.reading) == (root, reading) for split in every), every
    paths = np.unique(np.concatenate([split.paths for split in every]))
    made_so = f"{SCHEMA} {short_side} {QUALITY} {SHARD} {paths.dtype}" + (
        " upright" if reading.exif_orientation else ""
    )
    state = hashlib.blake2b(made_so.encode(), digest_size=6)
    state.update(paths.tobytes())
    digest = state.hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            parts = [paths[start : start + SHARD] for start in range(0, len(paths), SHARD)]
            names = [_shard_name(digest, number) for number in range(len(parts))]
            _refuse_others(folder, {*names, INDEX, LOCK})
            shards = [
                Shard(folder / name, part, root, short_side, reading) for name, part in zip(names, parts, strict=True)
            ]
            lacking = [shard for shard in shards if _facts(shard) is None]
            done = len(paths) - sum(len(shard.paths) for shard in lacking)
            report(done, len(paths))
            for shard in _made(lacking, workers):
                done += len(shard.paths)
                report(done, len(paths))
            settings = {"schema": SCHEMA, "short_side": short_side, "quality": QUALITY, "digest": digest}
            settings |= {"exif_orientation": reading.exif_orientation}
            buffer = BytesIO()
            facts: Any = np.concatenate([_facts(shard) for shard in shards])
            np.savez(buffer, settings=json.dumps(settings), paths=paths, facts=facts)
            _write(folder / INDEX, buffer.getvalue())
    except Timeout:
        raise DataError(f"another process is making {folder}: wait for it") from None
    return len(paths)


def _made(shards: list[Shard], workers: int) -> Iterator[Shard]:
    """The shards, each as soon as it is written."""
    if workers <= 1:
        yield from map(make_shard, shards)
        return
    with ProcessPoolExecutor(workers, initializer=_ignore_interrupts) as pool:
        jobs = [pool.submit(make_shard, shard) for shard in shards]
        try:
            for job in as_completed(jobs):
                yield job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _ignore_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal: these finish their shard."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_shard(shard: Shard) -> Shard:
    """Writes a shard: what is to know of each image, then the images."""
    facts, copies = np.empty((len(shard.paths), FACTS), np.int64), []
    for row, path in enumerate(shard.paths):
        full = os.path.join(shard.root, os.fsdecode(path))
        copy, original = _copy(full, shard.short_side, shard.reading)
        copies.append(copy)
        facts[row] = len(copy), zlib.crc32(copy), original
    _write(shard.target, b"".join([facts.astype("<i8").tobytes(), *copies]))
    return shard


def _copy(path: str, short_side: int, reading: Reading) -> tuple[bytes, int]:
    """(a JPEG of the image with the short side resized, the bytes of the original); the file itself where it is one.

    A JPEG that is made here has no EXIF orientation and is turned upright already, if it is asked for.
    """
    try:
        original = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    image = open_rgb(path, original, reading)
    short = min(image.size)
    if short <= short_side and original.startswith(b"\xff\xd8"):
        return original, len(original)
    if short > short_side:
        width, height = (int(short_side * side / short) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue(), len(original)


def _facts(shard: Shard) -> Ints | None:
    """(N, 3), what is to know of each image of a shard; None if it is not there or not whole."""
    if not shard.target.is_file():
        return None
    count = len(shard.paths) * FACTS
    with open(shard.target, "rb") as file:
        head = np.frombuffer(file.read(8 * count), "<i8")
    if len(head) != count:
        return None
    facts: Ints = head.reshape(-1, FACTS).astype(np.int64)
    return facts if shard.target.stat().st_size == _size(facts) else None


def _size(facts: Ints) -> int:
    """Bytes of a shard."""
    return int(facts.nbytes + facts[:, 0].sum())


def _offsets(facts: Ints) -> Ints:
    """(N,) where each image begins in its shard."""
    ends: Ints = facts[:, 0].cumsum() + facts.nbytes
    return ends - facts[:, 0]


def _shard_name(digest: str, number: int) -> str:
    return f"{digest}-{number:05d}.shard"


def _refuse_others(folder: Path, own: set[str]) -> None:
    """Refuses a folder in which anything else lies: nothing of it is ever deleted."""
    found = {path.name for path in folder.iterdir()}
    if others := sorted(name for name in found - own if not name.endswith(".tmp")):
        raise DataError(
            f"{folder} holds something else, such as {others[0]} (of other lists or another size if it is a shard): "
            "delete it, or give out=ANOTHER"
        )


def _write(path: Path, content: bytes) -> None:
    """Writes a file in one step."""
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"cannot write {path} ({error.strerror}): free some space and run the same command again"
        ) from None
