"""Where commands keep what saves time and can be made again."""

import os
import tempfile
from pathlib import Path


def user_cache() -> Path:
    """`ltexp` in the user's cache folder, `$XDG_CACHE_HOME` or `~/.cache`; of a user without a home a temporary one."""
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "ltexp"
    try:
        return Path.home() / ".cache" / "ltexp"
    except RuntimeError:  # a container's user that no list of users has
        return Path(tempfile.gettempdir()) / "ltexp"
