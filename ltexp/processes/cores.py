"""How many cores there are for a process; without torch."""

import os


def usable_cores() -> int:
    """The cores that this process may use, at least 1: on a shared machine often fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
