"""What every process of a run does first; without torch."""

import ctypes
import signal
import sys


def die_with_parent() -> None:
    """Where Linux offers it: this process is killed when the one that started it ends, so none trains unseen."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
