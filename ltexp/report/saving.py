"""A figure's file: written in one step, in fonts that have its text, with user text drawn literally."""

import io
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from ltexp.errors import ConfigError
from ltexp.files import atomic_write

FORMATS = (".png", ".pdf", ".svg")
# beside matplotlib's own, whichever are installed: fonts with Chinese, Japanese and Korean
FALLBACKS = ("Noto Sans CJK", "Source Han Sans", "WenQuanYi", "Droid Sans Fallback", "Microsoft YaHei", "PingFang")


def save(figure: Any, path: Path, math: bool = False) -> None:
    """Writes `figure` in one step, in the format that the ending of `path` names.

    Characters that no installed font has are drawn as boxes, and a line on standard error names them.

    Args:
        figure: a matplotlib figure.
        path: its file.
        math: whether `$...$` in its text is mathematics; default: a dollar is a dollar, as in names of users.

    Raises:
        ConfigError: for another ending than .png, .pdf or .svg.
        LtexpError: if the file cannot be written.
    """
    check_ending(path)
    if not math:
        _draw_literally(figure)
    content = io.BytesIO()
    # without a date, the same run gives the same file
    dates = {".pdf": "CreationDate", ".svg": "Date"}
    metadata = {dates[path.suffix.lower()]: None} if path.suffix.lower() in dates else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # tight: titles of any length stay on the page, and panels of equal sides leave no empty band
        figure.savefig(content, format=path.suffix.lower()[1:], metadata=metadata, bbox_inches="tight", pad_inches=0.06)
    absent = sorted({str(one.message).split("(")[0] for one in caught if "missing from font" in str(one.message)})
    if absent:
        print(f"{path}: no installed font has {len(absent)} of its characters: install fonts-noto-cjk", file=sys.stderr)
    with atomic_write(path) as file:
        file.write(content.getvalue())


def check_ending(path: Path) -> None:
    """Raises a ConfigError if no figure can be written with the ending of `path`."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"a figure's file ends in {', '.join(FORMATS)}, not {path.suffix or path.name!r}: {path}")


def _draw_literally(figure: Any) -> None:
    """Turns mathematics off in all text but the numbers that matplotlib itself writes at an axis."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    families = fonts()
    own = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if not isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter):
                own |= {*map(id, axis.get_ticklabels(which="both")), id(axis.offsetText)}
    for text in figure.findobj(Text):
        text.set_fontfamily(families)
        if id(text) not in own:
            text.set_parse_math(False)


@cache
def fonts() -> list[str]:
    """Matplotlib's own font, and behind it those of `FALLBACKS` that are installed."""
    from matplotlib import rcParams
    from matplotlib.font_manager import get_font_names

    installed = [name for name in get_font_names() if name.startswith(FALLBACKS)]
    return [*rcParams["font.family"], *sorted(installed)]
