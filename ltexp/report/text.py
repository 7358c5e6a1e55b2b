"""User text made fit for where it is shown: names, overrides and folders may hold anything."""

import unicodedata

from rich.cells import cell_len, set_cell_size

from ltexp import terminal

ELLIPSIS = "…"
PLAIN = str.maketrans(terminal.PLAIN)  # for a terminal without Unicode


def one_line(text: str) -> str:
    """`text` on one line, without characters that command a terminal or turn the writing direction.

    Such characters are written as their code, `\\x1b` or `\\u202e`.
    """
    return "".join(map(_visible, " ".join(text.split())))


def _visible(character: str) -> str:
    # control, format (the marks of writing direction), surrogates of a file name that is no UTF-8, line separators
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    if character in "\u200c\u200d":  # joiners, which Persian and emoji are written with
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def shorten(text: str, most: int) -> str:
    """`text` on one line and at most `most` columns wide: its middle gives way to an ellipsis."""
    line = one_line(text)
    if cell_len(line) <= most:
        return line
    tail = max((most - 1) // 3, 0)
    end, kept = "", 0
    for character in reversed(line):
        if (kept := kept + cell_len(character)) > tail:
            break
        end = character + end
    return set_cell_size(line, most - 1 - cell_len(end)).rstrip() + ELLIPSIS + end


def wrap(text: str, width: int) -> list[str]:
    """The lines of `text`, at most `width` columns wide; words break only where they are longer than a line."""
    lines = [""]
    for word in one_line(text).split(" "):
        gap = " " if lines[-1] else ""
        if cell_len(lines[-1] + gap + word) <= width:
            lines[-1] += gap + word
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if cell_len(lines[-1] + character) > width and lines[-1]:
                lines.append("")
            lines[-1] += character
    return lines
