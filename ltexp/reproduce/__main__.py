"""Published tables and figures: show them, run what is missing, compare.

    ltexp reproduce list                              papers and tables, how many cells ltexp can run
    ltexp reproduce show table=mislas/3               the table as printed
    ltexp reproduce show cells=mislas/3/mislas/cifar100_lt/100
    ltexp reproduce plan table=mislas/3 seeds=0,1,2   commands, shared stages, what is there, the time
    ltexp reproduce run table=mislas/3 seeds=0,1,2    trains what is missing; again: continues
    ltexp reproduce compare table=mislas/3            published and measured side by side
    ltexp reproduce table=mislas/3                    run, then compare
    ltexp reproduce compare out=results.html          every published cell, as one page that works offline
    ltexp reproduce figure=kps/3.5                    trains the runs of a figure, and draws it
    ltexp reproduce show figure=kps/3.5               what it shows; plan figure= as for tables

which cells (all keys must fit; commas list alternatives):
  table=PAPER/NUMBER    as list shows them
  paper=PAPER           all of its tables
  cells=NAME            a cell, the beginning of its name, or a glob
  method= dataset= imbalance= ratio= backbone= split=
  own=true              runs of the paper's authors alone, no quoted figures

plan, run:
  seeds=0,1,2           default: 0
  dry_run=true          run: the plan, and nothing else
  KEY=VALUE             any override of `ltexp train`, for every run: trainer=bf16 stage1.epochs=20 launcher=joblib;
                        runs with other epochs or images stand apart in every comparison

figures:
  figure=PAPER/NUMBER   commas list several; list names them all. seeds=, dry_run= and overrides are as for runs
  out=FILE              .png, .pdf or .svg; default: outputs/figures/PAPER_NUMBER.png, of several images ..._PART.png
  KEY=VALUE             options of the drawing, such as classes=0,9 (ltexp report --help)

compare:
  runs=DIR,DIR          where finished runs are; default: outputs (or paths.outputs=DIR)
  format=NAME           terminal | markdown | latex | csv | html; default: as the ending of out= says
  out=FILE              default: the terminal
  missing=true|false    cells without a run as well; default: true for html and csv
  sort=NAME             published | measured | difference | method | dataset, the best first; sort=-measured: the
                        other way round
  keep=DIR              also copies the records that the table stands on (record.json, config.yaml) to DIR

exit status: 0; 1 if a cell that was asked for has failed or cannot be written; 2 for a wrong command line.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType

from ltexp.config.path import take_config_dirs
from ltexp.config.words import read_choice, read_flag, run_command, split_words
from ltexp.errors import ConfigError, LtexpError
from ltexp.names import unknown_name
from ltexp.papers import Cell, find_paper, find_table, load_papers
from ltexp.report.formats import FORMATS, format_of, put_out
from ltexp.report.records import Run, counts_of
from ltexp.report.terminal import Grid
from ltexp.reproduce.command import is_override, load_runs, print_all, seeds_of
from ltexp.reproduce.compare import SORTS, compare, sort_lines, to_page, to_table
from ltexp.reproduce.cost import Cost
from ltexp.reproduce.figures import figures, list_figures
from ltexp.reproduce.keep import keep_records
from ltexp.reproduce.measured import Outputs
from ltexp.reproduce.plan import Plan, make_plan, show_plan
from ltexp.reproduce.run import check_extra, check_jobs, run_plan
from ltexp.reproduce.selection import FILTERS, select
from ltexp.reproduce.show import list_papers, show_cell, show_paper, show_table

COMMANDS = ("list", "show", "plan", "run", "compare")
KEYS = {
    "list": ("paper",),
    "show": FILTERS,
    "plan": (*FILTERS, "seeds", "runs"),
    "run": (*FILTERS, "seeds", "runs", "dry_run"),
    "compare": (*FILTERS, "runs", "format", "out", "missing", "sort", "keep"),
}
KEYS[""] = (*KEYS["run"], *KEYS["compare"])  # run, then compare


def parse(words: Sequence[str]) -> tuple[str, dict[str, str], list[str]]:
    """(command, options, overrides for training) of a command line; without a command it is run and compare.

    Raises:
        ConfigError: for an unknown command or key, or a key without a value.
    """
    command, rest = (words[0], words[1:]) if words and "=" not in words[0] else ("", words)
    if command and command not in COMMANDS:
        raise ConfigError(unknown_name("command", command, COMMANDS))
    for word in rest:
        if "=" not in word and not word.startswith("~"):
            raise ConfigError(f"'{word}' is not KEY=VALUE; see ltexp reproduce --help")
    trains = command in ("plan", "run", "")
    extra, options = split_words(rest, KEYS[command], lambda word: trains and is_override(word.partition("=")[0]))
    check_extra(extra)
    return command, options, extra


def show(options: dict[str, str]) -> None:
    """Prints what the filters choose: a cell, a table, or a paper."""
    cells = select(options)
    if "table" not in options and "cells" not in options:
        if set(options) != {"paper"}:
            raise ConfigError("name a table, a paper or cells: ltexp reproduce show table=mislas/3")
        print_all(*(show_paper(find_paper(name)) for name in options["paper"].split(",")))
    elif len(cells) <= 3 or "table" not in options:
        print_all(*map(show_cell, cells))
    else:
        print_all(*(_table(name, cells) for name in dict.fromkeys(f"{cell.paper}/{cell.table}" for cell in cells)))


def _table(name: str, cells: Sequence[Cell]) -> RenderableType:
    return show_table(find_table(name), [cell for cell in cells if f"{cell.paper}/{cell.table}" == name])


def plan(options: dict[str, str], extra: Sequence[str]) -> tuple[Plan, Cost]:
    """The plan of the chosen cells, and what it costs."""
    runs = load_runs(options, extra)
    made = make_plan(select(options), Outputs(runs), seeds_of(options), extra)
    if extra and made.to_run:
        from ltexp.reproduce.run import compose_job

        compose_job(made.to_run[0][0])  # an override that does not exist is answered at once
    return made, Cost(runs)


def run(options: dict[str, str], extra: Sequence[str]) -> int:
    """Runs what is missing; 1 if something is missing still."""
    made, cost = plan(options, extra)
    if read_flag(options, "dry_run"):
        print_all(show_plan(made, cost))
        return 0
    if not made.jobs:
        print_all(show_plan(made, cost))
        return 1
    problems = check_jobs(made)
    for dataset, problem in problems.items():
        print(f"ltexp reproduce: no run on {dataset}: {problem}", file=sys.stderr)
    asked = dict(made.missing)
    made.missing = {job: seeds for job, seeds in asked.items() if job.dataset not in problems}
    if made.to_run:
        print(f"{counts_of(len(made.to_run), 'run')} to train; stopped at any point, the same command continues")
        run_plan(made)
    done = make_plan(select(options), Outputs(load_runs(options, extra)), made.seeds, extra)
    for job, seeds in done.missing.items():
        if job.dataset not in problems:
            print(f"ltexp reproduce: failed: {job.command(seeds)}", file=sys.stderr)
    return 1 if done.missing else 0


def _check_compare(options: dict[str, str]) -> None:
    read_choice(options, "format", (*FORMATS, "html"))
    read_choice(options, "sort", (*SORTS, *(f"-{name}" for name in SORTS)))
    read_flag(options, "missing")
    format_of(options)
    if options.get("format") == "html" and "out" not in options:
        raise ConfigError("format=html needs a file: out=results.html")


def _compare(options: dict[str, str], runs: Sequence[Run]) -> None:
    out = Path(options["out"]).expanduser() if "out" in options else None
    name = format_of(options)
    every = name in ("html", "csv") or bool({"table", "cells"} & set(options))
    lines = compare(select(options), Outputs(runs), options.get("missing", str(every).lower()) == "true")
    if "sort" in options:
        lines = sort_lines(lines, options["sort"])
    if not lines:
        raise LtexpError("none of these cells is measured yet: see ltexp reproduce plan, or add missing=true")
    if "keep" in options:
        kept = {id(run): run for line in lines if line.kind != "other" and line.measured for run in line.measured.runs}
        folder = Path(options["keep"]).expanduser()
        print(f"{counts_of(len(keep_records(kept.values(), folder)), 'record')} in {folder}")
    if name == "terminal" and out is None:
        print_all(Grid(to_table(lines)))
        return
    if name == "html":
        assert out is not None
        to_page(lines, "ltexp: published and measured").write(out)
        print(out)
        return
    put_out(FORMATS[name](to_table(lines, name == "csv")), out)


def execute(command: str, options: dict[str, str], extra: Sequence[str]) -> int:
    """Does what the command line says; the exit status."""
    if command == "list":
        papers = [find_paper(name) for name in options["paper"].split(",")] if options else list(load_papers().values())
        print_all(list_papers(papers), list_figures([paper.id for paper in papers]))
        return 0
    if command == "show":
        show(options)
        return 0
    if command == "plan":
        print_all(show_plan(*plan(options, extra)))
        return 0
    _check_compare(options)
    status = run(options, extra) if command in ("run", "") else 0
    if command != "run" and options.get("dry_run") != "true":
        _compare(options, load_runs(options, extra))
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0; 1 where something failed; 2 for a wrong command line."""

    def action(words: list[str]) -> int:
        others = take_config_dirs(words)
        of_figures = any(word.startswith("figure=") for word in others)
        return figures(others) if of_figures else execute(*parse(others))

    return run_command("ltexp reproduce", __doc__ or "", action, arguments)


if __name__ == "__main__":
    sys.exit(main())
