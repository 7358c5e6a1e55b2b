"""Tries to decode all images of a dataset, in parallel; without torch."""

import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ltexp.data.files.decode import Reading, open_rgb
from ltexp.data.files.split import FileSplit
from ltexp.data.types import Ints, Unreadable
from ltexp.errors import DataError
from ltexp.processes.cores import usable_cores

CHUNK = 64  # images that a process decodes at a time


def undecodable(splits: Mapping[str, FileSplit], absent: Mapping[str, Ints]) -> list[Unreadable]:
    """Decodes every image on all cores, with a progress bar on the terminal.

    Args:
        splits: the splits by name.
        absent: rows that are not there and are passed over, by split.
    """
    rows = {name: np.setdiff1d(np.arange(len(split)), absent[name]) for name, split in splits.items()}
    found = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("decoding", total=sum(map(len, rows.values())))
        with ProcessPoolExecutor(usable_cores(), initializer=_ignore_interrupts) as pool:
            for name, split in splits.items():
                for chunk, reasons in pool.map(partial(_try_all, split.reading), _chunks(split, rows[name])):
                    bar.advance(task, len(chunk))
                    for row, reason in reasons:
                        text = f"{split.where(row)}: {reason}"
                        found.append(Unreadable(name, split.paths[row], "cannot be read", text))
    return found


def _chunks(split: FileSplit, rows: Ints) -> Iterator[list[tuple[int, str]]]:
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK].tolist()
        yield [(row, os.path.join(split.root, os.fsdecode(split.paths[row]))) for row in part]


def _try_all(reading: Reading, chunk: list[tuple[int, str]]) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """(the chunk, the rows that cannot be decoded and why)."""
    reasons = []
    for row, path in chunk:
        try:
            open_rgb(path, reading=reading)
        except DataError as error:
            reasons.append((row, str(error).removeprefix(f"{path}: ")))
    return chunk, reasons


def _ignore_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; the one that shows the bar ends these."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
