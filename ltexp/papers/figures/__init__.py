"""Figures of the papers as data: what each shows, what is trained for it, and how it is drawn.

One YAML file a paper, named as its file of numbers; the thesis's chapters 1 and 2 stand with chapter 3. `figures` are
by number, each with its `caption`, a `note` where something is not printed, and either one drawing or several `parts`:

- `draw`: a kind of `ltexp report figure=KIND`, of the `runs`; or `plot`: one of ltexp/report/plots/, without runs.
- `options`: of that kind or plot.
- `runs`: names of published cells (what measures them is drawn), or a mapping with `method`, `dataset`, `ratio`,
  `imbalance` (longtail where there is a ratio), `backbone` and `settings`. Or `sweep`: a file of conf/sweep/, and what
  its runs are made on (`dataset`, `ratio`, `backbone`).
- `settings`: overrides of all runs of the drawing.

`left_out`: the other figures of the paper, and why nothing draws them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ltexp.errors import ConfigError
from ltexp.names import unknown_name
from ltexp.papers import find_paper

_FOLDER = Path(__file__).parent
_OF_A_DRAWING = {"draw", "plot", "options", "runs", "sweep", "settings"}
_OF_A_RUN = {"method", "dataset", "ratio", "imbalance", "backbone", "settings"}
_OF_A_SWEEP = {"name", "dataset", "ratio", "backbone"}


@dataclass(frozen=True, eq=False)
class Drawing:
    """One image of a figure.

    Attributes:
        part: its name within the figure, such as `a` or `left`; empty where the figure is one image.
        kind: a kind of `ltexp.report.figures`, or a plot of `ltexp.report.plots`.
        of_runs: whether it is the former.
        options: of the kind or plot.
        runs: cells' names and mappings, in the order of drawing.
        sweep: a ready sweep and what it is run on; empty for none.
        settings: overrides of all runs.
    """

    part: str
    kind: str
    of_runs: bool
    options: dict[str, str]
    runs: tuple[str | Mapping[str, Any], ...]
    sweep: Mapping[str, Any]
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """A figure of a paper.

    Attributes:
        paper: id of the paper.
        id: its number.
        caption: what it shows.
        note: what the paper does not say of it, and what was chosen.
        drawings: its images.
    """

    paper: str
    id: str
    caption: str
    note: str | None
    drawings: tuple[Drawing, ...]

    @property
    def name(self) -> str:
        """Such as `kps/3.5`."""
        return f"{self.paper}/{self.id}"


@dataclass(frozen=True)
class Figures:
    """The figures of a paper that can be drawn, by number, and why the others are not."""

    drawn: dict[str, Figure]
    left_out: dict[str, str]


@cache
def load_figures() -> dict[str, Figures]:
    """The figures of all papers by the paper's id."""
    return {path.stem: _paper(path) for path in sorted(_FOLDER.glob("*.yaml"))}


def find_figure(name: str) -> Figure:
    """The figure `PAPER/NUMBER`.

    Raises:
        ConfigError: for an unknown one, with the nearest; for one that nothing draws, with the reason.
    """
    paper, _, number = name.partition("/")
    known = load_figures()[find_paper(paper).id]
    if number in known.left_out:
        raise ConfigError(f"figure {name} is left out: {known.left_out[number]}")
    if number not in known.drawn:
        names = [f"{one}/{other}" for one, of in load_figures().items() for other in of.drawn]
        own = [text for text in names if text.startswith(f"{paper}/")]
        elsewhere = [text for text in names if text.endswith(f"/{number}")]
        if number and elsewhere and number.count("."):  # chapters of the thesis are told apart by their numbers
            raise ConfigError(f"unknown figure '{name}': did you mean '{elsewhere[0]}'?")
        raise ConfigError(f"unknown figure '{name}': choose one of {', '.join(own)}")
    return known.drawn[number]


def _paper(path: Path) -> Figures:
    try:
        content = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        drawn = {number: _figure(path.stem, number, node) for number, node in content["figures"].items()}
        return Figures(drawn, content.get("left_out", {}))
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: {' '.join(str(error).split())}") from None


def _figure(paper: str, number: str, node: dict[str, Any]) -> Figure:
    parts = node.get("parts") or {"": {key: value for key, value in node.items() if key not in ("caption", "note")}}
    drawings = tuple(_drawing(f"{number} {part}", str(part), entry) for part, entry in parts.items())
    return Figure(paper, number, node["caption"], node.get("note"), drawings)


def _drawing(where: str, part: str, node: dict[str, Any]) -> Drawing:
    of_runs = "draw" in node
    runs, sweep = tuple(node.get("runs", ())), node.get("sweep", {})
    _check(where, node, _OF_A_DRAWING)
    _check(where, sweep, _OF_A_SWEEP)
    for run in runs:
        _check(where, {} if isinstance(run, str) else run, _OF_A_RUN)
    if of_runs == ("plot" in node) or of_runs != bool(runs or sweep) or (runs and sweep):
        raise ValueError(f"figure {where}: give draw with runs or a sweep, or plot")
    options = {key: str(value) for key, value in node.get("options", {}).items()}
    kind = node["draw"] if of_runs else node["plot"]
    return Drawing(part, kind, of_runs, options, runs, sweep, tuple(node.get("settings", ())))


def _check(where: str, node: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(node.keys() - known):
        raise ValueError(f"figure {where}: {unknown_name('key', unknown[0], known)}")
