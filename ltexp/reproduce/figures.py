"""`ltexp reproduce figure=PAPER/NUMBER`: trains what a figure is of, measures what it needs besides, and draws it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table as Grid
from rich.text import Text

from ltexp.config.words import read_flag, split_words
from ltexp.data.images.arrays import default_root
from ltexp.errors import ConfigError, LtexpError
from ltexp.papers.figures import Drawing, Figure, find_figure, load_figures
from ltexp.report import figures as kinds
from ltexp.report import plots
from ltexp.report.records import Run, counts_of
from ltexp.report.saving import check_ending
from ltexp.reproduce.command import is_override, load_runs, print_all, seeds_of
from ltexp.reproduce.cost import Cost
from ltexp.reproduce.figure_jobs import Runs, number_of_runs, runs_of
from ltexp.reproduce.measured import Outputs
from ltexp.reproduce.plan import Plan, complete, show_cost, show_job
from ltexp.reproduce.run import check_extra, check_jobs, compose_job, outputs_root, run_plan, typed_values

COMMANDS = ("show", "plan", "run")
KEYS = ("figure", "seeds", "runs", "dry_run", "out")


@dataclass(frozen=True)
class Asked:
    """A command line about figures.

    Attributes:
        command: show | plan | run; empty: run, then draw.
        figures: those that are named.
        options: the command's own, as text.
        drawn: options of the drawings, as text.
        extra: overrides of `ltexp train`.
        runs: what each of the drawings is of, with the overrides.
    """

    command: str
    figures: list[Figure]
    options: dict[str, str]
    drawn: dict[str, str]
    extra: list[str]
    runs: dict[Drawing, Runs]

    @property
    def seeds(self) -> list[int]:
        """Those asked for."""
        return seeds_of(self.options)

    def plan(self, runs: Sequence[Run]) -> Plan:
        """What is to be trained, beside the finished `runs`."""
        plan = Plan(self.seeds, self.extra, jobs={job: [] for of in self.runs.values() for job in of.jobs})
        complete(plan, Outputs(runs))
        return plan

    def path_of(self, figure: Figure, drawing: Drawing) -> Path:
        """The drawing's file."""
        usual = outputs_root(self.extra) / "figures" / f"{figure.paper}_{figure.id}.png"
        path = Path(self.options["out"]).expanduser() if "out" in self.options else usual
        return path.with_name(f"{path.stem}_{drawing.part}{path.suffix}") if drawing.part else path


def parse(words: Sequence[str]) -> Asked:
    """What a command line with `figure=` asks for.

    Raises:
        ConfigError: for an unknown figure, command or key, and for what would be without effect.
    """
    command, rest = (words[0], words[1:]) if "=" not in words[0] else ("", words)
    if command and command not in COMMANDS:
        raise ConfigError(f"figure= goes with {', '.join(COMMANDS)}, or alone, and not with '{command}'")
    named = next(word.partition("=")[2] for word in rest if word.startswith("figure="))
    figures = [find_figure(name.strip()) for name in named.split(",")]
    drawings = [drawing for figure in figures for drawing in figure.drawings]
    own = [key for drawing in drawings for key in _options(drawing)]
    extra, options = split_words(rest, [*KEYS, *own], lambda word: is_override(word.partition("=")[0]))
    check_extra(extra)
    drawn = {key: text for key, text in options.items() if key in own}
    runs = {drawing: runs_of(drawing, extra) for drawing in drawings if drawing.of_runs}
    asked = Asked(command, figures, {key: options[key] for key in options if key in KEYS}, drawn, extra, runs)
    _check(asked)
    return asked


def _check(asked: Asked) -> None:
    read_flag(asked.options, "dry_run")
    _ = asked.seeds
    if "out" in asked.options:
        check_ending(Path(asked.options["out"]))
        if len(asked.figures) > 1:
            raise ConfigError("out= is the file of one figure: name one figure")
    idle = [word for word in asked.extra if not word.startswith("paths.")]
    idle += [f"{key}={asked.options[key]}" for key in ("seeds", "runs") if key in asked.options]
    if idle and not asked.runs:
        raise ConfigError(f"{idle[0]} has no effect: no run is needed for {', '.join(f.name for f in asked.figures)}")


def _options(drawing: Drawing) -> list[str]:
    """The options of a drawing that may be typed."""
    if drawing.of_runs:
        return list(kinds.options(drawing.kind))
    return [key for key in plots.options(drawing.kind) if key not in ("root", "dataset")]


def figures(words: Sequence[str]) -> int:
    """Does what a command line with `figure=` says; the exit status.

    Raises:
        LtexpError: in one line, for what is wrong with the command line, the data or a file.
    """
    asked = parse(words)
    if asked.command == "show":
        print_all(*(_shown(figure, asked) for figure in asked.figures))
        return 0
    runs = load_runs(asked.options, asked.extra)
    plan = asked.plan(runs)
    if asked.extra and plan.to_run:
        compose_job(plan.to_run[0][0])  # an override that does not exist is answered at once
    if asked.command == "plan" or read_flag(asked.options, "dry_run"):
        print_all(_planned(asked, plan, Cost(runs)))
        return 0
    failed = _train(plan)
    if asked.command != "run":
        finished = Outputs(load_runs(asked.options, asked.extra))
        drawn = [_draw(asked, figure, drawing, finished) for figure in asked.figures for drawing in figure.drawings]
        return 0 if all(drawn) else 1
    return 1 if failed or asked.plan(load_runs(asked.options, asked.extra)).missing else 0


