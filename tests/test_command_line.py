"""What a user's shell sees: processes of their own, killed, resumed, side by side, and several devices."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import assert_equal_weights, weights

SMALL = ("trainer.accelerator=cpu", "evaluation.figures=false", "logger=none")


def start(verb: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ltexp", verb, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def ltexp(verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    process = start(verb, *arguments)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def train(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return ltexp("train", *SMALL, f"paths.outputs={folder.parent}", f"hydra.run.dir={folder}", *overrides)


def record(folder: Path) -> dict[str, object]:
    return json.loads((folder / "record.json").read_text())


def wait_for(path: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def test_files_of_the_current_folder_are_not_taken_for_modules(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('random.py of the current folder')\n")
    command = [str(Path(sys.executable).with_name("ltexp")), "train", *SMALL, "method=ce", "stage1.epochs=1"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"} | {
        "OMP_NUM_THREADS": "1"
    }
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.glob("outputs/digits_lt/ce/*/record.json"))


def test_the_commands_fit_80_columns() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "ltexp", "--help"],
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    ).stdout
    assert max(len(line) for line in shown.splitlines() if not line.startswith(("choices: ", "docs: "))) <= 80
    assert "ltexp COMMAND --help" in shown


SHOWN = ("--help", "--version", "train --hydra-help", "reproduce -h", "reproduce plan table=mislas/3", "methods")


@pytest.mark.parametrize("arguments", SHOWN)
def test_what_is_shown_ends_with_its_reader_and_without_a_word(arguments: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ltexp", *arguments.split()]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=240, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (-signal.SIGPIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("arguments", ["--help", "methods", "train --help", "report --help", "reproduce list"])
def test_a_full_disk_under_what_is_printed_is_one_line(arguments: str) -> None:
    command = [sys.executable, "-m", "ltexp", *arguments.split()]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=240, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "ltexp: cannot write what is printed: No space left on device\n"


def test_a_removed_current_folder_is_named(tmp_path: Path) -> None:
    remove = "import os, runpy, sys; os.rmdir(os.getcwd()); runpy.run_module('ltexp', run_name='__main__')"
    command = [sys.executable, "-P", "-c", remove, "train", "method=ce"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "ltexp: the current folder no longer exists: change to one that does, such as `cd ~`\n"


@pytest.mark.slow
def test_a_killed_run_resumes_to_equal_weights_and_a_finished_one_is_kept(tmp_path: Path) -> None:
    settings = ("method=crt_mixup", "stage1.epochs=40", "stage2.epochs=1", "stage_cache.enabled=false")
    process = start("train", *SMALL, f"paths.outputs={tmp_path}", f"hydra.run.dir={tmp_path / 'a'}", *settings)
    wait_for(tmp_path / "a" / "stage1" / "resume.ckpt")
    process.send_signal(signal.SIGKILL)  # the worker goes with it
    process.communicate()
    assert not (tmp_path / "a" / "stage1" / "checkpoint.pt").exists()

    refused = train(tmp_path / "a", *settings)
    assert refused.returncode == 1
    assert "add resume=true" in refused.stderr

    resumed = train(tmp_path / "a", *settings, "resume=true")
    assert resumed.returncode == 0, resumed.stderr
    assert "stage1  continues after epoch" in resumed.stdout
    assert "epoch 40/40" in resumed.stdout
    whole = train(tmp_path / "b", *settings)
    assert whole.returncode == 0, whole.stderr
    for stage in ("stage1", "stage2"):
        assert_equal_weights(weights(tmp_path / "a", stage), weights(tmp_path / "b", stage))

    before = (tmp_path / "b" / "record.json").read_bytes()
    again = train(tmp_path / "b", *settings)
    assert again.returncode == 1
    assert "holds a finished run" in again.stderr
    assert train(tmp_path / "b", *settings, "resume=true").returncode == 0
    other = train(tmp_path / "b", *settings, "resume=true", "seed=1")
    assert other.returncode == 1
    assert "another config (seed is 0 there and 1 here)" in other.stderr
    assert (tmp_path / "b" / "record.json").read_bytes() == before


@pytest.mark.slow
def test_two_jobs_that_want_the_same_stage_1_train_it_once(tmp_path: Path) -> None:
    jobs = {
        name: start(
            "train",
            *SMALL,
            f"method={name}",
            "stage1.epochs=30",
            "stage2.epochs=1",
            f"paths.outputs={tmp_path}",
            f"hydra.run.dir={tmp_path / name}",
        )
        for name in ("crt", "lws")
    }
    for process in jobs.values():
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    cached = sorted(record(tmp_path / name)["stages"][0]["cached"] for name in jobs)  # type: ignore[index]
    assert cached == [False, True]
    assert_equal_weights(weights(tmp_path / "crt", "stage1"), weights(tmp_path / "lws", "stage1"))


def test_a_run_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    answer = train(tmp_path / "run", "stage1.loss.scale=-1")
    assert answer.returncode == 1
    assert answer.stderr == "ltexp: invalid stage1.loss.scale=-1: expected a number above 0\n"
    assert not list(tmp_path.iterdir())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert train(tmp_path / "run", "stage1.loss.scale=-1").returncode == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_a_run_on_two_devices_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    answer = train(tmp_path / "run", "trainer.devices=2", "+stage1.optimizer.foo=1")
    assert answer.returncode == 1
    assert "unknown key 'stage1.optimizer.foo'" in answer.stderr
    assert not list(tmp_path.iterdir())


def test_a_dry_run_shows_config_and_folder_and_leaves_nothing(tmp_path: Path) -> None:
    places = (f"paths.outputs={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    answer = ltexp("train", "--dry-run", *SMALL, *places, "method=ce")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(f"# {tmp_path / 'run'}\n")
    assert "\nseed: 0\n" in answer.stdout
    answer = ltexp("train", "--dry-run", *SMALL, places[0], "method=ce", "dataset=digits_lt")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(f"# {tmp_path / 'digits_lt' / 'ce'}/20")
    answer = ltexp("train", "-m", "--dry-run", *SMALL, *places, "method=ce", "seed=3,4")
    assert answer.returncode == 0, answer.stderr
    shown = [line for line in answer.stdout.splitlines() if line.startswith(("# ", "seed: "))]
    assert shown == [f"# {tmp_path / 'sweep' / '0'}", "seed: 3", f"# {tmp_path / 'sweep' / '1'}", "seed: 4"]
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_listed_jobs_shows_them_and_leaves_nothing(tmp_path: Path) -> None:
    places = (f"paths.outputs={tmp_path}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    jobs = "hydra.sweeper.jobs=[['seed=3'],['sed=4'],['seed=5']]"
    answer = ltexp("train", "-m", "--dry-run", *SMALL, *places, "sweep=mislas_smoothing", jobs)
    assert answer.returncode == 1
    shown = [line for line in answer.stdout.splitlines() if line.startswith(("# ", "seed: "))]
    assert shown == [f"# {tmp_path / 'sweep' / '0'}", "seed: 3", f"# {tmp_path / 'sweep' / '2'}", "seed: 5"]
    assert "ltexp: job 2 of 3 (" in answer.stderr
    assert "unknown key 'sed'" in answer.stderr
    assert answer.stderr.endswith("ltexp: 1 of 3 jobs cannot work\n")
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_search_shows_its_first_trials_and_spends_none(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    search = ("hydra/sweeper=search", "hydra.sweeper.trials=3", "hydra.sweeper.parallel=2", "seed=5,6")
    typed = (*search, "method=ce", "dataset.validation.fraction=0.2", "stage1.optimizer.lr=interval(0.01,0.2)")
    places = (f"paths.outputs={tmp_path}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    answer = ltexp("train", "-m", "--dry-run", *SMALL, *places, *typed)
    assert answer.returncode == 0, answer.stderr
    shown = [line for line in answer.stdout.splitlines() if line.startswith(("# ", "seed: "))]
    assert [line.rpartition("/")[2] for line in shown] == [
        "0",
        "seed: 5",
        "1",
        "seed: 6",
        "2",
        "seed: 5",
        "3",
        "seed: 6",
    ]
    values = {line for line in answer.stdout.splitlines() if line.startswith("- stage1.optimizer.lr=")}
    assert len(values) == 2, "a value for each trial, the same for its seeds"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("stage1.loss.scale=1,-1",), "invalid stage1.loss.scale=-1: expected a number above 0"),
        (
            (
                "stage1.epochs=20,5",
                "callbacks=early_stopping",
                "evaluation.every=10",
                "dataset.validation.fraction=0.1",
            ),
            "which is never measured in stage1: set evaluation.every to 1 or more and at most stage1.epochs",
        ),
    ],
)
def test_a_sweep_with_a_job_that_cannot_work_is_refused_before_its_first(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    places = (f"paths.outputs={tmp_path}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    answer = ltexp("train", "-m", *SMALL, *places, *words)
    assert answer.returncode == 1
    assert answer.stderr.startswith("ltexp: job 2 of 2 (")
    assert answer.stderr.endswith(f"{message}\n")
    assert answer.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_failed_job_and_says_so(tmp_path: Path) -> None:
    sweep = (f"paths.outputs={tmp_path}", f"hydra.sweep.dir={tmp_path / 'sweep'}", "method=ce", "stage1.epochs=1")
    answer = ltexp("train", "-m", *SMALL, *sweep, "stage1.optimizer.lr=1e20,0.1")
    assert answer.returncode == 1
    assert "the loss is" in answer.stderr
    assert answer.stderr.endswith("ltexp: 1 of 2 jobs failed; the same command with resume=true continues the sweep\n")
    assert "ltexp: job 1 of 2 (stage1.optimizer.lr=1e+20) failed: stage1: the loss is" in answer.stderr
    assert [record(tmp_path / "sweep" / job)["status"] for job in ("0", "1")] == ["failed", "finished"]
    table = ltexp("report", str(tmp_path / "sweep"), "format=markdown")
    assert table.returncode == 0
    assert "digits_lt" in table.stdout


@pytest.mark.slow
def test_two_devices_through_torchs_launcher_equal_one(tmp_path: Path) -> None:
    assert train(tmp_path / "one", "method=mixup", "stage1.epochs=3").returncode == 0
    settings = ("method=crt", f"stage1.checkpoint={tmp_path / 'one'}", "stage2.epochs=3")
    for folder, devices in (("alone", "1"), ("together", "2")):
        answer = train(tmp_path / folder, *settings, f"trainer.devices={devices}")
        assert answer.returncode == 0, answer.stderr
    assert_equal_weights(weights(tmp_path / "alone", "stage2"), weights(tmp_path / "together", "stage2"), 1e-5)
    assert record(tmp_path / "together")["environment"]["world_size"] == 2  # type: ignore[index]


@pytest.mark.slow
def test_a_failure_on_several_devices_is_one_line(tmp_path: Path) -> None:
    answer = train(tmp_path / "run", "trainer.devices=2", "stage1.optimizer.lr=1e20")
    assert answer.returncode == 1
    assert len([line for line in answer.stderr.splitlines() if line.strip()]) == 1, answer.stderr
    assert "the loss is" in answer.stderr


@pytest.mark.slow
def test_evaluate_repeats_the_record_and_tries_classifiers_without_training(tmp_path: Path) -> None:
    assert train(tmp_path / "run", "method=crt", "stage1.epochs=3", "stage2.epochs=1").returncode == 0
    assert ltexp("evaluate", str(tmp_path / "run")).returncode == 0
    again = json.loads((tmp_path / "run" / "evaluations" / "stage2.json").read_text())["metrics"]
    assert record(tmp_path / "run")["metrics"].items() <= again.items()  # type: ignore[attr-defined]
    # tau = 0 with the bias kept is the classifier itself
    assert ltexp("evaluate", str(tmp_path / "run"), "classifier=tau_normalized", "tau=0", "bias=true").returncode == 0
    kept = json.loads(next((tmp_path / "run" / "evaluations").glob("stage1_tau*.json")).read_text())["metrics"]
    assert kept["per_class"] == record(tmp_path / "run")["stages"][0]["metrics"]["per_class"]  # type: ignore[index]
    wrong = ltexp("evaluate", str(tmp_path / "run"), "classifier=tau_normalised")
    assert wrong.returncode == 2
    assert wrong.stderr == "ltexp evaluate: unknown classifier 'tau_normalised': did you mean 'tau_normalized'?\n"


@pytest.mark.slow
def test_a_finished_runs_config_runs_again(tmp_path: Path) -> None:
    assert train(tmp_path / "one", "method=mixup", "stage1.epochs=1").returncode == 0
    command = ("--config-path", str(tmp_path / "one"), "--config-name", "config", f"hydra.run.dir={tmp_path / 'two'}")
    answer = ltexp("train", *command, "stage_cache.enabled=false")
    assert answer.returncode == 0, answer.stderr
    assert_equal_weights(weights(tmp_path / "one", "stage1"), weights(tmp_path / "two", "stage1"))
    assert record(tmp_path / "two")["method"] == "mixup"
    assert record(tmp_path / "two")["config_hash"] == record(tmp_path / "one")["config_hash"]
