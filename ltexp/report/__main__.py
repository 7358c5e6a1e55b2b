"""Tables and figures from any set of runs.

    ltexp report outputs/                                  the table of every finished run below
    ltexp report outputs/multirun format=latex out=table.tex
    ltexp report RUN RUN columns=+best_on_test,+mce        further columns; without + these alone
    ltexp report outputs/multirun against=bsce             what each method gains over bsce at the same seeds
    ltexp report outputs/quickstart stages=true            a row for each stage
    ltexp report outputs/quickstart out=runs.html          one page: the table, its runs and their figures
    ltexp report outputs/quickstart figure=reliability out=reliability.pdf
    ltexp report outputs/multirun/DIR figure=sweep         lines or a heat map over the keys that were swept
    ltexp report outputs/multirun test_shift=true          accuracy on long-tailed test sets, forward and backward

Runs that differ by their seed alone share a row: mean ± sample standard deviation over n seeds. Runs under other shot
rules or another selection of the epoch never do. Of two runs with the same config and seed the latest counts.

keys:
  format=NAME                          terminal | markdown | csv | latex | html; default: as the ending of out= says
                                       (.txt, .md, .csv, .tex, .html)
  out=FILE                             default: the terminal; a figure: outputs/figures/<kind>.png (or .pdf, .svg)
  stages=true|false                    a row for each stage
  posthoc=true|false                   a further row for each evaluation that ltexp evaluate has kept
  against=METHOD                       a column: what each row gains over that method at the same seeds
  test_shift=true|false                another table: test sets with other class shares, their prior unknown, known
                                       and estimated (docs/shifted_tests.md)
  sort=NAME                            by a column, the best first; sort=-NAME the other way round
  columns=NAME,+NAME                   {columns}
  figure=KIND                          one of these, with its own keys:
{figures}
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ltexp.config.path import take_config_dirs
from ltexp.config.words import read_choice, read_flag, split_words, status_of
from ltexp.errors import ConfigError, DataError
from ltexp.names import unknown_name
from ltexp.report import figures
from ltexp.report.columns import COLUMNS, OF_A_CLASS, find_column, label_of
from ltexp.report.formats import FORMATS, UNLIMITED, format_of, put_out
from ltexp.report.groups import Group, group_runs
from ltexp.report.html import write_runs_page
from ltexp.report.records import Run, find_runs
from ltexp.report.results import Table, results_table
from ltexp.report.shifted import shifted_table
from ltexp.report.terminal import Grid
from ltexp.usage import folded

KEYS = ("format", "out", "stages", "columns", "sort", "posthoc", "against", "test_shift", "figure")


def parse(words: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """(folders, options) of a command line; a folder's name may hold a `=`, as those of sweeps do.

    Raises:
        ConfigError: for an unknown key or value, keys that exclude each other, or no folder.
    """
    chosen = next((word.partition("=")[2] for word in words if word.startswith("figure=")), None)
    known = [*KEYS, *(figures.options(chosen) if chosen in figures.kinds() else ())]
    folders, options = split_words(words, known)
    if not folders:
        raise ConfigError("name at least one folder: ltexp report DIR [key=value ...]")
    _check(options)
    return [Path(folder) for folder in folders], options


def _check(options: dict[str, str]) -> None:
    read_choice(options, "format", [*FORMATS, "html"])
    read_choice(options, "figure", list(figures.kinds()))
    for flag in ("stages", "posthoc", "test_shift"):
        read_flag(options, flag)
    own = figures.options(options["figure"]) if "figure" in options else ()
    for key in ("format", "stages", "columns", "sort", "posthoc", "against", "test_shift"):
        if "figure" in options and key in options and key not in own:
            raise ConfigError(f"figure={options['figure']} and {key}= exclude each other")
    for key in ("stages", "columns", "sort", "posthoc", "against"):
        if read_flag(options, "test_shift") and key in options:
            raise ConfigError(
                f"test_shift=true and {key}= exclude each other: its table is of runs, with its own columns"
            )
    if options.get("format") == "html" and "out" not in options:
        raise ConfigError("format=html needs a file: out=runs.html")
    if "figure" in options:
        return
    format_of(options)
    names = [name.strip().removeprefix("+") for name in options.get("columns", "").split(",")]
    for name in (*names, options.get("sort", "").removeprefix("-")):
        if name and find_column(name) is None:
            raise ConfigError(unknown_name("column", name, [*COLUMNS, OF_A_CLASS]))


def report(runs: Sequence[Run], options: dict[str, str]) -> None:
    """Prints, writes or draws what the options ask for."""
    if "figure" in options:
        kind = options["figure"]
        path = Path(options.get("out", f"outputs/figures/{kind}.png")).expanduser()
        figures.draw(kind, runs, path, **{key: options[key] for key in figures.options(kind) if key in options})
        print(path)
        return
    out = Path(options["out"]).expanduser() if "out" in options else None
    name = format_of(options)
    groups = group_runs(runs)
    _check_classes(runs, options)
    table = _table(groups, options, full=name == "csv")
    if name == "terminal" and out is None:
        window = Console()
        # piped into a file or a pager there is no window, and rich would squeeze the table into 80 columns
        (window if window.is_terminal else Console(width=UNLIMITED)).print(Grid(table))
        return
    if name == "html":
        assert out is not None
        write_runs_page(groups, table, out)
        print(out)
        return
    put_out(FORMATS[name](table), out)


def _check_classes(runs: Sequence[Run], options: dict[str, str]) -> None:
    """Refuses a column of a class that none of the runs has."""
    most = max(len(run.record["metrics"]["per_class"]) for run in runs)
    names = [name.strip().removeprefix("+") for name in options.get("columns", "").split(",")]
    for name in (*names, options.get("sort", "").removeprefix("-")):
        if (label := label_of(name)) is not None and label >= most:
            raise ConfigError(f"unknown column '{name}': the classes of these runs are acc0 to acc{most - 1}")


def _table(groups: Sequence[Group], options: dict[str, str], full: bool) -> Table:
    if read_flag(options, "test_shift"):
        return shifted_table(groups, full)
    stages, posthoc = (read_flag(options, flag) or False for flag in ("stages", "posthoc"))
    sort, against = options.get("sort"), options.get("against")
    return results_table(groups, options.get("columns"), stages, full, sort, posthoc, against)


def usage() -> str:
    """The text of --help."""
    assert __doc__ is not None
    names = [*COLUMNS, "accK (of the class with label K)"]
    drawn = []
    for kind in figures.kinds():
        drawn.append(f"    {kind:<23}  {figures.summary(kind)}")
        drawn += [f"{'':<8}{f'{key}=':<19}  {meaning}" for key, meaning in figures.options(kind).items()]
    return __doc__.format(columns=", ".join(names), figures="\n".join(drawn))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0; 1 with nothing to report or a file that cannot be written; 2 for a wrong command line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or {"-h", "--help"} & set(words):
        print(folded(usage().rstrip()))
        return 0

    def action() -> int:
        folders, options = parse(take_config_dirs(words))
        runs, notes = find_runs(folders)
        for note in notes:
            print(f"ltexp report: {note}", file=sys.stderr)
        if not runs:
            raise DataError(f"no finished run below {', '.join(map(str, folders))}")
        report(runs, options)
        return 0

    return status_of("ltexp report", action)


if __name__ == "__main__":
    sys.exit(main())
