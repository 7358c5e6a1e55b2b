"""`ltexp reproduce`: its grammar, exit status and speed, and what it makes of damaged outputs."""

import csv
import io
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from records import record, write

from ltexp.evaluation.record import read_record
from ltexp.papers import all_cells
from ltexp.report.records import Run, find_runs
from ltexp.reproduce.__main__ import main
from ltexp.reproduce.jobs import Job, job_of
from ltexp.reproduce.keep import keep_records
from ltexp.reproduce.stages import read_stages

VARYING = ("method", "dataset", "imbalance", "backbone", "imbalance_ratio", "config_hash", "seed", "overrides")
TABLE = ("table=mislas/3", "dataset=cifar100_lt", "ratio=100")


def finished(folder: Path, method: str = "mislas", seed: int = 0, **changes: object) -> Path:
    """A finished run of CIFAR-100-LT at ratio 100 with the published schedule."""
    typed = [f"method={method}", "dataset=cifar100_lt", "backbone=resnet32", f"seed={seed}"]
    facts = {"method": method, "dataset": "cifar100_lt", "seed": seed, "overrides": typed, "config_hash": method}
    stages = record()["stages"]
    for stage, epochs in zip(stages, (200, 10), strict=True):
        stage["epochs"] = epochs
    return write(folder, **{**facts, "stages": stages, **changes})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst"], "unknown command 'lst': did you mean 'list'?"),
        (["show", "table=mislas/33"], "unknown table 'mislas/33': did you mean 'mislas/3'?"),
        (["show", "paper=mislass"], "unknown paper 'mislass': did you mean 'mislas'?"),
        (["plan", "cells=mislas/3/mislass"], "unknown cell 'mislas/3/mislass'"),
        (["plan", "table=mislas/3", "method=mislass"], "unknown method 'mislass': did you mean 'mislas'?"),
        (["plan", "table=mislas/3", "method=bkd"], "these filters contradict each other"),
        (["plan", "paper=kps", "table=mislas/3"], "paper=kps and table=mislas/3 contradict each other"),
        (["plan", "table=mislas/3", "seeds=0,x"], "invalid seeds=0,x: expected whole numbers"),
        (["plan", "table=mislas/3", "sedes=0"], "unknown key 'sedes': did you mean 'seeds'?"),
        (["plan", "table=mislas/3", "stage1.epcohs=8"], "unknown key 'stage1.epcohs': did you mean 'stage1.epochs'?"),
        (["plan", "table=mislas/3", "dataset.imbalance_ratio=7"], "dataset.imbalance_ratio= is set for each cell"),
        (["run", "table=mislas/3", "dry_run=yes"], "invalid dry_run=yes: expected true | false"),
        (
            ["compare", "table=mislas/3", "format=htm"],
            "invalid format=htm: expected terminal | markdown | csv | latex | html",
        ),
        (["compare", "table=mislas/3", "format=html"], "format=html needs a file"),
        (["compare", "table="], "table= names nothing"),
        (["compare", "out=x.xlsx"], "a table's file ends in .txt, .md, .csv, .tex, .html, not '.xlsx'"),
        (["plan", "table=mislas/3", "method=mixup,crt"], "no published cell has method=crt with table=mislas/3"),
        (["plan", "table=mislas/3", "ratio=7"], "unknown ratio '7': choose one of 10, 50, 100, 200"),
        (["compare", "table=mislas/3", "runs=a,,b"], "runs= is empty: name a path"),
        (["plan", "table=mislas/3", "paths.outputs="], "paths.outputs= is empty: name a path"),
        (["compare", "trainer=bf16"], "unknown key 'trainer'"),
        (["show"], "name a table, a paper or cells"),
        (["show", "table"], "'table' is not KEY=VALUE"),
        (["figure=kps/3.9"], "unknown figure 'kps/3.9': choose one of kps/2.1, kps/2.2, kps/3.5"),
        (["figure=gcl/2.1"], "unknown figure 'gcl/2.1': did you mean 'kps/2.1'?"),
        (["figure=mislass/1"], "unknown paper 'mislass': did you mean 'mislas'?"),
        (["figure=gcl/5.2"], "figure gcl/5.2 is left out: a sketch of the method"),
        (
            ["compare", "figure=gcl/5.3"],
            "figure= goes with show, plan, run, or alone, and not with 'compare'",
        ),
        (["figure=gcl/5.3", "stage1.epochs=2"], "stage1.epochs=2 has no effect: no run is needed for gcl/5.3"),
        (["figure=gcl/5.3", "seeds=1"], "seeds=1 has no effect"),
        (["figure=gcl/5.3", "out=x.gif"], "a figure's file ends in .png, .pdf, .svg"),
        (["figure=gcl/5.3,kps/2.1", "out=x.png"], "out= is the file of one figure"),
        (["figure=kps/3.5", "clases=0"], "unknown key 'clases': did you mean 'classes'?"),
        (["figure=kps/3.5", "dry_run=yes"], "invalid dry_run=yes"),
        (["figure=kps/3.5", "seed=1"], "unknown key 'seed': did you mean 'seeds'?"),
        (["figure=kps/3.5", "dataset.imbalance_ratio=7"], "dataset.imbalance_ratio= is set for each"),
    ],
)
def test_a_wrong_command_line_has_one_line_and_status_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # composes every row with printed epochs once
def test_list_counts_every_cell_and_the_runnable_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    runnable = sum(isinstance(job_of(cell), Job) for cell in all_cells())
    text = capsys.readouterr().out
    assert f"{runnable} of 1269 published cells can be run" in text
    assert f"published number only, {1269 - runnable} cells:" in text
    assert "range_loss (5), fslwf (5), lifted_loss (4): a number quoted since the OLTR paper" in text
    assert runnable >= 1200
    assert "mislas/8" in text


