"""Text files as people have them: with or without a byte-order mark, in UTF-8 or UTF-16."""

import codecs
import errno
from collections.abc import Iterator
from pathlib import Path

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def utf8_lines(path: Path) -> Iterator[bytes]:
    """The lines of a text file with their ends, in UTF-8 and without a byte-order mark.

    A file that begins with the mark of UTF-16, as some spreadsheets and Windows editors write it, is read as that. All
    others are given as they are, so bytes that are no text are for the caller to find.

    Raises:
        OSError: if it cannot be read, or is not UTF-16 in spite of its mark.
    """
    with path.open("rb") as file:
        start = file.read(4)
        if start.startswith(UTF_16) and start != codecs.BOM_UTF32_LE:
            yield from _utf_16(path)
            return
        file.seek(len(codecs.BOM_UTF8) if start.startswith(codecs.BOM_UTF8) else 0)
        yield from file


def _utf_16(path: Path) -> Iterator[bytes]:
    try:
        with path.open(encoding="utf-16", newline="\n") as file:
            for line in file:
                yield line.encode()
    except UnicodeError:
        raise OSError(errno.EILSEQ, "it begins as UTF-16 does and is not: save it as UTF-8", str(path)) from None
