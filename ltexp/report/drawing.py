"""What the figures share: colours, panels side by side, and names."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from rich.cells import cell_len

from ltexp.errors import ConfigError, DataError
from ltexp.report.groups import group_runs
from ltexp.report.keys import short_override
from ltexp.report.records import Run
from ltexp.report.swept import short_names
from ltexp.report.table import ratio_text
from ltexp.report.text import shorten, wrap
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
MOST_PANELS = 16
PAGE = 12.0, 15.0  # inches that no figure is larger than
LINE = 38  # characters of a line of a title, which is as wide as a panel
LINE_OF_MANY = 33  # ... where as many panels stand in a row as can
MOST_COLUMNS = 4  # panels in a row
MOST_LINES = 3  # of a title or of a name in a legend
VALUE = 24  # characters of a name or a value of an override

# a line over an equal one lets it be seen: each further one is thinner, and with gaps of its own
_DASHES = ("-", (0, (5, 2.5)), (0, (1.2, 1.6)), (0, (7, 2, 1.5, 2)), (0, (3, 3)), (0, (1, 3)), (0, (9, 3)))
_STROKES = {color: (2.6 - 0.22 * place, _DASHES[place]) for place, (color, _) in enumerate(MARKERS)}


def stroke(color: str, strength: float = 1.0) -> dict[str, Any]:
    """Keywords of the line of the series with this colour of `MARKERS`; `strength` times its usual width."""
    width, dashes = _STROKES[color]
    return {"color": color, "linewidth": strength * width, "linestyle": dashes}


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of `width` x `height` inches, or of a page, without display and global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(min(width, PAGE[0]), min(height, PAGE[1])), dpi=200, layout="constrained")


def panels(runs: Sequence[Run], width: float, height: float) -> tuple[Any, list[Any]]:
    """(figure, axes): a panel of `width` x `height` inches for each run, at most `MOST_COLUMNS` in a row.

    Raises:
        ConfigError: for more runs than a page can hold.
    """
    rows, columns = panel_grid(len(runs))
    figure = new_figure(width * columns, height * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[len(runs) :]:
        unused.set_visible(False)
    return figure, axes[: len(runs)]


def panel_grid(number: int) -> tuple[int, int]:
    """(rows, columns) of so many panels, at most `MOST_COLUMNS` in a row.

    Raises:
        ConfigError: for more than a page can hold.
    """
    if number > MOST_PANELS:
        raise ConfigError(f"{number} runs are too many for one figure: choose folders with at most {MOST_PANELS}")
    columns = min(number, MOST_COLUMNS)
    return -(-number // columns), columns


def titles(runs: Sequence[Run], seeds: bool = True, width: int = LINE) -> list[str]:
    """A name for each run: its method, and whatever else (its seed only if `seeds`) tells it from the others.

    Keys are as short as they stay unique, and long names have several lines. An override that all runs have, as far as
    they have its stage, tells them not apart.
    """
    short = short_names(group_runs(runs))
    own = [[short_override(text, short, VALUE) for text in _own_overrides(run, runs)] for run in runs]
    facts = [_facts(run) | {"overrides": " ".join(texts)} for run, texts in zip(runs, own, strict=True)]
    for fact in facts if not seeds else ():
        del fact["seed"]
    differing = [key for key in facts[0] if len({fact[key] for fact in facts}) > 1]
    shown = [key for key in facts[0] if key == "method" or key in differing]
    names = [", ".join(fact[key] for key in shown if fact[key]) for fact in facts]
    return [fill(name, width) for name in names]


def fill(text: str, width: int = LINE) -> str:
    """`text` in at most `MOST_LINES` lines of `width` columns; what is beyond them is cut."""
    lines = wrap(text, width)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], shorten(" ".join(lines[MOST_LINES - 1 :]), width)]
    return "\n".join(lines)


def _own_overrides(run: Run, runs: Sequence[Run]) -> list[str]:
    def concerns(text: str, other: Run) -> bool:
        stage = re.search(r"\bstage\d+\b", text.partition("=")[0])
        return stage is None or stage[0] in {entry["name"] for entry in other.record["stages"]}

    return [
        text for text in run.overrides if any(concerns(text, other) and text not in other.overrides for other in runs)
    ]


def number_ticks(axis: Any, low: float, high: float) -> None:
    """Whole numbers along a log axis, also a colour bar's, from `low` to `high`, few enough to be apart."""
    wide = high / max(low, 1e-9) > 300
    ticks = [step * 10**power for power in range(9) for step in ((1,) if wide else (1, 2, 5))]
    inside = [tick for tick in ticks if low <= tick <= high] or [max(round(low), 1)]
    axis.set_ticks(inside, [f"{tick:,}" for tick in inside])
    axis.set_ticks([], minor=True)


