"""Figures of runs: each module of this folder is a kind, with `draw(runs, path)`.

To add a kind, add a file: `figure=<its name>` then works, and `draw_run_figures` leaves it alone unless it is in
`AT_THE_END`. Further parameters of its `draw`, texts with a default, are options of that kind on the command line. A
kind that draws what `ltexp evaluate` has to make first names its option in `EVALUATED` and has a function `read(run)`.
"""

import inspect
import pkgutil
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from ltexp.errors import ConfigError, DataError
from ltexp.evaluation.record import read_record
from ltexp.names import unknown_name
from ltexp.report.records import Run

AT_THE_END = ("reliability", "accuracy_by_class", "confusion")


def kinds() -> list[str]:
    """The names of all kinds of figures."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def options(kind: str) -> dict[str, str]:
    """The options that the figure `kind` takes besides runs and path, each with what its `draw` says of it."""
    function = import_module(f"{__name__}.{kind}").draw
    arguments = (inspect.getdoc(function) or "").partition("Args:")[2].partition("\n\n")[0]
    found = {}
    for name in list(inspect.signature(function).parameters)[2:]:
        meaning = re.search(rf"^    {name}: (.*(?:\n {{8}}.*)*)", arguments, re.MULTILINE)
        found[name] = " ".join(meaning[1].split()) if meaning else ""
    return found


def summary(kind: str) -> str:
    """The first line of what the figure `kind` says of itself."""
    return (import_module(f"{__name__}.{kind}").__doc__ or "").partition("\n")[0]


def to_evaluate(kind: str, run: Run) -> str | None:
    """The option of `ltexp evaluate` that makes what the figure `kind` needs of `run`; None if it is there."""
    module = import_module(f"{__name__}.{kind}")
    option: str | None = getattr(module, "EVALUATED", None)
    if option is None:
        return None
    try:
        module.read(run)
    except DataError:
        return option
    return None


def draw(kind: str, runs: Sequence[Run], path: Path, **chosen: str) -> None:
    """Draws `runs` side by side to `path` (.png, .pdf or .svg).

    Args:
        kind: one of `kinds`.
        runs: at least one.
        path: the figure's file.
        chosen: `options` of that kind, such as `metric` of `sweep`.

    Raises:
        ConfigError: for an unknown kind or option, no runs, or a file that cannot be written.
    """
    if kind not in kinds():
        raise ConfigError(unknown_name("figure", kind, kinds()))
    if not runs:
        raise ConfigError(f"no finished run to draw {kind} of")
    for name in chosen:
        if name not in options(kind):
            raise ConfigError(unknown_name(f"option of figure={kind}", name, options(kind)))
    import_module(f"{__name__}.{kind}").draw(runs, path, **chosen)


def draw_run_figures(run_dir: Path) -> list[Path]:
    """Draws the figures of the finished run in `run_dir` into that folder, and returns their paths.

    A figure that cannot be drawn, for whatever reason, is named in one line: the run's numbers are there.
    """
    drawn = []
    for kind in AT_THE_END:
        path = run_dir / f"{kind}.png"
        try:
            draw(kind, [Run(run_dir, read_record(run_dir))], path)
        except Exception as error:  # matplotlib raises whatever it stumbles over
            reason = (str(error) or type(error).__name__).splitlines()[0]
            print(f"{path.name} was not drawn ({reason}); `ltexp report {run_dir} figure={kind}` draws it", flush=True)
        else:
            drawn.append(path)
    return drawn
