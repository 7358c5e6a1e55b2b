"""Which failure of a run on several processes came first: it alone is told, the others follow from it."""

import os
import socket
from pathlib import Path
from typing import NamedTuple

from ltexp.run_folder import FAILED

REFUSED = 3  # exit status of a run that is refused before it begins: it has written nothing
STOPPED = "stopped; the same command with resume=true continues the run"  # by a signal
LAUNCHER = "LTEXP_LAUNCHER"  # environment variable: the process that started a node's workers


class Failure(NamedTuple):
    """A failure, and the node that it happened on.

    Attributes:
        message: what went wrong, in one line.
        node: its name, see `this_node`.
    """

    message: str
    node: str


def this_node() -> str:
    """Names this node of a run: its host, and there the process that started its workers."""
    return f"{socket.gethostname()}:{os.environ.get(LAUNCHER, os.getpid())}"


def first_to_fail(folder: Path, message: str) -> bool:
    """Leaves `message` for the other processes and nodes of the run; whether none had failed before."""
    try:
        with (folder / FAILED).open("x", encoding="utf-8") as file:
            file.write(f"{this_node()}\n{message}")
    except FileExistsError:
        return False
    except OSError:  # the disk is full, say: rather told twice than never
        return True
    return True


def first_failure(folder: Path) -> Failure | None:
    """What the first process to fail has left, or None."""
    try:
        # listing the folder makes a network file system look anew, which asking for a file that was not there does not
        if FAILED not in os.listdir(folder):
            return None
        node, _, message = (folder / FAILED).read_text(encoding="utf-8").partition("\n")
    except OSError:
        return None
    return Failure(message, node)


def forget_failure(folder: Path) -> None:
    """A run that goes on has not failed yet."""
    (folder / FAILED).unlink(missing_ok=True)
