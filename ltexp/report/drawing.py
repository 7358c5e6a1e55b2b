"""What the figures share: colours, panels side by side, and files."""

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ltexp.errors import ConfigError, DataError
from ltexp.files import atomic_write
from ltexp.report.records import Run
from ltexp.report.table import ratio_text
from ltexp.run_folder import PREDICTIONS

# Okabe and Ito's palette: told apart by the colour-blind, and different greys in print
BLUE, ORANGE, BLACK = "#0072B2", "#E69F00", "#000000"
MARKERS = (
    (BLUE, "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    (ORANGE, "v"),
    ("#56B4E9", "P"),
    (BLACK, "X"),
)
SHADES = {"many": "#ffffff", "medium": "#efefef", "few": "#dddddd"}
FORMATS = (".png", ".pdf", ".svg")
MOST_PANELS = 16
OTHER_SCRIPTS = (  # fonts of the letters that DejaVu lacks, the first that are installed
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "PingFang SC"),
    *(
        "Microsoft YaHei",
        "Hiragino Sans",
        "Noto Sans Devanagari",
        "Noto Sans Thai",
        "Noto Sans Arabic",
        "Noto Sans Hebrew",
    ),
)
LONGEST = 60  # characters of a name in a figure
LINE = 44  # characters of a line of a title, which is as wide as a panel


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of `width` x `height` inches that needs no display."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["font.family"] = _fonts()
    return Figure(figsize=(width, height), dpi=200, layout="constrained")


@cache
def _fonts() -> list[str]:
    """Matplotlib's own font, and behind it those of other scripts that this machine has."""
    from matplotlib import font_manager

    there = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in OTHER_SCRIPTS if name in there)]


