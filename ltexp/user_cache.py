"""Where commands keep what saves time and can be made again."""

import os
from pathlib import Path


def user_cache() -> Path:
    """`ltexp` in the user's cache folder: `$XDG_CACHE_HOME`, else `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ltexp"
