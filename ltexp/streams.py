"""Standard output and error of any encoding: what a terminal cannot show never ends a command."""

import codecs
import os
import sys

# what stands for the signs that ltexp itself prints, one character for one; anything else is shown as its code
PLAIN = {"–": "-", "—": "-", "−": "-", "±": "~", "…": ".", "·": "*", "─": "-", "×": "x"}
PLAIN |= dict.fromkeys("━┏┓┗┛┳┻╇┡┩└┘┴┬├┤┼╺╸", "-") | dict.fromkeys("│┃", "|")
_HANDLER = "ltexp"


def tolerate_encoding() -> None:
    """Makes both streams show what they can of anything; processes started later do so as well."""
    codecs.register_error(_HANDLER, _shown)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # a stream that a test put there has none
        if reconfigure is not None:
            reconfigure(errors=_HANDLER)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    os.environ.setdefault("PYTHONIOENCODING", f"{encoding}:backslashreplace")


def _shown(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    codes = (PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode() for character in lost)
    return "".join(codes), error.end
