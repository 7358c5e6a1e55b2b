"""Tables of runs: what is averaged, what is not, and how it is written down."""

import csv
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from records import record, write
from rich.console import Console

from ltexp.errors import ConfigError, DataError
from ltexp.report.columns import plain
from ltexp.report.formats import escape_markdown, to_csv, to_markdown, to_text
from ltexp.report.groups import Statistic, group_runs, statistic
from ltexp.report.latex import escape_latex, to_latex
from ltexp.report.predicted import kept_evaluations
from ltexp.report.records import find_runs
from ltexp.report.results import Table, results_table
from ltexp.report.table import run_table


def table(folder: Path, **options: Any) -> Table:
    return results_table(group_runs(find_runs([folder])[0]), **options)


def shown(content: Any) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(content)
    return capture.get()


def test_mean_and_sample_deviation_by_hand() -> None:
    found = statistic([44.0, 45.0, 47.0])  # mean 45.333, squares 1.7778 + 0.1111 + 2.7778 = 4.6667 over n - 1 = 2
    assert found is not None
    assert found.mean == pytest.approx(136 / 3)
    assert found.deviation == pytest.approx(math.sqrt(7 / 3))
    assert found.text(2) == "45.33 ± 1.53"
    assert statistic([44.0]).text(2) == "44.00"  # type: ignore[union-attr]
    assert statistic([44.0, None]) is None


def test_seeds_share_a_row(tmp_path: Path) -> None:
    for seed, accuracy in enumerate([44.0, 45.0, 47.0]):
        write(tmp_path / str(seed), seed=seed, all=accuracy, overrides=[f"seed={seed}", "stage1.epochs=20"])
    text = to_text(table(tmp_path))
    assert "45.33 ± 1.53" in text
    assert "last epoch" in text
    assert "many > 100 >= medium >= 20 > few" in text
    assert "over 3 seeds" in text
    assert "every run with stage1.epochs=20" in text


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"shot_rule": "many > 50 >= medium >= 20 > few"}, "shot_rule"),
        ({"selection": "best_on_test"}, "selection"),
        ({"config_hash": "d"}, "config"),
        ({"subset_hash": "t"}, "subset"),
        ({"config_hash": "d", "overrides": ["stage2.epochs=5"]}, "overrides"),
    ],
)
def test_runs_that_differ_otherwise_are_never_averaged(change: dict[str, Any], column: str, tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two", seed=1, **change)
    found = table(tmp_path)
    assert len(found.rows) == 2
    assert column in [chosen.name for chosen in found.columns]  # and a column says how they differ


def test_the_latest_of_two_equal_runs_counts_and_it_is_said(tmp_path: Path) -> None:
    # 23:30 at UTC+2 is before 22:00 UTC, though its text sorts after
    write(tmp_path / "old", all=10.0, finished="2026-01-01T23:30:00+02:00")
    write(tmp_path / "new", all=90.0, finished="2026-01-01T22:00:00+00:00")
    runs, notes = find_runs([tmp_path, tmp_path / "new"])
    assert [run.folder.name for run in runs] == ["new"]
    assert len(notes) == 1
    assert "kept the latest" in notes[0]


def test_what_is_no_finished_run_is_left_out_with_one_line(tmp_path: Path) -> None:
    write(tmp_path / "good")
    write(tmp_path / "running", status="running")
    write(tmp_path / "failed", status="failed")
    write(tmp_path / "stage_cache" / "entry")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "record.json").write_text("{")
    runs, notes = find_runs([tmp_path])
    assert [run.folder.name for run in runs] == ["good"]
    assert len(notes) == 2
    assert "bad/record.json is damaged" in notes[0]
    assert "2 runs not finished (1 failed, 1 killed)" in notes[1]
    with pytest.raises(DataError, match="no such folder"):
        find_runs([tmp_path / "nowhere"])


def test_a_record_without_config_hash_is_told_apart_by_what_it_names(tmp_path: Path) -> None:
    for seed, method in enumerate(["ce", "ce", "crt"]):
        write(tmp_path / str(seed), seed=seed, method=method, config_hash=None)
    assert [row[0] for row in table(tmp_path).rows] == ["ce", "crt"]


def test_stages_and_further_columns(tmp_path: Path) -> None:
    write(tmp_path / "run", imbalance="step")
    found = table(tmp_path, stages=True, columns="stage,best_on_test,+seconds")
    assert [column.title for column in found.columns] == ["stage", "best on test", "seconds"]
    assert [row[0] for row in found.rows] == ["stage1", "stage2"]
    assert "best_on_test" not in [column.name for column in table(tmp_path).columns]
    assert table(tmp_path).title == "cifar10_lt, step ratio 100, resnet32"
    with pytest.raises(ConfigError, match="did you mean 'method'"):
        table(tmp_path, columns="methd")


def test_a_stage_on_labels_of_its_own_competes_with_no_other(tmp_path: Path) -> None:
    """The 90 % of a pretext are not bold, not first, no gain over a method, and not an accuracy on class 0."""
    first, second = record()["stages"]
    metrics = first["metrics"] | {"all": 90.0, "ece": 1.0, "per_class": [90.0] * 4}
    pretext = first | {"name": "pretext", "num_classes": 4, "metrics": metrics}
    write(tmp_path / "ssp", method="ssp", config_hash="a", stages=[pretext, second], all=50.0)
    write(tmp_path / "crt", config_hash="b", stages=[first, second], all=50.0)
    found = table(tmp_path, stages=True, columns="method,stage,all,acc0", sort="all", against="crt")
    read = [[plain(cell, column) for cell, column in zip(row, found.columns, strict=True)] for row in found.rows]
    assert read[-1] == ["ssp", "pretext", "90.00", "–", "–"]
    assert ["ssp", "stage2", "50.00", "+0.00", "60.00"] in read
    assert not found.best
    assert "pretext: on labels of its own, compared with no other row" in found.notes
    assert table(tmp_path, stages=True, columns="stage", sort="-all").rows[-1] == ["pretext"]
    assert table(tmp_path, stages=True, columns="stage", sort="stage").rows[0] == ["pretext"]


