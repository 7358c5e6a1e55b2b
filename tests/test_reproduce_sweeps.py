"""Ready sweeps and searches: every job of a sweep composes; a search spends its budget on held-out images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from choices import CONF, names
from hydra.core.override_parser.overrides_parser import OverridesParser
from runs import composed

from hydra_plugins.ltexp_listed import listed_jobs
from ltexp.launching.trials import STUDY, STUDY_FILE, is_pruned, report_value
from ltexp.report.records import find_runs
from ltexp.run_folder import read_metrics

SMALL = (
    *("dataset=digits_lt", "stage1.epochs=1", "stage2.epochs=1", "evaluation.every=1", "evaluation.figures=false"),
    *("trainer.accelerator=cpu", "trainer.progress=false", "logger=none"),
)


def jobs(sweep: str) -> list[list[str]]:
    """The jobs of a file in conf/sweep/."""
    sweeper = yaml.safe_load((CONF / "sweep" / f"{sweep}.yaml").read_text())["hydra"]["sweeper"]
    if "jobs" in sweeper:
        return listed_jobs(sweeper["jobs"], [])
    return listed_jobs([[]], [f"{key}={value}" for key, value in sweeper["params"].items()])


@pytest.mark.parametrize("sweep", names("sweep"))
def test_the_first_and_last_job_of_a_sweep_compose_and_differ(sweep: str) -> None:
    listed = jobs(sweep)
    assert len(listed) >= 5
    ends = [composed(f"sweep={sweep}", *job, small=False) for job in (listed[0], listed[-1])]
    assert ends[0]["stage1"] != ends[1]["stage1"] or ends[0]["stage2"] != ends[1]["stage2"]


def test_the_smoothing_sweep_is_the_papers_triangle() -> None:
    found = [[float(text.partition("=")[2]) for text in job] for job in jobs("mislas_smoothing")]
    assert len(found) == 21
    assert all(0 <= tail <= head <= 0.5 for head, tail in found)


def test_listed_jobs_come_once_for_every_value_that_is_typed() -> None:
    assert listed_jobs([["a=1"], ["a=2"]], ["seed=0,1", "x=y"]) == [
        *(["seed=0", "x=y", "a=1"], ["seed=1", "x=y", "a=1"], ["seed=0", "x=y", "a=2"], ["seed=1", "x=y", "a=2"]),
    ]


def test_values_are_read_as_optuna_is_to_choose_them() -> None:
    pytest.importorskip("optuna")
    from hydra_plugins.ltexp_search import Search

    words = ["a=interval(0.1,0.5)", "b=tag(log,interval(0.01,1.0))", "c=int(interval(1,4))", "d=x,y"]
    parsed = OverridesParser.create().parse_overrides(words)
    space = Search(1, 1, "all", 0)._space({part.get_key_element(): part for part in parsed})
    assert [type(found).__name__[:5] for found in space.values()] == ["Float", "Float", "IntDi", "Categ"]
    assert space["b"].log
    assert space["d"].choices == ("x", "y")


def train(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ltexp.train", "-m", *SMALL, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=500)


def test_a_trial_stops_where_its_curve_lies_below_the_median(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{tmp_path}/{STUDY_FILE}"
    study = optuna.create_study(study_name=STUDY, storage=storage, direction="maximize")
    for number, value in enumerate((40.0, 50.0)):
        facts = {"storage": storage, "number": number, "prune_after": 2}
        trial = study.ask()
        assert not report_value(facts, 1, value - 20)
        assert not report_value(facts, 2, value)
        study.tell(trial, value)
    study.ask()
    facts = {"storage": storage, "number": 2, "prune_after": 2}
    assert not report_value(facts, 1, 31.0)  # the median is 25
    assert not is_pruned(study, 2)
    assert report_value(facts, 2, 44.0)  # 45
    assert is_pruned(study, 2)


@pytest.mark.slow
def test_a_search_spends_its_budget_and_goes_on(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    words = ["hydra/sweeper=search", "hydra.sweep.dir=found", "stage2.optimizer.lr=tag(log,interval(0.01,1.0))"]
    refused = train(*words, "hydra.sweeper.trials=1", cwd=tmp_path)
    assert refused.returncode != 0
    assert "dataset.validation.fraction=0.1" in refused.stderr
    words.append("dataset.validation.fraction=0.2")
    for trials in (1, 3):  # the second goes on from the first
        answer = train(*words, f"hydra.sweeper.trials={trials}", cwd=tmp_path)
        assert answer.returncode == 0, answer.stderr
        assert f"best of {trials} trials: validation all" in answer.stdout
        assert f"trial {trials} of {trials}: stage2.optimizer.lr=0." in answer.stdout
    assert len(find_runs([tmp_path / "found"])[0]) == 3
    best = yaml.safe_load((tmp_path / "found" / "search.yaml").read_text())
    assert (best["trials"], best["metric"]) == (3, "validation all")
    assert 0.01 <= best["overrides"]["stage2.optimizer.lr"] <= 1
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/found/{STUDY_FILE}")
    assert study.best_value == best["value"]
    other = train(*words, "hydra.sweeper.trials=4", "seed=0,1", cwd=tmp_path)
    assert other.returncode != 0
    assert "has other seeds" in other.stderr


@pytest.mark.slow
def test_a_search_takes_several_seeds_as_a_trial_and_stops_bad_ones(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    words = ["hydra/sweeper=search", "hydra.sweep.dir=found", "method=crt", "stage1.epochs=5", "seed=0,1"]
    words += ["stage1.optimizer.lr=0.1,1e-9", "dataset.validation.fraction=0.2", "hydra.sweeper.prune_after=1"]
    answer = train(*words, "hydra.sweeper.trials=4", "stage_cache.enabled=false", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/found/{STUDY_FILE}")
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "PRUNED"}
    for trial in study.trials:
        folders = [tmp_path / "found" / str(2 * trial.number + seed) for seed in (0, 1)]
        if trial.state.name == "PRUNED":
            assert "stopped by the search after epoch" in json.loads((folders[0] / "record.json").read_text())["error"]
            assert not (folders[1] / "record.json").exists()
            continue
        last = [read_metrics(folder / "stage2" / "metrics.csv")[-1]["validation_all"] for folder in folders]
        assert trial.value == pytest.approx(sum(map(float, last)) / 2)
        assert list(trial.intermediate_values) == [1, 2, 3, 4, 5, 6]
    assert "at least one job" not in answer.stderr
    assert "more stopped early" in answer.stdout


@pytest.mark.slow
def test_a_listed_sweep_trains_and_draws_its_heat_map(tmp_path: Path) -> None:
    from ltexp.report.__main__ import main

    jobs = "[['stage2.loss.head_smoothing=0.2'],['stage2.loss.head_smoothing=0.3']]"
    answer = train("sweep=mislas_smoothing", f"hydra.sweeper.jobs={jobs}", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert len(find_runs([tmp_path / "sweep"])[0]) == 2
    assert main([str(tmp_path / "sweep"), "figure=sweep", f"out={tmp_path}/sweep.pdf"]) == 0
