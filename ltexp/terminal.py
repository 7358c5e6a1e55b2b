"""What is printed reaches any terminal."""

import io
import sys


def print_anywhere() -> None:
    """Letters that the terminal's encoding lacks are printed as `?` from here on, where they would end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
