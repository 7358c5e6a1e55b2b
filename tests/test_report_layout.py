"""Tables in windows of any width, with whatever text users give things, and in LaTeX for real."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from records import write
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ltexp.report.blocks import Blocks
from ltexp.report.formats import to_markdown
from ltexp.report.groups import group_runs
from ltexp.report.keys import short_keys, short_override
from ltexp.report.latex import to_latex
from ltexp.report.records import find_runs
from ltexp.report.results import Table, results_table
from ltexp.report.terminal import Grid
from ltexp.report.text import one_line, shorten, wrap

ODD = (
    r"$x_i^2$ \bad{} [a] *b* #1 %50 &~^ 'q' `w` <x>|y",
    "中文数据集的一个很长的名字",
    "קבוצה עברית",
    "x" * 200,
    "[0.5em]",
    "*star",
    "--a---b",
    "α τ é ß – ±",
    "a\u202ezyx\x1b[31m\n\ttab",
    r"\input{/etc/passwd}",
    r"\end{tabular}\end{table}",
    "<!--<script>alert(1)</script>",
)


def odd_table(folder: Path) -> Table:
    """A row for each odd name, which is a method's and an override's, and two seeds of each."""
    for number, name in enumerate(ODD):
        for seed in (0, 1):
            typed = [f"a.b={name}", f"dataset.path=/{'y' * 120}"] if number % 2 else ["a.b=1"]
            changes: dict[str, Any] = {"method": name, "config_hash": str(number), "overrides": typed}
            write(folder / f"{number}-{seed}", seed=seed, all=40.0 + number + seed, **changes)
    return results_table(group_runs(find_runs([folder])[0]), "+nll,+balanced,+seconds,+lowest")


def shown(content: Any, width: int, encoding: str = "utf-8") -> list[str]:
    console = Console(width=width, color_system=None)
    options = console.options.update(width=width)
    options.encoding = encoding
    return [str(line) for line in content.__rich_console__(console, options)]


@pytest.mark.parametrize("width", [40, 80, 120, 400])
def test_no_line_is_wider_than_the_window_and_nothing_is_cut(width: int, tmp_path: Path) -> None:
    lines = shown(Grid(odd_table(tmp_path)), width)
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert "\u202e" not in text
    together = text.replace("\n", "").replace(" ", "")
    for name in ODD:
        assert one_line(name).replace(" ", "") in together
    assert together.count("±") >= 5 * len(ODD) + 2  # all, many, medium, ECE and balanced of each row, and the note


def test_names_and_figures_stand_in_line_and_the_rest_below(tmp_path: Path) -> None:
    for number, name in enumerate(("ce", "crt")):
        write(tmp_path / name, method=name, all=50.0 + number, config_hash=name, overrides=[f"stage1.epochs={number}"])
    table = results_table(group_runs(find_runs([tmp_path])[0]), "method,overrides,all,ece")
    assert shown(Grid(table), 80)[:5] == [
        "cifar10_lt, ratio 100, resnet32",
        "method  overrides    all   ECE",
        "──────────────────────────────",
        "ce      epochs=0   50.00  5.00",
        "crt     epochs=1   51.00  5.00",
    ]
    assert shown(Grid(table), 22)[2:6] == [
        "method    all   ECE",
        "───────────────────",
        "ce      50.00  5.00",
        "  epochs=0",
    ]
    assert "─" not in "".join(shown(Grid(table), 80, "latin-1"))


def test_the_best_of_each_section_is_bold_and_sort_puts_it_first(tmp_path: Path) -> None:
    for dataset, figures in {"a": (40.0, 60.0), "b": (90.0, 80.0)}.items():
        for method, accuracy in zip(("ce", "crt"), figures, strict=True):
            folder = tmp_path / f"{dataset}{method}"
            write(folder, dataset=dataset, method=method, all=accuracy, config_hash=dataset + method)
    groups = group_runs(find_runs([tmp_path])[0])
    table = results_table(groups, "method,dataset,all,ece")
    assert [row[:2] for row in table.rows] == [["ce", "a"], ["crt", "a"], ["ce", "b"], ["crt", "b"]]
    assert table.best == {(1, 2), (2, 2)}  # equal ECEs are no best
    first = results_table(groups, "method,dataset,all", sort="all")
    assert [row[:2] for row in first.rows] == [["crt", "a"], ["ce", "a"], ["ce", "b"], ["crt", "b"]]
    last = results_table(groups, "method,dataset,all", sort="-all")
    assert [row[:2] for row in last.rows] == [["ce", "a"], ["crt", "a"], ["crt", "b"], ["ce", "b"]]
    assert "**60.00**" in to_markdown(table)
    assert r"\textbf{60.00}" in to_latex(table)


def test_keys_are_as_short_as_they_stay_unique() -> None:
    keys = ["stage2.loss.head_smoothing", "stage1.epochs", "loss@stage2.loss"]
    known = ["stage1.epochs", "stage2.epochs", "stage2.loss.head_smoothing", "stage1.loss", "stage2.loss"]
    names = short_keys(keys, known)
    assert names == {keys[0]: "head_smoothing", keys[1]: "stage1.epochs", keys[2]: "stage2.loss"}
    assert short_override("stage2.loss.head_smoothing=0.2", names) == "head_smoothing=0.2"
    assert short_keys(["stage1.epochs"]) == {"stage1.epochs": "epochs"}


def test_text_is_cut_in_its_middle_and_wrapped_by_its_width() -> None:
    assert shorten("abcdefghijklmnop", 10) == "abcdef…nop"
    assert cell_len(shorten("中" * 100, 11)) <= 11
    assert wrap("ab cd 中中中 " + "x" * 7, 5) == ["ab cd", "中中", "中", "xxxxx", "xx"]
    assert one_line("a\tb\x07\u202ec") == "a b\\x07\\u202ec"


def test_columns_that_do_not_fit_follow_below_with_the_names_again() -> None:
    grid = Blocks("t: caption", better=1)
    for ratio in (100, 50):
        grid.add_column(f"cifar100_lt\n{ratio}")
    grid.add_row("ce", Text("38.4a"), Text("–"))
    grid.add_row("mislas", Text("47.0"), Text("52.3"))
    assert shown(grid, 40) == [
        "t: caption",
        "        cifar100_lt",
        "          100    50",
        "───────────────────",
        "ce      38.4a     –",
        "mislas   47.0  52.3",
    ]
    grid.add_column("imagenet_lt")
    grid.rows = [(name, [*row, Text("50.1")]) for name, row in grid.rows]
    assert shown(grid, 30)[6:] == ["", "        imagenet_lt", "─" * 19, "ce             50.1", "mislas         50.1"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles_without_overfull_boxes_whatever_the_names(tmp_path: Path) -> None:
    table = to_latex(odd_table(tmp_path / "runs"), label="tab:odd")
    packages = r"\usepackage{booktabs,graphicx,textcomp}"
    body = rf"\listoftables{table}See Table~\ref{{tab:odd}}."
    document = rf"\documentclass{{article}}{packages}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "t.tex").write_text(document)
    for _ in range(2):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "t.tex"]
        answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
        assert answer.returncode == 0, answer.stdout[-2000:]
    assert r"Overfull \hbox" not in answer.stdout
    assert "root:" not in answer.stdout
    assert (tmp_path / "t.pdf").stat().st_size > 10_000


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_terminal_of_any_encoding_gets_the_table(encoding: str, tmp_path: Path) -> None:
    write(tmp_path / "a", method="ce", class_names=["a", "b", "c"])
    write(tmp_path / "b", method="数据", seed=1, config_hash="d")
    code = "import sys; from ltexp.report.__main__ import main; sys.exit(main(sys.argv[1:]))"
    environment = {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin"}
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "b")]
    answer = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert answer.returncode == 0, answer.stderr.decode(errors="replace")
    lines = answer.stdout.decode(encoding).splitlines()
    assert any(line.startswith("ce") and "50.00" in line for line in lines)
    rule = lines[2]
    assert set(rule) == ({"─"} if encoding == "utf-8" else {"-"})
