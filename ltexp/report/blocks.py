"""A table as papers print them, in a window of any width: what does not fit side by side follows below."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.text import Text

from ltexp.report.terminal import GAP
from ltexp.report.text import PLAIN, one_line, wrap


@dataclass
class Blocks:
    """Rows with a name, and columns of figures of which as many stand side by side as fit; the best of each is bold.

    Attributes:
        title: above all.
        better: 1 if more is better, -1 if less is.
        heads: the headings, lines with newlines between them.
        rows: the name of each row and its figures.
    """

    title: str
    better: int
    heads: list[str] = field(default_factory=list)
    rows: list[tuple[str, list[Text]]] = field(default_factory=list)

    def add_column(self, head: str) -> None:
        """A further column of figures."""
        self.heads.append(head)

    def add_row(self, name: str, *figures: Text) -> None:
        """A further row; a figure for each column."""
        self.rows.append((one_line(name), list(figures)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        unicode = options.encoding.lower().startswith("utf")
        for line in self.lines(options.max_width):
            line.no_wrap = True
            yield line if unicode else Text(line.plain.translate(PLAIN), spans=line.spans, no_wrap=True)

    def lines(self, width: int) -> Iterator[Text]:
        """The lines, each at most `width` columns wide."""
        yield from (Text(line, style="bold") for line in wrap(self.title, width))
        first = min(max(cell_len(name) for name, _ in self.rows), max(width // 2, 1))
        for number, block in enumerate(self._blocks(first, width)):
            yield from [Text("")] if number else []
            yield from self._block(block, first)

    def _blocks(self, first: int, width: int) -> list[list[int]]:
        """As many columns in each block as fit into `width`."""
        blocks: list[list[int]] = [[]]
        for place in range(len(self.heads)):
            if blocks[-1] and first + sum(GAP + own for own in self._widths([*blocks[-1], place])) > width:
                blocks.append([])
            blocks[-1].append(place)
        return blocks

    def _widths(self, block: Sequence[int]) -> list[int]:
        """Of the columns of a block: those of one group are together as wide as the group's heading."""
        widths = [
            max(cell_len(self._head(place)[1]), *(row[place].cell_len for _, row in self.rows)) for place in block
        ]
        for group, members in self._groups(block):
            lacking = cell_len(group) - sum(widths[n] for n in members) - GAP * (len(members) - 1)
            for step in range(max(lacking, 0)):
                widths[members[step % len(members)]] += 1
        return widths

    def _head(self, place: int) -> tuple[str, str]:
        """(heading of the column's group, its own)."""
        *above, own = self.heads[place].split("\n")
        return " ".join(above), own

    def _groups(self, block: Sequence[int]) -> list[tuple[str, list[int]]]:
        """The headings over neighbouring columns, each with the columns' positions in the block."""
        groups: list[tuple[str, list[int]]] = []
        for number, place in enumerate(block):
            name = self._head(place)[0]
            if groups and groups[-1][0] == name:
                groups[-1][1].append(number)
            else:
                groups.append((name, [number]))
        return groups

    def _block(self, block: Sequence[int], first: int) -> Iterator[Text]:
        widths = self._widths(block)
        if any(name for name, _ in self._groups(block)):
            line = Text(" " * first, style="bold")
            for name, members in self._groups(block):
                span = sum(widths[n] for n in members) + GAP * (len(members) - 1)
                line.append(" " * GAP + (name.rjust(span) if len(members) == 1 else name.center(span)))
            yield line
        heads = (" " * GAP + self._head(place)[1].rjust(width) for place, width in zip(block, widths, strict=True))
        yield Text(" " * first + "".join(heads), style="bold")
        yield Text("─" * (first + sum(GAP + width for width in widths)), style="dim")
        for name, row in self.rows:
            *above, last = wrap(name, first)
            yield from map(Text, above)
            line = Text(last + " " * (first - cell_len(last)))
            for place, width in zip(block, widths, strict=True):
                shown = row[place].copy()
                if self._is_best(place, shown):
                    shown.stylize("bold")
                line.append(" " * (GAP + width - shown.cell_len))
                line.append_text(shown)
            yield line

    def _is_best(self, place: int, shown: Text) -> bool:
        values = [value for _, row in self.rows if (value := _number(row[place])) is not None]
        best = max(values, key=lambda value: self.better * value, default=None)
        return len(set(values)) > 1 and _number(shown) == best


def _number(shown: Text) -> float | None:
    found = re.match(r"[-+]?\d+(\.\d+)?", shown.plain)
    return float(found[0]) if found else None
