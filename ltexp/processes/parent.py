"""What every process of a run does first; without torch."""

import ctypes
import os
import signal
import sys

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # here: nothing is loaded between fork and exec
_SET_PARENT_DEATH_SIGNAL = 1


def die_with_parent(parent: int | None = None) -> None:
    """Where Linux offers it: this process is killed when the one that started it ends, so none trains unseen.

    Args:
        parent: the process that started this one, if known: one that has ended already counts as well.
    """
    if _LIBC is not None:
        _LIBC.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
