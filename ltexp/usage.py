"""The text of --help, in lines that fit the terminal."""

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence

WIDEST = 120  # columns: longer lines are hard to read
_GAP = re.compile(r"(?<=\S) {2,}(?=\S)")  # between a command or key and what it does
LEAST = 30  # columns for what it does; else it stands below


def folded(text: str, width: int | None = None) -> str:
    """`text` in lines of at most `width` columns, where words allow.

    Lines without an indent are paragraphs. An indented line is a command or key, a gap and what it does; a line whose
    indent is that of what it does goes on with it.

    Args:
        text: as written.
        width: None: that of the terminal, 80 where there is none.
    """
    most = min(shutil.get_terminal_size().columns, WIDEST) if width is None else width
    return "\n".join(line for lines in _items(text.splitlines()) for line in _fold(lines, most))


def _items(lines: Sequence[str]) -> Iterator[list[str]]:
    """The lines that belong together: those of a paragraph, or of a command or key."""
    item: list[str] = []
    for line in lines:
        if item and _goes_on(item, line):
            item.append(line)
            continue
        if item:
            yield item
        item = [line]
    if item:
        yield item


def _goes_on(item: Sequence[str], line: str) -> bool:
    first, own = item[0], _indent(line)
    if not line.strip() or not first.strip():
        return False
    if own == _indent(first) == 0:
        return not item[-1].endswith(":")
    return own == _place(first) and own > _indent(first) and not _GAP.search(line.strip())


def _fold(item: Sequence[str], width: int) -> list[str]:
    if all(len(line) <= width for line in item):
        return list(item)
    first = item[0]
    text = " ".join(line.strip() for line in item)
    place, indent = _place(first), _indent(first)
    if place == 0:  # a paragraph
        return _wrap(text, width, "", "")
    if (gap := _GAP.search(text)) is None:
        return _wrap(text, width, " " * indent, " " * (indent + 4))
    head, tail = text[: gap.start()], text[gap.end() :]
    if width - place >= LEAST and indent + len(head) + 2 <= place:
        return _wrap(tail, width, (" " * indent + head).ljust(place), " " * place)
    below = " " * (indent + 8)
    return [*_wrap(head, width, " " * indent, " " * (indent + 4)), *_wrap(tail, width, below, below)]


def _wrap(text: str, width: int, first: str, further: str) -> list[str]:
    return textwrap.wrap(
        text,
        max(width, len(further) + LEAST),
        initial_indent=first,
        subsequent_indent=further,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _place(line: str) -> int:
    """The column where what a line's command or key does begins; that of the line where it has none."""
    indent = _indent(line)
    gap = _GAP.search(line.strip())
    return indent + gap.end() if gap else indent