def legend_below(figure: Any, names: Sequence[str]) -> None:
    """A legend below all panels of what is labelled `names`, in as many columns as the figure's width can take."""
    longest = max(cell_len(line) for name in names for line in name.splitlines())
    columns = int(figure.get_figwidth() * 13) // (longest + 6)  # characters of 8 points to the inch
    figure.legend(loc="outside lower center", ncols=max(1, min(len(names), columns)), fontsize=8, frameon=False)


def common(runs: Sequence[Run]) -> str:
    """What all runs share of dataset and backbone, for a figure's heading."""
    facts = [_facts(run) for run in runs]
    shared = [key for key in ("dataset", "ratio", "backbone") if len({fact[key] for fact in facts}) == 1]
    return fill(", ".join(facts[0][key] for key in shared), 2 * LINE)


def _facts(run: Run) -> dict[str, str]:
    record = run.record
    return {
        "method": shorten(str(record["method"] or "run"), 2 * VALUE),
        "dataset": shorten(str(record["dataset"]), 2 * VALUE),
        "ratio": ratio_text(record),
        "backbone": str(record["backbone"]),
        "overrides": "",
        "seed": f"seed {record['seed']}",
    }


def experiments(runs: Sequence[Run], most: int = len(MARKERS)) -> list[tuple[str, list[Run]]]:
    """(name, runs of its seeds) of each experiment among `runs`, in order of appearance.

    Args:
        runs: of any number of seeds.
        most: experiments that the figure can hold; default: as many as there are colours to tell apart.

    Raises:
        ConfigError: for more.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.identity, []).append(run)
    if len(groups) > most:
        raise ConfigError(f"{len(groups)} experiments are too many for one figure: choose at most {most}")
    found = list(groups.values())
    names = titles([group[0] for group in found], seeds=False)
    means = [f" (mean of {len(group)} seeds)" if len(group) > 1 else "" for group in found]
    return [(name + mean, group) for name, mean, group in zip(names, means, found, strict=True)]


def head(figure: Any, axes: Sequence[Any], runs: Sequence[Run], lines: Sequence[str] | None = None) -> None:
    """Titles the panels of `runs`, with a further line each, and says above them what the runs share."""
    width = LINE if panel_grid(len(runs))[1] < MOST_COLUMNS else LINE_OF_MANY
    for number, (axis, title) in enumerate(zip(axes, titles(runs, width=width), strict=True)):
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


def load_arrays(path: Path, names: Sequence[str] | None, advice: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays `names` of the file `path` (.npz).

    Args:
        path: the file.
        names: the arrays; None: all that it has.
        advice: what makes the file anew.

    Raises:
        DataError: if the file is missing, damaged, or lacks one of them.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if lacking := [name for name in names or () if name not in arrays]:
                raise DataError(f"{path} has no {', '.join(lacking)}: {advice}")
            return {name: arrays[name] for name in (arrays.files if names is None else names)}
    except OSError as error:
        raise DataError(f"this figure needs {path} ({error.strerror or error}): {advice}") from None
    except (ValueError, KeyError, EOFError, BadZipFile):
        raise DataError(f"{path} is damaged: {advice}") from None
