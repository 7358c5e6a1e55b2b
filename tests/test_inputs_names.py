"""A user's text in tables, pages, figures and terminals: nothing of it is read as anything but text."""

import csv
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from records import record, write, write_measured

from ltexp.data.commands.show import print_summary
from ltexp.report.formats import to_csv, to_latex, to_markdown
from ltexp.report.groups import group_runs
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


LATEX_LETTERS = (
    "allowbreak",
    "par",
    "raggedright",
    "textasciigrave",
    "textquotesingle",
    "ltexpchar",
    "textbackslash",
    "textasciitilde",
    "textasciicircum",
    "textless",
    "textgreater",
    "textbar",
)


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