def test_show_prints_the_table_the_cell_and_the_notes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "table=mislas/3"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"mislas +82\.1 +85\.8 +89\.9 +47\.0 +52\.3 +63\.0", text)
    assert main(["show", "cells=mislas/3/mislas/cifar100_lt/100"]) == 0
    command = "ltexp train method=mislas dataset=cifar100_lt dataset.imbalance_ratio=100 backbone=resnet32 seed=0"
    assert command in capsys.readouterr().out
    assert main(["show", "paper=kps"]) == 0
    assert "probably kps" in capsys.readouterr().out


def test_plan_says_what_is_measured_and_what_is_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path / "one")
    assert main(["plan", *TABLE, "seeds=0,1", f"runs={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert "mislas/3/mislas/cifar100_lt/100: measured: seed 0" in text
    assert "8 of 8 cells can be run, by 8 compositions under 2 seeds: 1 runs measured, 15 to run" in text
    assert "9 first-stage trainings in them (1 more are there already)" in text
    assert "no throughput on record for resnet32 in 32-true" in text


def test_a_launcher_may_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TABLE, "method=ce", f"runs={tmp_path}", "launcher=joblib", "launcher.n_jobs=2"]) == 0
    assert "1 to run" in capsys.readouterr().out


def test_plan_estimates_time_from_what_is_on_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import os
    import platform

    here = {"platform": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()}
    counts = [500, 100, 50]
    finished(tmp_path / "one", environment={**here, "precision": "32-true"}, class_counts=counts)
    assert main(["plan", *TABLE, "method=ce", f"runs={tmp_path}"]) == 0
    # 650 images x 200 epochs at 1234.5 images/s
    assert "about 1 min 45 s" in capsys.readouterr().out


