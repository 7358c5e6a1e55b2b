"""Images that a dataset leaves out, such as damaged ones, named by a file of their paths."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.data.files.lists import plain_path
from ltexp.data.files.split import FileSplit, SourceFiles
from ltexp.errors import DataError
from ltexp.text_files import utf8_lines

FIRST = 5  # images left out that a record names


def paths_in(leave_out: str, root: str) -> list[bytes]:
    """The path on each line of the file `leave_out`, relative to the dataset's folder `root`; of a blank one empty.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        lines = [line.rstrip(b"\r\n") for line in utf8_lines(Path(leave_out).expanduser())]
    except OSError as error:
        raise DataError(f"dataset.leave_out={leave_out}: {error.strerror or error}") from None
    prefix = os.fsencode(root) + b"/"
    return [plain_path(line, prefix) if line.strip() else b"" for line in lines]


def without(files: SourceFiles, leave_out: str | None) -> tuple[SourceFiles, dict[str, Any] | None]:
    """(`files` without the images that the file `leave_out` names, what was left out; None if there is no such file).

    Raises:
        DataError: if the file cannot be read, or names what is no image of the dataset.
    """
    if leave_out is None:
        return files, None
    lines = paths_in(leave_out, files.train.root)
    named = set(lines) - {b""}
    kept: dict[str, FileSplit] = {}
    count = {}
    for name, split in files.splits.items():
        keep = np.array([path not in named for path in split.paths.tolist()])
        kept[name] = split.take(keep)
        count[name] = int((~keep).sum())
    unknown = named.difference(*(split.paths.tolist() for split in files.splits.values()))
    if unknown:
        line = next(number for number, line in enumerate(lines, start=1) if line in unknown)
        raise DataError(f"{leave_out}, line {line}: {os.fsdecode(lines[line - 1])!r} is no image of this dataset")
    files = replace(files, train=kept["train"], validation=kept.get("validation"), test=kept.get("test"))
    return files, count | {"first": sorted(map(os.fsdecode, named))[:FIRST]}
