"""What is printed reaches any terminal."""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# what stands for the signs that ltexp itself prints, one character for one; any other that is lacking is a `?`
PLAIN = {"–": "-", "—": "-", "−": "-", "±": "~", "…": ".", "·": "*", "─": "-", "×": "x"}
PLAIN |= dict.fromkeys("━┏┓┗┛┳┻╇┡┩└┘┴┬├┤┼╺╸", "-") | dict.fromkeys("│┃", "|")
_HANDLER = "ltexp"


def print_anywhere() -> None:
    """Letters that the terminal's encoding lacks are printed as `?` from here on, where they would end the command."""
    codecs.register_error(_HANDLER, _shown)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors=_HANDLER)


@contextmanager
def printed_whole() -> Iterator[None]:
    """Ends the process with a line and status 1 where what the block prints cannot be written, as on a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or (reason := _not_written("\n")) is None:
            raise
    except SystemExit as ended:
        if (reason := _not_written()) is None:
            raise
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    else:
        if (reason := _not_written()) is None:
            return
    print(f"ltexp: cannot write what is printed: {reason}", file=sys.stderr)
    with open(os.devnull, "w") as nowhere:  # Python itself would try again at the end
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    sys.exit(1)


def _not_written(more: str = "") -> str | None:
    """Why something printed cannot be written; None: all of it is.

    Args:
        more: printed to find out, where an error has taken what was not written with it.
    """
    try:
        if sys.stdout is not None:
            print(more, end="", flush=True)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _shown(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    return "".join(PLAIN.get(character, "?") for character in lost), error.end
