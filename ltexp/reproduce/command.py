"""What the command lines of tables and of figures share."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType

from ltexp.config.require import require_path
from ltexp.errors import ConfigError
from ltexp.report.formats import UNLIMITED
from ltexp.report.records import Run, find_runs
from ltexp.reproduce.run import outputs_root


def is_override(key: str) -> bool:
    """Whether it looks like an override of `ltexp train` rather than a misspelt key of this command."""
    return any(sign in key for sign in ".@/+~") or key in ("trainer", "logger", "launcher")


def seeds_of(options: dict[str, str]) -> list[int]:
    """The seeds asked for.

    Raises:
        ConfigError: if they are not whole numbers of 0 or more.
    """
    text = options.get("seeds", "0")
    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise ConfigError(f"invalid seeds={text}: expected whole numbers of 0 or more, such as seeds=0,1,2")
    return sorted({int(part) for part in text.split(",")})


def load_runs(options: dict[str, str], extra: Sequence[str]) -> list[Run]:
    """The finished runs; what is damaged or foreign is named in a line each and left out."""
    named = options["runs"].split(",") if "runs" in options else []
    for name in named:
        require_path("runs", name)
    folders = [Path(name) for name in named] or [outputs_root(extra)]
    if "runs" not in options and not folders[0].exists():
        return []
    runs, notes = find_runs(folders)
    for note in notes:
        print(f"ltexp reproduce: {note}", file=sys.stderr)
    return runs


def print_all(*content: RenderableType) -> None:
    """Prints tables and texts, as wide as they are where the terminal does not say how wide it is."""
    window = Console()
    console = window if window.is_terminal else Console(width=UNLIMITED)
    for part in content:
        console.print(part, soft_wrap=not window.is_terminal)
