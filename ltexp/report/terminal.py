"""A table for the terminal: it folds its rows rather than cutting names or numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.text import Text

from ltexp.report.columns import plain
from ltexp.report.results import Table
from ltexp.report.table import ABSENT
from ltexp.report.text import PLAIN, one_line, wrap

GAP = 2  # spaces between two columns
INDENT = 2  # of the second line of a row


@dataclass(frozen=True)
class Grid:
    """A table as rich prints it, in a window of any width.

    Where its columns do not fit side by side, rows take a second line: first for columns of free text, then for other
    text, then for numbers from the last; there each value follows the name of its column. Nothing is cut.
    """

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        unicode = options.encoding.lower().startswith("utf")
        for line in self.lines(options.max_width):
            yield line if unicode else Text(line.plain.translate(PLAIN), spans=line.spans, no_wrap=True)

    def lines(self, width: int) -> Iterator[Text]:
        """The lines, each at most `width` columns wide."""
        table = self.table
        cells = [
            [one_line(plain(cell, column)) for cell, column in zip(row, table.columns, strict=True)]
            for row in table.rows
        ]
        titles = [one_line(column.title) for column in table.columns]
        widths = [max(map(cell_len, place)) for place in zip(titles, *cells, strict=True)]
        shown, folded = self._fold(widths, width)
        if any(table.columns[place].numeric for place in folded):  # rather than numbers, long names take a second line
            widths[0] = min(widths[0], max(width // 2, 1))
            shown, folded = self._fold(widths, width)
        widths[0] = min(widths[0], width)
        for line in wrap(table.title, width) if table.title else ():
            yield Text(line, style="bold", no_wrap=True)
        yield from self._row(shown, widths, titles, "bold", set())
        rule = Text("─" * (sum(widths[place] for place in shown) + GAP * (len(shown) - 1)), style="dim", no_wrap=True)
        yield rule
        for number, row in enumerate(cells):
            if number in table.breaks:
                yield rule
            dim = "dim" if number in table.dim else ""
            yield from self._row(shown, widths, row, dim, {place for line, place in table.best if line == number})
            yield from self._second_line(folded, titles, row, width)
        for note in table.notes:
            for line in wrap(note, width):
                yield Text(line, style="dim", no_wrap=True)

    def _fold(self, widths: Sequence[int], width: int) -> tuple[list[int], list[int]]:
        """(places of the columns side by side, places of those on the second line)."""
        columns = self.table.columns
        order = [place for place, column in enumerate(columns) if column.free]
        order += [place for place, c in reversed(list(enumerate(columns))) if not (c.free or c.numeric)]
        order += [place for place, c in reversed(list(enumerate(columns))) if c.numeric]
        shown = list(range(len(columns)))
        folded: list[int] = []
        for place in order:
            if sum(widths[shown_place] + GAP for shown_place in shown) - GAP <= width:
                break
            if place != 0 and len(shown) > 1:
                shown.remove(place)
                folded.append(place)
        return shown, sorted(folded)

    def _row(
        self, shown: Sequence[int], widths: Sequence[int], row: Sequence[str], style: str, best: set[int]
    ) -> Iterator[Text]:
        first = wrap(row[0], widths[0])  # of several lines only where it is wider than the window
        for number, head in enumerate(first):
            line = Text(style=style, no_wrap=True)
            for place in shown:
                text = head if place == 0 else row[place] if number == len(first) - 1 else ""
                space = " " * (widths[place] - cell_len(text))
                right = self.table.columns[place].numeric
                line.append(" " * GAP if place else "")
                line.append(space + text if right else text + space, style="bold" if place in best else None)
            line.rstrip()
            yield line

    def _second_line(
        self, folded: Sequence[int], titles: Sequence[str], row: Sequence[str], width: int
    ) -> Iterator[Text]:
        parts = []
        for place in folded:
            if row[place] not in ("", ABSENT):
                name = "" if self.table.columns[place].free else f"{titles[place]} "
                parts.append(name + row[place])
        for line in wrap(", ".join(parts), max(width - INDENT, 1)) if parts else ():
            yield Text(" " * INDENT + line, style="dim", no_wrap=True)
