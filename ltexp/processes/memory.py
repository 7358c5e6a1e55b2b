"""How a process takes memory for its tensors; without torch."""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # PyTorch's environment variable, read at the first tensor of 2 MB
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, as malloc.h numbers them
KEPT, MAPPED = 2**31 - 1, (2**30, 2**25)  # bytes; older glibc takes no more than the second for what it maps apart


def keep_memory() -> None:
    """Has this process keep the memory that tensors leave, up to 2 GB, and lay large ones in pages of 2 MB.

    A pass through a network takes and leaves hundreds of maps. Given back to the system each time, as the C library
    does by default, they cost a CPU up to a tenth of an evaluation in page faults. No number changes. The user's own
    settings stay (`THP_MEM_ALLOC_ENABLE=0`, GLIBC_TUNABLES, MALLOC_...), and so do systems without either of the two.
    """
    with suppress(OSError):
        if "[never]" not in SETTING.read_text():  # PyTorch would warn where it asks in vain
            os.environ.setdefault(LARGE_PAGES, "1")
    if not any(name.startswith(("GLIBC_TUNABLES", "MALLOC_")) for name in os.environ):
        with suppress(OSError, AttributeError, TypeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            _ = mallopt(MMAP_THRESHOLD, MAPPED[0]) or mallopt(MMAP_THRESHOLD, MAPPED[1])
            mallopt(TRIM_THRESHOLD, KEPT)