def test_accuracy_on_single_classes_is_a_column_when_asked_for(tmp_path: Path) -> None:
    """Of the label, averaged over seeds; a dash for a class without test images, or that there is not."""
    for seed, first in enumerate((60.0, 70.0)):
        metrics = record()["metrics"] | {"per_class": [first, 40.0, None]}
        stage = record()["stages"][1] | {"metrics": metrics}
        write(tmp_path / str(seed), seed=seed, metrics=metrics, stages=[record()["stages"][0], stage])
    found = table(tmp_path, columns="n,+acc2,+ece,+acc0,+acc7,+acc1")
    assert [column.title for column in found.columns] == ["n", "ECE", "Acc2", "Acc0", "Acc7", "Acc1"]
    assert [cell.mean if isinstance(cell, Statistic) else cell for cell in found.rows[0]] == [2, 5, None, 65, None, 40]
    assert isinstance(found.rows[0][3], Statistic)
    with pytest.raises(ConfigError, match="unknown column 'acc'"):
        table(tmp_path, columns="acc")


def test_csv_has_full_precision(tmp_path: Path) -> None:
    for seed, accuracy in enumerate([1 / 3, 2 / 3]):
        write(tmp_path / str(seed), seed=seed, all=accuracy)
    (row,) = csv.DictReader(io.StringIO(to_csv(table(tmp_path, full=True))))
    assert float(row["all"]) == 0.5
    assert float(row["all_std"]) == pytest.approx(math.sqrt(2) / 6, rel=1e-15)
    assert (row["few"], row["seeds"], row["shot_rule"]) == ("", "0,1", "many > 100 >= medium >= 20 > few")


def test_markdown_and_latex_show_names_literally(tmp_path: Path) -> None:
    write(tmp_path / "run", method="a|b_c&50%*")
    assert r"| a\|b_c&50%\* | 50.00 |" in to_markdown(table(tmp_path))
    latex = to_latex(table(tmp_path))
    assert r"a\textbar{}b\_c\&50\%{*} & 50.00 &" in latex
    assert r"\toprule" in latex
    assert escape_latex(r"\~^{}#$<") == (r"\textbackslash{}\textasciitilde{}\textasciicircum{}\{\}\#\$\textless{}")
    assert escape_markdown("_x_ a_b\nc") == r"\_x\_ a_b c"


def test_the_table_at_the_end_of_a_run_has_a_row_for_each_stage() -> None:
    text = shown(run_table(record()))
    stage1, stage2 = (line for line in text.splitlines() if "stage" in line and "classifier" not in line)
    assert "linear" in stage1
    assert "cached" in stage1
    assert "weight_shift" in stage2
    assert "50.00" in stage2
    assert "1 min 05 s" in stage2
    assert "1,23" in stage2


def test_tables_say_what_makes_a_run_less_than_a_full_one(tmp_path: Path) -> None:
    stages = record()["stages"]
    stages[0] |= {"epochs": 30, "stopped_after": 10, "stopped_by": "trainer.max_time"}
    partial = {"trainer.max_time": "00:00:01:00", "trainer.limit_val_batches": 1}
    changes = {"stages": stages, "partial": partial, "tested": {"images": 1280, "of": 10000}}
    said = "stage1 stopped by trainer.max_time after 10 of 30 epochs; 1,280 of 10,000 test images; with "
    said += "trainer.limit_val_batches=1"
    text = shown(run_table(record(**changes)))
    assert "10 of 30" in next(line for line in text.splitlines() if "cached" in line)
    assert said in " ".join(text.split())
    write(tmp_path / "a", **changes)
    reported = to_text(table(tmp_path, columns="method,epochs"))
    assert f"crt seed 0: {said}" in reported
    assert "10 of 30" in next(line for line in reported.splitlines() if "crt" in line)
    write(tmp_path / "a")
    assert "crt seed 0" not in to_text(table(tmp_path))


def test_what_runs_see_beyond_others_stands_beside_their_numbers(tmp_path: Path) -> None:
    held = {"stage1.meta": {"per_class": 10, "of": "unused"}}
    write(tmp_path / "a", config_hash="d", method="mw_net", held_out=held)
    write(tmp_path / "b", held_out={"stage1.meta": {"per_class": 1, "of": "train"}})
    found = table(tmp_path)
    place = [column.name for column in found.columns].index("beyond")
    assert {row[0]: row[place] for row in found.rows} == {"mw_net": "10 unused images a class", "crt": "–"}
    assert "beyond" not in [column.name for column in table(tmp_path / "b").columns]


def test_runs_of_a_sweep_come_in_the_order_of_its_jobs(tmp_path: Path) -> None:
    for number in (10, 9, 2):
        write(tmp_path / "sweep" / str(number), seed=number)
    assert [run.record["seed"] for run in find_runs([tmp_path])[0]] == [2, 9, 10]


def test_an_evaluation_is_seen_by_a_process_that_has_reported_before(tmp_path: Path) -> None:
    """As in a notebook."""
    (run,), _ = find_runs([write(tmp_path / "run").parent])
    assert kept_evaluations(run) == {}
    folder = tmp_path / "run" / "evaluations"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"{number}.json").write_text(json.dumps({"metrics": {"per_class": [1.0, 2.0, 3.0]}}))
        os.utime(folder, ns=(number, number))
        assert len(kept_evaluations(run)) == number
