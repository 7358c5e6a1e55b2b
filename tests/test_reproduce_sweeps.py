"""Ready sweeps and searches: every job of a sweep composes; a search spends its budget on held-out images."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from choices import CONF, names
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from image_trees import write_tree
from omegaconf import OmegaConf
from runs import TINY, composed, run_here

from hydra_plugins.ltexp_listed import listed_jobs
from ltexp.config.composer import compose
from ltexp.errors import TrainingError
from ltexp.launching.search_space import SearchError, check_ranges, some_values, space
from ltexp.launching.trials import STUDY, STUDY_FILE, is_pruned, is_stopped, report_value
from ltexp.report.records import find_runs
from ltexp.run_folder import TRIAL

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


def test_what_is_typed_stands_in_the_place_of_what_jobs_list_and_equal_jobs_are_one() -> None:
    listed = [["a=1", "b=1"], ["a=2", "b=1"], ["a=2", "b=2"]]
    assert listed_jobs(listed, ["a=5,6"]) == [["a=5", "b=1"], ["a=6", "b=1"], ["a=5", "b=2"], ["a=6", "b=2"]]
    assert listed_jobs(listed, ["+b=3", "seed=1"]) == [["+b=3", "seed=1", "a=1"], ["+b=3", "seed=1", "a=2"]]


def test_values_are_read_as_optuna_is_to_choose_them() -> None:
    pytest.importorskip("optuna")
    words = ["a=interval(0.1,0.5)", "b=tag(log,interval(0.01,1.0))", "c=int(interval(1,4))", "d=x,y"]
    found = space(read(*words))
    assert [type(one).__name__[:5] for one in found.values()] == ["Float", "Float", "IntDi", "Categ"]
    assert found["b"].log
    assert found["d"].choices == ("x", "y")
    assert some_values(read(*words)) == ["a=0.3", "b=0.505", "c=2", "d=x"]


def read(*words: str) -> dict[str, Override]:
    return {part.get_key_element(): part for part in OverridesParser.create().parse_overrides(list(words))}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a=tag(log,interval(0,1))", "an interval above 0, as its values are logarithmic"),
        ("a=interval(1,0.1)", "interval(a,b) of two finite numbers, a at most b"),
        ("a=interval(0.1,inf)", "interval(a,b) of two finite numbers, a at most b"),
        ("a=glob(*)", "interval(a,b), or values with commas"),
        ("seed=interval(0,3)", "values, such as seed=0,1,2"),
    ],
)
def test_what_no_value_can_be_chosen_of_is_one_line(word: str, expected: str) -> None:
    parts = read(word)
    seeds = parts.pop("seed", None)
    with pytest.raises(SearchError, match=rf"^{re.escape(f'invalid {word}: expected {expected}')}$"):
        check_ranges(parts, seeds)
    fine = read("a=interval(0,1)", "b=interval(1,1)", "c=1,2", "d=tag(log,interval(1e-3,1))", "seed=0,1")
    check_ranges(fine, fine.pop("seed"))


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
    study.ask()
    assert not report_value(facts | {"number": 3}, 2, 1.0, may_stop=False)  # its run has ended
    assert not is_pruned(study, 3)


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
        assert f"best of {trials} trials: validation balanced" in answer.stdout
        assert f"trial {trials} of {trials}: stage2.optimizer.lr=0." in answer.stdout
    assert len(find_runs([tmp_path / "found"])[0]) == 3
    best = yaml.safe_load((tmp_path / "found" / "search.yaml").read_text())
    assert (best["trials"], best["metric"]) == (3, "validation balanced")
    assert 0.01 <= best["overrides"]["stage2.optimizer.lr"] <= 1
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/found/{STUDY_FILE}")
    assert study.best_value == best["value"]
    other = train(*words, "hydra.sweeper.trials=4", "seed=0,1", cwd=tmp_path)
    assert other.returncode != 0
    assert "has other seeds" in other.stderr


def behind_another(folder: Path, metric: str) -> Any:
    """The study of a search whose first trial had 100 at epoch 2, and whose second is the run in `folder`/run."""
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{folder}/{STUDY_FILE}"
    study = optuna.create_study(study_name=STUDY, storage=storage, direction="maximize")
    facts = {"storage": storage, "metric": metric, "prune_after": 1}
    trial = study.ask()
    report_value(facts | {"number": trial.number}, 2, 100.0)
    study.tell(trial, 100.0)
    study.ask()
    (folder / "run").mkdir()
    (folder / "run" / TRIAL).write_text(json.dumps(facts | {"number": 1}))
    return study


def test_a_run_whose_trial_is_stopped_says_so_and_keeps_no_stage(tmp_path: Path) -> None:
    study = behind_another(tmp_path, "all")
    overrides = ("method=ce", "stage1.epochs=4", "stage1.optimizer.lr=1e-9", "evaluation.every=2")
    with pytest.raises(TrainingError, match=r"^stage1: stopped by the search after epoch 2: validation all "):
        run_here(tmp_path / "run", *TINY, *overrides, "dataset.validation.fraction=0.2")
    assert is_stopped(tmp_path / "run")
    assert not (tmp_path / "run" / "stage1" / "checkpoint.pt").exists()
    (point,) = study.trials[1].intermediate_values.items()
    assert point[0] == 2
    assert point[1] < 100


def test_a_run_that_has_ended_is_not_stopped_however_bad(tmp_path: Path) -> None:
    study = behind_another(tmp_path, "balanced")
    overrides = ("method=ce", "stage1.epochs=2", "stage1.optimizer.lr=1e-9", "evaluation.every=2")
    run_here(tmp_path / "run", *TINY, *overrides, "dataset.validation.fraction=0.2")
    assert not is_stopped(tmp_path / "run")
    (point,) = study.trials[1].intermediate_values.items()
    assert point[0] == 2


class Launcher:
    """Runs nothing: the result of a job is what `answer` says of its number and overrides."""

    def __init__(self, answer: Callable[[int, dict[str, str]], float | None]) -> None:
        self.answer = answer
        self.launched: list[tuple[int, dict[str, str]]] = []

    def launch(self, jobs: list[list[str]], initial_job_idx: int) -> list[Any]:
        results = []
        for number, job in enumerate(jobs, start=initial_job_idx):
            self.launched.append((number, dict(text.split("=") for text in job)))
            value = self.answer(*self.launched[-1])
            status = SimpleNamespace(name="FAILED" if value is None else "COMPLETED")
            results.append(SimpleNamespace(status=status, _return_value=value))
        return results


ASKED = ("stage1.optimizer.lr=interval(0.1,1.0)", "seed=0,1", "method=ce", "dataset.validation.fraction=0.1")


def searched(
    folder: Path,
    launcher: Launcher,
    monkeypatch: pytest.MonkeyPatch,
    trials: int = 3,
    asked: Sequence[str] = ASKED,
) -> Any:
    from hydra_plugins.ltexp_search import Search

    monkeypatch.setattr("hydra.core.plugins.Plugins.instantiate_launcher", lambda *_, **__: launcher)
    search: Any = Search(trials, 1, "all", 0)
    loader: Any = SimpleNamespace(load_sweep_config=lambda config, words: compose(words))
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
    search.setup(hydra_context=SimpleNamespace(config_loader=loader), task_function=None, config=config)
    return search.sweep(list(asked))


@pytest.mark.parametrize("sign", ["", "++"])
def test_several_seeds_are_one_trial_whose_mean_counts(
    sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    optuna = pytest.importorskip("optuna")
    launcher = Launcher(lambda number, job: 10 * float(job["stage1.optimizer.lr"]) + float(job["seed"]))
    asked = [f"{sign}{text}" if text.startswith("seed") else text for text in ASKED]
    best = searched(tmp_path / "found", launcher, monkeypatch, asked=asked)
    assert [(number, job["seed"]) for number, job in launcher.launched] == [(n, str(n % 2)) for n in range(6)]
    rates = [float(job["stage1.optimizer.lr"]) for _, job in launcher.launched[::2]]
    assert best["overrides"] == {"stage1.optimizer.lr": max(rates)}
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/found/{STUDY_FILE}")
    assert [trial.value for trial in study.trials] == pytest.approx([10 * rate + 0.5 for rate in rates])
    told = capsys.readouterr().out
    assert f"trial 2 of 3: stage1.optimizer.lr={rates[1]}" in told
    assert f"trial 2 of 3: validation all {10 * rates[1] + 0.5:.2f}, the mean of 2 seeds; best so far " in told


def test_a_search_whose_trials_all_fail_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(SearchError, match=r"^all 3 trials of the search in .* failed; each has said why above$"):
        searched(tmp_path / "found", Launcher(lambda number, job: None), monkeypatch)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("method=crt", *ASKED[:2], ASKED[3]), r"other overrides \(method=ce\)"),
        ((*ASKED, "backbone=resnet32"), r"other overrides \(no backbone\)"),
        (
            ("stage1.optimizer.lr=interval(0.1,2.0)", *ASKED[1:]),
            r"other ranges \(stage1.optimizer.lr from 0.1 to 1.0\)",
        ),
        (("stage1.optimizer.lr=0.1,1.0", *ASKED[1:]), r"other ranges \(stage1.optimizer.lr from 0.1 to 1.0\)"),
        ((ASKED[0], *ASKED[2:]), r"other seeds \(\['0', '1'\]\)"),
    ],
)
def test_another_search_does_not_go_on_in_the_folder_of_one(
    words: Sequence[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    launcher = Launcher(lambda number, job: 1.0)
    searched(tmp_path / "found", launcher, monkeypatch, trials=1)
    with pytest.raises(SearchError, match=rf"^the search in {tmp_path}/found has {told}: choose another hydra\.sweep"):
        searched(tmp_path / "found", launcher, monkeypatch, 2, words)
    again = ("resume=true", *reversed(ASKED), "logger=none", f"paths.outputs={tmp_path}")
    searched(tmp_path / "found", launcher, monkeypatch, 2, again)
    assert len(launcher.launched) == 2 * 2


def test_a_search_that_began_before_searches_were_told_apart_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study(study_name=STUDY, storage=f"sqlite:///{tmp_path}/{STUDY_FILE}", direction="maximize")
    for name, value in {"metric": "all", "seeds": ["0", "1"], "keys": ["stage1.optimizer.lr"]}.items():
        study.set_user_attr(name, value)
    assert searched(tmp_path, Launcher(lambda number, job: 1.0), monkeypatch)["value"] == 1.0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("method=ce", "stage1.optimizer.lr=0.1,1"),
            "digits_lt has none: hold training images out, such as dataset.val",
        ),
        (
            (ASKED[3], "method=tau_norm", "stage2.classifier.tau=interval(0,1)"),
            "stage2.epochs is 0: values of its classifier are chosen on a finished run, by ltexp evaluate RUN "
            "classifier=tau_normalized 'tau=range(...)'",
        ),
        ((ASKED[3], "method=ce", "stage1.optimizer.lrr=0.1,1"), "lrr=0.1: unknown key 'stage1.optimizer.lrr'"),
        (("dataset=cifar10_lt", "paths.data=nowhere", ASKED[0]), "nowhere/cifar10: missing"),
    ],
)
def test_a_search_that_cannot_judge_is_refused_before_its_first_trial(
    words: Sequence[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    launcher = Launcher(lambda number, job: 1.0)
    with pytest.raises(SearchError) as caught:
        searched(tmp_path / "found", launcher, monkeypatch, asked=words)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not launcher.launched
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("own", ["dataset=image_list", "dataset=image_folder"])
def test_a_search_takes_the_datasets_own_validation_images(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    tree = write_tree(tmp_path / "tree", [4, 2], validation=1)
    lists = [f"dataset.source.{split}={name}.txt" for split, name in (("validation", "val"), ("test", "test"))]
    words = ["method=ce", own, f"dataset.source.folder={tree}", ASKED[0], *(lists if "list" in own else [])]
    assert searched(tmp_path / "found", Launcher(lambda *_: 1.0), monkeypatch, asked=words)["value"] == 1.0


@pytest.mark.slow
def test_a_listed_sweep_trains_and_draws_its_heat_map(tmp_path: Path) -> None:
    from ltexp.report.__main__ import main

    jobs = "[['stage2.loss.head_smoothing=0.2'],['stage2.loss.head_smoothing=0.3']]"
    answer = train("sweep=mislas_smoothing", f"hydra.sweeper.jobs={jobs}", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert len(find_runs([tmp_path / "sweep"])[0]) == 2
    assert main([str(tmp_path / "sweep"), "figure=sweep", f"out={tmp_path}/sweep.pdf"]) == 0
