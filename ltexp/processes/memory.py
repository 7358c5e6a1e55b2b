"""How a process takes memory for its tensors; without torch."""

import os
from contextlib import suppress
from pathlib import Path

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # PyTorch's environment variable, read at the first tensor of 2 MB
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_large_pages() -> None:
    """Has tensors of 2 MB or more on a CPU lie in pages of 2 MB, through which it trains faster; no number changes.

    What is in the environment stays as it is: `THP_MEM_ALLOC_ENABLE=0` goes without. So does a system that has no such
    pages, or gives none to those who ask, of which PyTorch would warn.
    """
    with suppress(OSError):
        if "[never]" not in SETTING.read_text():
            os.environ.setdefault(LARGE_PAGES, "1")