def literal(text: str) -> str:
    """A user's text for a figure: on one line, not too long, and without matplotlib's reading of `$`."""
    line = " ".join(text.encode(errors="replace").decode().split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return (line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…").replace("$", r"\$")


def panels(runs: Sequence[Run], width: float, height: float) -> tuple[Any, list[Any]]:
    """(figure, axes): a panel of `width` x `height` inches for each run, at most four in a row.

    Raises:
        ConfigError: for more runs than a page can hold.
    """
    if len(runs) > MOST_PANELS:
        raise ConfigError(f"{len(runs)} runs are too many for one figure: choose folders with at most {MOST_PANELS}")
    columns = min(len(runs), 4)
    rows = -(-len(runs) // columns)
    figure = new_figure(width * columns, height * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[len(runs) :]:
        unused.set_visible(False)
    return figure, axes[: len(runs)]


def titles(runs: Sequence[Run], seeds: bool = True) -> list[str]:
    """A name for each run: its method, and whatever else (its seed only if `seeds`) tells it from the others.

    Long ones have several lines. An override that all runs have, as far as they have its stage, tells them not apart.
    """
    facts = [_facts(run) | {"overrides": " ".join(_own_overrides(run, runs))} for run in runs]
    for fact in facts if not seeds else ():
        del fact["seed"]
    differing = [key for key in facts[0] if len({fact[key] for fact in facts}) > 1]
    shown = [key for key in facts[0] if key == "method" or key in differing]
    names = [", ".join(fact[key].replace("$", r"\$") for key in shown if fact[key]) for fact in facts]
    return [textwrap.fill(name, LINE, break_long_words=False, break_on_hyphens=False) for name in names]


def _own_overrides(run: Run, runs: Sequence[Run]) -> list[str]:
    def concerns(text: str, other: Run) -> bool:
        stage = re.search(r"\bstage\d+\b", text.partition("=")[0])
        return stage is None or stage[0] in {entry["name"] for entry in other.record["stages"]}

    return [
        text for text in run.overrides if any(concerns(text, other) and text not in other.overrides for other in runs)
    ]


def legend_below(figure: Any, names: Sequence[str]) -> None:
    """A legend below all panels of what is labelled `names`, in as many columns as the figure's width can take."""
    longest = max(len(line) for name in names for line in name.splitlines())
    columns = int(figure.get_figwidth() * 13) // (longest + 6)  # characters of 8 points to the inch
    figure.legend(loc="outside lower center", ncols=max(1, min(len(names), columns)), fontsize=8, frameon=False)


def common(runs: Sequence[Run]) -> str:
    """What all runs share of dataset and backbone, for a figure's heading."""
    facts = [_facts(run) for run in runs]
    shared = [key for key in ("dataset", "ratio", "backbone") if len({fact[key] for fact in facts}) == 1]
    return ", ".join(literal(facts[0][key]) for key in shared)


def _facts(run: Run) -> dict[str, str]:
    record = run.record
    return {
        "method": str(record["method"] or "run"),
        "dataset": str(record["dataset"]).encode(errors="replace").decode(),
        "ratio": ratio_text(record),
        "backbone": str(record["backbone"]),
        "overrides": "",
        "seed": f"seed {record['seed']}",
    }


def experiments(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """(name, runs of its seeds) of each experiment among `runs`, in order of appearance.

    Raises:
        ConfigError: for more experiments than there are colours to tell apart.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.identity, []).append(run)
    if len(groups) > len(MARKERS):
        raise ConfigError(f"{len(groups)} experiments are too many for one figure: choose at most {len(MARKERS)}")
    found = list(groups.values())
    names = titles([group[0] for group in found], seeds=False)
    means = [f" (mean of {len(group)} seeds)" if len(group) > 1 else "" for group in found]
    return [(name + mean, group) for name, mean, group in zip(names, means, found, strict=True)]


def head(figure: Any, axes: Sequence[Any], runs: Sequence[Run], lines: Sequence[str] | None = None) -> None:
    """Titles the panels of `runs`, with a further line each, and says above them what the runs share."""
    for number, (axis, title) in enumerate(zip(axes, titles(runs), strict=True)):
        above = [common(runs)] if len(runs) == 1 else []
        axis.set_title("\n".join([*above, title, *([lines[number]] if lines else [])]), fontsize=9)
    if len(runs) > 1 and common(runs):
        figure.suptitle(common(runs), fontsize=9)


def load_predictions(run: Run) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """(logits (N, C), labels (N,)) of the run's test split.

    Raises:
        DataError: if predictions.npz is missing or damaged.
    """
    arrays = load_arrays(run.folder / PREDICTIONS, ("logits", "labels"), "train the run again")
    return arrays["logits"], arrays["labels"]


def load_feature_norms(run: Run) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """(feature norms (N,), labels (N,)) of the run's test split.

    Raises:
        DataError: if predictions.npz is missing, damaged, or of a time before norms were kept.
    """
    arrays = load_arrays(run.folder / PREDICTIONS, ("feature_norms", "labels"), "train the run again")
    return arrays["feature_norms"], arrays["labels"]


def load_arrays(path: Path, names: Sequence[str], advice: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays `names` of the file `path` (.npz).

    Args:
        advice: what makes the file anew.

    Raises:
        DataError: if the file is missing, damaged, or lacks one of them.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except OSError as error:
        raise DataError(f"this figure needs {path} ({error.strerror or error}): {advice}") from None
    except (ValueError, KeyError, EOFError, BadZipFile):
        raise DataError(f"{path} is damaged or lacks {' or '.join(names)}: {advice}") from None


def save(figure: Any, path: Path) -> None:
    """Writes `figure` in one step, in the format that the ending of `path` names.

    Raises:
        ConfigError: for another ending than .png, .pdf or .svg.
        LtexpError: if the file cannot be written.
    """
    check_ending(path)
    content = io.BytesIO()
    with warnings.catch_warnings():
        # letters that no font has are drawn as boxes; the tables have them as they are
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        _write(figure, content, path)
    with atomic_write(path) as file:
        file.write(content.getvalue())


def _write(figure: Any, content: io.BytesIO, path: Path) -> None:
    # without a date, the same run gives the same file
    dates = {".pdf": "CreationDate", ".svg": "Date"}
    metadata = {dates[path.suffix.lower()]: None} if path.suffix.lower() in dates else {}
    # tight: titles of any length stay on the page, and panels of equal sides leave no empty band
    figure.savefig(content, format=path.suffix.lower()[1:], metadata=metadata, bbox_inches="tight", pad_inches=0.06)


def check_ending(path: Path) -> None:
    """Raises a ConfigError if no figure can be written with the ending of `path`."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"a figure's file ends in {', '.join(FORMATS)}, not {path.suffix or path.name!r}: {path}")
