"""A user's text in tables, pages, figures and terminals: nothing of it is read as anything but text."""

import csv
import html.parser
import io
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from records import record, write, write_measured

from ltexp.data.commands.show import print_summary
from ltexp.report import figures
from ltexp.report.drawing import literal
from ltexp.report.figures import draw, draw_run_figures, kinds
from ltexp.report.formats import to_csv, to_latex, to_markdown
from ltexp.report.groups import group_runs
from ltexp.report.html import runs_page
from ltexp.report.records import Run, find_runs
from ltexp.report.results import results_table

NAMES = [
    "$x_1",
    "$\\frac{1}$",
    "a $5 and $6",
    "[red]x[/red]",
    "[/x]",
    "\\input{/etc/passwd}",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "& % # _ { } ~ ^ | `",
    "鹭 さぎ 백로",
    "بلشون",
    "x" * 200,
    "a\nb\tc",
    "\x00\x1b[31m",
    "\"quoted\", 'so'",
]


def runs_called(name: str, folder: Path) -> list[Run]:
    """Two runs of an experiment of which everything that a user may name is called so."""
    changes = {"method": name, "dataset": name, "backbone": name, "class_names": [name, f"{name}2", "c"]}
    for seed in (0, 1):
        for temperature in (1, 2):
            where = folder / f"{seed}{temperature}"
            overrides = [f"stage1.note={name}", f"stage1.loss.temperature={temperature}"]
            write(where, **changes, seed=seed, overrides=overrides, config_hash=str(temperature))
            write_measured(where)
    return find_runs([folder])[0]


@pytest.mark.parametrize("name", NAMES)
def test_tables_have_the_name_as_text(name: str, tmp_path: Path) -> None:
    table = results_table(group_runs(runs_called(name, tmp_path)), "method,dataset,overrides,n,all")
    (rows, width) = (list(csv.reader(io.StringIO(to_csv(table)))), len(table.columns))
    assert rows[1][0] == name
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {width + 1}
    body = to_latex(table).split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()
    for line in body:
        assert line.endswith(r"\\")
        assert len(re.findall(r"(?<!\\)&", line)) == width - 1
        assert not line.startswith("[")
        assert not re.search(r"(?<!\\)[#%_]", line)
        assert set(re.findall(r"\\([a-z]+)", line)) <= {"pm", *LATEX_LETTERS}
        assert line.count("{") - line.count(r"\{") == line.count("}") - line.count(r"\}")


LATEX_LETTERS = ("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar")


class Elements(html.parser.HTMLParser):
    """The elements of a page, and what its scripts hold."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["script"]:
            self.scripts.append(data)


@pytest.mark.parametrize("name", ["plain", *NAMES])
def test_a_page_has_the_same_elements_whatever_names_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltexp.report.html._drawn", lambda *_: ())  # they are pictures, and take their time
    groups = group_runs(runs_called(name, tmp_path))
    page = runs_page(groups, results_table(groups, "method,all"), tmp_path)
    found = Elements()
    found.feed(page)
    assert found.tags.count("script") == 2
    content = json.loads(found.scripts[0])
    assert content["rows"][0]["cells"][0] == name
    assert "<!--" not in page.partition("<script")[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["accuracy_by_class", "sweep", "curves", "weight_norms"])
def test_figures_are_drawn_whatever_names_are(kind: str, name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(kind, runs_called(name, tmp_path), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


# of runs of other methods, or of more than these records hold
OTHERS = ("confidence", "generated_features", "gradual_weight")


@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind not in OTHERS])
def test_every_figure_is_drawn_with_a_name_that_is_no_formula(kind: str, tmp_path: Path) -> None:
    runs = runs_called("$\\frac{1}$ 鹭", tmp_path)
    draw(kind, runs[:1] if kind != "sweep" else runs, tmp_path / "figure.png")


def test_matplotlib_shows_the_name_itself() -> None:
    """Its text has the user's letters, and no part of it is set as mathematics."""
    from matplotlib import cbook

    for name in NAMES:
        assert not cbook.is_math_text(literal(name))
        assert len(literal(name)) <= 2 * 60
    assert literal("a $5\n and \\$6") == r"a \$5 and \\$6"


def test_a_figure_that_fails_is_one_line_and_the_others_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_measured(write(tmp_path))
    whole = figures.draw

    def failing(kind: str, *arguments: object) -> None:
        if kind == "confusion":
            raise ValueError("no such font\nat all")
        whole(kind, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(figures, "draw", failing)
    assert [path.name for path in draw_run_figures(tmp_path)] == ["reliability.png", "accuracy_by_class.png"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (f"confusion.png was not drawn (no such font); `ltexp report {tmp_path} figure=confusion` draws it")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "gbk", "utf-8"])
def test_a_terminal_of_any_encoding_gets_its_table(encoding: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        write(tmp_path / str(seed), dataset="鹭 ±", seed=seed)
    done = subprocess.run(
        [sys.executable, "-m", "ltexp", "report", str(tmp_path)],
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding)
    assert "50.00" in text
    assert ("鹭" in text) == (encoding in ("utf-8", "gbk"))


def test_a_column_of_a_class_called_by_another_number_says_so(tmp_path: Path) -> None:
    write(tmp_path, class_names=["1", "2", "c"])
    groups = group_runs(find_runs([tmp_path])[0])
    assert (
        "acc0 is label 0, the class called 1; acc1 is label 1, the class called 2"
        in results_table(groups, "method,acc0,acc1,acc2").notes
    )
    write(tmp_path, class_names=["0", "1", "c"])
    groups = group_runs(find_runs([tmp_path])[0])
    assert not any("called" in note for note in results_table(groups, "method,acc0").notes)


def test_a_summary_prints_names_in_brackets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from ltexp.config.build import build
    from ltexp.data.commands.catalog import dataset_config

    data = build(dataset_config("digits_lt") | {"name": "[red]x[/y]"}, root=tmp_path)
    print_summary(data, Console())
    assert "[red]x[/y]: longtail" in capsys.readouterr().out
    assert record()["dataset"] == "cifar10_lt"