def _train(plan: Plan) -> bool:
    """Trains what is missing; whether some of it cannot be for want of data."""
    problems = check_jobs(plan)
    for dataset, problem in problems.items():
        print(f"ltexp reproduce: no run on {dataset}: {problem}", file=sys.stderr)
    plan.missing = {job: seeds for job, seeds in plan.missing.items() if job.dataset not in problems}
    if plan.to_run:
        print(f"{counts_of(len(plan.to_run), 'run')} to train; stopped at any point, the same command continues")
        run_plan(plan)
    return bool(problems)


def _draw(asked: Asked, figure: Figure, drawing: Drawing, outputs: Outputs) -> bool:
    """Draws one image of `figure`; whether it is whole. What is wrong is told in a line each."""
    path = asked.path_of(figure, drawing)
    name = f"{figure.name} {drawing.part}".strip()
    chosen = drawing.options | {key: text for key, text in asked.drawn.items() if key in _options(drawing)}
    if not drawing.of_runs:
        typed = typed_values(asked.extra)
        root = {"root": typed.get("paths.data", str(default_root()))} if "root" in plots.options(drawing.kind) else {}
        plots.draw(drawing.kind, path, **chosen, **root)
        print(path)
        return True
    wanted = asked.runs[drawing]
    runs: list[Run] = []
    problems = [f"{name} without {reason}" for reason in wanted.lacking]
    for job in wanted.jobs:
        done = outputs.done(job)
        runs += [done[seed] for seed in asked.seeds if seed in done]
        absent = [seed for seed in asked.seeds if seed not in done]
        problems += [f"{name} without {job.command(absent)}"] if absent else []
    try:
        for run in runs:
            _evaluate(drawing.kind, run)
        kinds.draw(drawing.kind, runs, path, **chosen)
        print(path)
    except LtexpError as error:
        problems.append(f"{name} is not drawn: {error}")
    for problem in problems:
        print(f"ltexp reproduce: {problem}", file=sys.stderr)
    return not problems


def _evaluate(kind: str, run: Run) -> None:
    """Makes what a figure of this kind needs of a run and training does not leave."""
    option = kinds.to_evaluate(kind, run)
    if option is not None:
        from ltexp.evaluate import keep  # imports torch once it is called

        print(f"{option} kept in {keep(run.folder, option)}")


def list_figures(papers: Sequence[str]) -> RenderableType:
    """A line for each figure that can be drawn, and the numbers of the others."""
    grid = Grid(title=None)
    for title, numeric in (("figure", False), ("shows", False), ("runs", True)):
        grid.add_column(title, justify="right" if numeric else "left", no_wrap=title != "shows")
    left_out = []
    for paper in papers:
        known = load_figures()[paper]
        for figure in known.drawn.values():
            grid.add_row(figure.name, figure.caption, str(sum(map(number_of_runs, figure.drawings))))
        grid.add_section()
        left_out += [f"{paper}/{number}" for number in known.left_out]
    text = f"ltexp reproduce figure=PAPER/NUMBER draws one; left out: {', '.join(left_out) or 'none'}"
    return Lines(grid, Text(text, style="dim"))


def _shown(figure: Figure, asked: Asked) -> RenderableType:
    """What a figure shows, how each of its images is drawn, and the command of each of its runs."""
    lines = [f"{figure.name}: {figure.caption}"]
    lines += [f"  note: {figure.note}"] if figure.note else []
    for drawing in figure.drawings:
        options = " ".join(f"{key}={text}" for key, text in (drawing.options | asked.drawn).items())
        kind = f"figure={drawing.kind}" if drawing.of_runs else f"plot {drawing.kind}"
        lines.append(f"  {f'{drawing.part}: ' if drawing.part else ''}{f'{kind} {options}'.strip()}")
        if drawing in asked.runs:
            lines += [f"    {job.command(asked.seeds)}" for job in asked.runs[drawing].jobs]
            lines += [f"    cannot run {reason}" for reason in asked.runs[drawing].lacking]
    return Text("\n".join(lines))


def _planned(asked: Asked, plan: Plan, cost: Cost) -> RenderableType:
    """What is there, the commands of the rest, and the time that it takes."""
    lines: list[Text] = []
    for job in plan.jobs:
        of = [f.name for f in asked.figures if any(job in asked.runs[d].jobs for d in f.drawings if d in asked.runs)]
        lines += show_job(plan, job, ", ".join(of))
    lines += [Text(f"cannot run {reason}", style="dim") for runs in asked.runs.values() for reason in runs.lacking]
    total = len(plan.jobs) * len(plan.seeds)
    summary = [f"{total - len(plan.to_run)} runs measured, {len(plan.to_run)} to run", *show_cost(plan, cost)]
    return Lines(*lines, Text("\n".join(summary)))
