r"""A table in LaTeX (booktabs): it compiles whatever names it holds, and is never wider than the page."""

import re
import unicodedata
from collections.abc import Sequence

from rich.cells import cell_len

from ltexp.report.columns import Cell, Column, plain
from ltexp.report.groups import Statistic
from ltexp.report.results import Table
from ltexp.report.text import one_line

_GREEK = (
    *(
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
    ),
    *("o", "pi", "rho", "_", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega"),
)
_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    # a row or a cell that begins with one of these would be read as an option of the line break before it
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "÷": r"$\div$",
    "·": r"$\cdot$",
    "°": r"$^\circ$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "−": "$-$",
    **{character: "\\" + character for character in "{}#$%&_"},
}
_SIGNS |= {chr(0x3B1 + place): f"$\\{name}$" for place, name in enumerate(_GREEK) if name not in ("o", "_")}
_BREAKS = "./=_,-:"  # after these a long word may go on in the next line
WIDEST = 40  # characters of a name that stays on one line
LONG = 6  # characters without any of them after which a word may break as well
_UNICODE = r"""% Characters unknown to pdflatex stand as their number; lualatex and xelatex set them as they are, in
% a font that has them (\usepackage{fontspec}\setmainfont{...}).
\providecommand{\ltexpchar}[2]{}
\ifdefined\Umathchar\renewcommand{\ltexpchar}[2]{#2}\else\renewcommand{\ltexpchar}[2]{{\scriptsize U+#1}}\fi
"""


def to_latex(table: Table, label: str = "tab:runs") -> str:
    """A floating table; needs the packages booktabs and graphicx.

    Args:
        table: the table.
        label: for \\ref.
    """
    wraps = [_wraps(column, [row[place] for row in table.rows]) for place, column in enumerate(table.columns)]
    kinds = zip(table.columns, wraps, strict=True)
    spec = "".join(r"p{0.3\linewidth}" if wide else "r" if c.numeric else "l" for c, wide in kinds)
    notes = [*([table.title] if table.title else []), *(note[:1].upper() + note[1:] for note in table.notes)]
    caption = ". ".join(escape_latex(note, breaks=True) for note in notes)
    lines = [
        r"\begin{table}",
        r"\centering\sloppy",
        rf"\caption[{escape_latex(table.title or 'Runs')}]{{{caption}.}}",
        rf"\label{{{label}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{spec}}}",
        r"\toprule",
        " & ".join(escape_latex(column.title) for column in table.columns) + r" \\",
        r"\midrule",
    ]
    for number, row in enumerate(table.rows):
        if number in table.breaks:
            lines.append(r"\midrule")
        cells = [
            _bold(_cell(cell, column, wraps[place]))
            if (number, place) in table.best
            else _cell(cell, column, wraps[place])
            for place, (cell, column) in enumerate(zip(row, table.columns, strict=True))
        ]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
    text = "\n".join(lines) + "\n"
    packages = "% needs \\usepackage{booktabs,graphicx,textcomp}\n"
    return packages + (_UNICODE if r"\ltexpchar" in text else "") + text


def _wraps(column: Column, cells: Sequence[Cell]) -> bool:
    """Whether the cells of a column get lines of their own: free text, and names that would take half a page."""
    return column.free or (not column.numeric and max((cell_len(plain(c, column)) for c in cells), default=0) > WIDEST)


def _cell(cell: Cell, column: Column, wraps: bool) -> str:
    if isinstance(cell, Statistic):
        text = cell.text(column.digits, r"\pm")
        return text if cell.deviation is None else f"${text}$"
    if wraps:
        return rf"{{\raggedright {escape_latex(plain(cell, column), breaks=True)}\par}}"
    return escape_latex(plain(cell, column))


def _bold(text: str) -> str:
    return rf"\boldmath{text}" if text.startswith("$") else rf"\textbf{{{text}}}"


def escape_latex(text: str, breaks: bool = False) -> str:
    r"""`text` as LaTeX sets it literally, on any engine.

    Args:
        text: anything.
        breaks: whether long words may go on in the next line.
    """
    line = unicodedata.normalize("NFC", one_line(text))
    line = re.sub("-(?=-)", "-\x00", line)  # two hyphens are not a dash
    words = []
    for word in line.split(" "):
        parts, since = [], 0
        for place, character in enumerate(word):
            parts.append("{}" if character == "\x00" else _SIGNS.get(character) or _other(character))
            since = 0 if character in _BREAKS else since + 1
            inside = character in _BREAKS or since % LONG == 0 or _width(parts[-1]) > 1
            if breaks and place + 1 < len(word) and inside and (len(word) > LONG or not word.isascii()):
                parts.append(r"\allowbreak{}")
        words.append("".join(parts))
    return " ".join(words)


def _width(part: str) -> int:
    """In letters: a character that stands as its number takes several."""
    return 4 if part.startswith(r"\ltexpchar") else 1


def _other(character: str) -> str:
    if character.isascii() or (character in "äöüÄÖÜßéèêëáàâãåçíìîïñóòôõøúùûýÿÉÈÊËÁÀÂÃÅÇÍÌÎÏÑÓÒÔÕØÚÙÛÝ"):
        return character
    if unicodedata.combining(character):  # would have to come before its letter
        return rf"\ltexpchar{{{ord(character):04X}}}{{}}"
    return rf"\ltexpchar{{{ord(character):04X}}}{{{character}}}"
