"""What image files hold, as one hash: two folders of equal names with other pictures are other data.

Reading every byte of a large dataset at each start would take longer than many a run, so a file is known by its length
and three samples of its bytes, a split of more than 20,000 files by as many of them, evenly spread, and a file that was
sampled before, with the same length and time of change, is not opened again: the samples' hashes are kept in the user's
cache folder.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ltexp.data.files.split import FileSplit
from ltexp.errors import LtexpError
from ltexp.files import atomic_write
from ltexp.user_cache import user_cache

SAMPLE = 4096  # bytes at the start, the middle and the end of a file
MOST = 20_000  # files of a split that are looked at
READERS = 16  # files that are sampled at a time: the disk's latency is what takes the time
Hashes = npt.NDArray[np.uint64]

ABSENT = -1  # the length of a file that is not there; that is told elsewhere


def contents_hash(split: FileSplit) -> str:
    """A hash of what the files of a split hold, in their order; the same wherever they lie."""
    rows = np.linspace(0, len(split) - 1, min(len(split), MOST)).astype(int)
    paths = [os.path.join(os.fsencode(split.root), path) for path in split.paths[rows].tolist()]
    lengths, keys = _known_by(paths)
    memo = user_cache() / "contents" / f"{_hash(os.fsencode(split.root)).hex()}.npz"
    kept, sampled = _read(memo)
    place = np.searchsorted(kept, keys).clip(max=max(len(kept) - 1, 0))
    there = kept[place] == keys if len(kept) else np.zeros(len(keys), dtype=bool)
    hashes = np.zeros(len(keys), dtype=np.uint64)
    hashes[there] = sampled[place[there]]
    new = np.flatnonzero(~there & (lengths != ABSENT))
    if len(new):
        with ThreadPoolExecutor(READERS) as readers:
            hashes[new] = list(readers.map(_sample, [paths[row] for row in new], lengths[new].tolist()))
        _write(memo, np.concatenate([kept, keys[new]]), np.concatenate([sampled, hashes[new]]))
    state = hashlib.blake2b(lengths.astype("<i8").tobytes(), digest_size=10)
    state.update(hashes.astype("<u8").tobytes())
    return state.hexdigest()


def _known_by(paths: Sequence[bytes]) -> tuple[npt.NDArray[np.int64], Hashes]:
    """(lengths, keys): what each file is known by, a hash of its path, length and time of change."""
    lengths = np.full(len(paths), ABSENT, dtype=np.int64)
    keys = np.zeros(len(paths), dtype=np.uint64)
    for row, path in enumerate(paths):
        try:
            found = os.stat(path)
        except OSError:
            found = None
        if found is not None:
            lengths[row] = found.st_size
        changed = 0 if found is None else found.st_mtime_ns
        keys[row] = int.from_bytes(_hash(b"%s\0%d\0%d" % (path, lengths[row], changed)), "little")
    return lengths, keys


def _sample(path: bytes, length: int) -> int:
    """A hash of three samples of a file's bytes, of all of a short one's; 0 if it cannot be read."""
    try:
        with open(path, "rb") as file:
            if length <= 3 * SAMPLE:
                content = file.read()
            else:
                content = file.read(SAMPLE)
                for start in (length // 2, length - SAMPLE):
                    file.seek(start)
                    content += file.read(SAMPLE)
    except OSError:
        return 0
    return int.from_bytes(_hash(content), "little")


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()


def _read(memo: Path) -> tuple[Hashes, Hashes]:
    """(keys in ascending order, hashes of samples) that are kept; none if there is no such file, or a damaged one."""
    try:
        with np.load(memo, allow_pickle=False) as content:
            keys, sampled = content["keys"], content["sampled"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        keys = sampled = np.zeros(0, dtype=np.uint64)
    if keys.shape != sampled.shape or keys.dtype != np.uint64 or sampled.dtype != np.uint64:
        keys = sampled = np.zeros(0, dtype=np.uint64)
    return keys, sampled


def _write(memo: Path, keys: Hashes, sampled: Hashes) -> None:
    """Keeps what was sampled; where that cannot be written, the next start samples again."""
    keys, first = np.unique(keys, return_index=True)
    try:
        with atomic_write(memo) as file:
            np.savez(file, keys=keys, sampled=sampled[first])
    except LtexpError:
        return