@pytest.mark.slow
def test_compare_writes_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, accuracy in enumerate((46.0, 48.0)):
        finished(tmp_path / "runs" / str(seed), seed=seed, all=accuracy)
    for name, part in (
        ("t.md", "| mislas | yes | 47.0 | 47.00 ± 1.41 | 2 | +0.00 |"),
        ("t.tex", r"47.0 & $47.00 \pm 1.41$ & 2 & +0.00"),
        ("t.html", '"47.0'),
        ("t.txt", "47.00 ± 1.41"),
    ):
        out = tmp_path / name
        assert main(["compare", *TABLE, f"runs={tmp_path}/runs", f"out={out}"]) == 0
        assert part in out.read_text() or name == "t.html"
    capsys.readouterr()
    assert main(["compare", *TABLE, f"runs={tmp_path}/runs", "format=csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    (row,) = (row for row in rows if row["method"] == "mislas")
    assert (float(row["published"]), float(row["measured"]), row["n"]) == (47.0, 47.0, "2")
    assert {row["protocol"] for row in rows if row["method"] == "bbn"} == {"not measured"}
    assert main(["compare", "table=mislas/8", f"runs={tmp_path}/runs", "format=csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    (reason,) = {row["protocol"] for row in rows if row["method"] == "fslwf"}
    assert reason.startswith("published number only: a number quoted since the OLTR paper")


def test_damaged_foreign_and_older_records_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(tmp_path / "good", all=47.5)
    finished(tmp_path / "older", schema=0)
    for name, text in (("damaged", "{"), ("foreign", '{"accuracy": 99}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(text)
    assert main(["compare", *TABLE, "method=mislas", f"runs={tmp_path}"]) == 0
    output = capsys.readouterr()
    assert "47.50" in output.out
    assert output.err.count("\n") == 3
    for part in ("is damaged", "is not a record of ltexp", "has schema 0"):
        assert part in output.err


def test_kept_records_give_the_same_table_without_the_machines_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["method=mislas", "dataset=cifar100_lt", "paths.outputs=/home/someone/outputs", "seed=0"]
    folder = finished(tmp_path / "runs", overrides=typed)
    paths = f"paths: {{data: {tmp_path}, outputs: {tmp_path}}}\nstage_cache: {{enabled: true, dir: {tmp_path}}}\n"
    (folder / "config.yaml").write_text(paths + f"overrides: {json.dumps(typed)}\n")
    assert main(["compare", *TABLE, f"runs={tmp_path}/runs", f"keep={tmp_path}/kept", f"out={tmp_path}/a.csv"]) == 0
    assert main(["compare", *TABLE, f"runs={tmp_path}/kept", f"out={tmp_path}/b.csv"]) == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    kept = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert {path.name for path in kept} == {"record.json", "config.yaml"}
    assert not any("/home" in path.read_text() or str(tmp_path) in path.read_text() for path in kept)


@pytest.mark.parametrize("change", [{"subset_hash": "t"}, {"content_hash": "t"}, {"code": {"mine.py": "t"}}])
def test_kept_records_that_differ_in_images_or_code_alone_stand_beside_each_other(
    change: dict[str, object], tmp_path: Path
) -> None:
    """The first has the name that records have had all along, and keeping them again changes nothing."""
    runs = [tmp_path / "a", finished(tmp_path / "b", finished="2026-01-02T00:00:00+00:00", **change)]
    finished(runs[0])
    for run in runs:
        (run / "config.yaml").write_text("paths: {}\nstage_cache: {}\noverrides: []\n")
    places = [keep_records([Run(run, read_record(run))], tmp_path / "kept") for run in (*runs, *runs)]
    assert places[:2] == places[2:]
    assert places[0] == [tmp_path / "kept" / "cifar100_lt" / "mislas-mislas" / "seed0"]
    assert len(find_runs([tmp_path / "kept"])[0]) == 2


def test_nothing_measured_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "paper=bkd", f"runs={finished(tmp_path)}"]) == 1
    assert "none of these cells is measured yet" in capsys.readouterr().err
    assert main(["run", "cells=mislas/4/fslwf"]) == 1
    assert "published number only, 1 cell (mislas/4/fslwf): a number quoted" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("words", [["list"], ["show", "table=bkd/1"], ["plan", "table=mislas/3", "seeds=0,1,2"]])
def test_list_show_and_plan_take_under_two_seconds_and_no_torch(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from ltexp.reproduce.__main__ import main; status = main(sys.argv[1:])\n"
        "print(status, [name for name in ('torch', 'hydra', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, *words]
    subprocess.run(command, capture_output=True, cwd=tmp_path, check=True)  # compositions are kept from the first time
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert answer.stdout.splitlines()[-1] == "0 []"
    # processor time: other work on the machine does not count
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


@pytest.mark.slow
def test_the_page_of_every_cell_and_3000_runs_is_quick_and_light(tmp_path: Path) -> None:
    jobs = list(dict.fromkeys(job for cell in all_cells() if isinstance(job := job_of(cell), Job)))
    metrics = {
        "all": 50.0,
        "many": 60.0,
        "medium": 40.0,
        "few": 30.0,
        "ece": 5.0,
        "mce": 9.0,
        "per_class": [50.0] * 100,
    }
    sized = {"metrics": metrics, "confusion": [[1] * 100] * 100, "class_counts": [10] * 100}
    stages = [{**record()["stages"][0], "metrics": metrics}]
    rest = json.dumps({key: value for key, value in record(**sized, stages=stages).items() if key not in VARYING})
    for number in range(3000):
        job, seed = jobs[number % len(jobs)], number // len(jobs)
        facts = (job.method, job.dataset, job.imbalance, job.backbone, float(job.ratio or 1), f"{hash(job):x}", seed)
        own = dict(zip(VARYING, (*facts, [*job.overrides, f"seed={seed}"]), strict=True))
        (tmp_path / "runs" / str(number)).mkdir(parents=True)
        (tmp_path / "runs" / str(number) / "record.json").write_text(json.dumps(own)[:-1] + "," + rest[1:])
    for job in jobs:
        read_stages(job.overrides)  # kept from the first time
    start = time.process_time()
    assert main(["compare", f"runs={tmp_path}/runs", f"out={tmp_path}/page.html"]) == 0
    assert time.process_time() - start < 20
    assert (tmp_path / "page.html").stat().st_size < 3_000_000
