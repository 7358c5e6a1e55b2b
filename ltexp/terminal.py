"""What is printed reaches any terminal."""

import codecs
import io
import sys

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


def _shown(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    return "".join(PLAIN.get(character, "?") for character in lost), error.end
