"""run.log in a run's folder: all that the run has said, in a terminal or not."""

import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TextIO, cast

from ltexp.run_folder import RUN_LOG

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours and moves of a terminal


class Logged:
    """A stream whose text goes to a log as well, without colours.

    Args:
        shown: the stream; it can be put in another's place while something else draws on the terminal.
        log: the log's file.

    Attributes:
        terminal: the stream as it was first.
    """

    def __init__(self, shown: TextIO, log: IO[str]) -> None:
        self.shown, self.terminal, self.log = shown, shown, log

    def write(self, text: str) -> int:
        """Writes to both; whoever read the stream may have left, as `head` does, and the run goes on."""
        self.note(text)
        try:
            return self.shown.write(text)
        except BrokenPipeError:
            return len(text)

    def flush(self) -> None:
        """Brings out what the stream holds back."""
        with suppress(BrokenPipeError):
            self.shown.flush()

    def note(self, text: str) -> None:
        """Writes to the log alone. A disk that is full ends no run because of its log."""
        try:
            self.log.write(CONTROL.sub("", text))
            self.log.flush()
        except (OSError, ValueError):
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shown, name)


def keep_log(folder: Path) -> None:
    """From here on what this process prints goes to the run's log as well."""
    try:
        log = (folder / RUN_LOG).open("a", encoding="utf-8", errors="replace")
    except OSError:
        return
    sys.stdout = cast(TextIO, Logged(sys.stdout, log))
    sys.stderr = cast(TextIO, Logged(sys.stderr, log))


def note(folder: Path, text: str) -> None:
    """Appends a line to the run's log alone."""
    try:
        with (folder / RUN_LOG).open("a", encoding="utf-8", errors="replace") as log:
            log.write(text + "\n")
    except OSError:
        pass


def logged_streams() -> list[Logged]:
    """Standard output and error where this process keeps a log."""
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, Logged)]
