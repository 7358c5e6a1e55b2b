"""What is seen while it runs, and what ends it: lines and bars, signals, folders, a sweep's prepared process."""

import errno
import fcntl
import multiprocessing
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from runs import assert_equal_weights, composed, run_here, weights
from test_command_line import SMALL, ltexp, record, start, train, wait_for

from ltexp.config import to_config
from ltexp.config.composer import compose, install
from ltexp.config.path import conf_dir
from ltexp.config.schema import StageCacheConfig
from ltexp.errors import ConfigError, WriteError
from ltexp.evaluation.record import SCHEMA, write_record
from ltexp.launching import prepared
from ltexp.launching import start as prepare
from ltexp.launching.outcome import DRY_RUN_VARIABLE
from ltexp.launching.prepared import PREPARED, ask, start_here
from ltexp.launching.signals import Stopped, end_process, raised_signals
from ltexp.launching.start import _only_here, require_own, require_own_sweep
from ltexp.launching.sweep import ValidateAndFreeze, _typed_folder
from ltexp.lock import alone
from ltexp.processes.failure import LAUNCHER
from ltexp.processes.prepared import Server, become
from ltexp.report.records import find_runs
from ltexp.run_folder import LOCK, is_held
from ltexp.train import check_flags, flags_first, job, note_other_folder, with_home

BEGUN = {
    "schema": SCHEMA,
    "method": "ce",
    "dataset": "digits_lt",
    "imbalance": "longtail",
    "imbalance_ratio": 60.0,
    "backbone": "resnet8",
    "seed": 0,
    "class_counts": [3, 2],
}
LONG = ("method=ce", "stage1.epochs=5000", "stage_cache.enabled=false")
LINE = re.compile(
    r"stage1  epoch \d/3  loss \d+\.\d{3}  [\d,]+ images/s  lr 0\.\d+  \d:\d\d gone  \d:\d\d left(  test \d+\.\d%)?"
)


def test_a_log_has_a_labelled_line_for_every_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("method=ce", "stage1.epochs=3", "trainer.progress=true", "evaluation.every=3")
    run_here(tmp_path / "run", *settings)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage1  ")]
    assert [bool(LINE.fullmatch(line)) for line in lines] == [True] * 3, lines
    assert ["test" in line for line in lines] == [False, False, True]


def in_terminal(columns: int, *command: str) -> str:
    """What the command writes to a terminal of so many columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    written = bytearray()
    while True:
        try:
            part = os.read(master, 1 << 16)
        except OSError:  # the last user of the terminal has closed it
            break
        if not part:
            break
        written += part
    os.close(master)
    assert process.wait() == 0, written.decode()
    return written.decode()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_a_labelled_bar_and_the_log_keeps_the_lines(columns: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = (*SMALL, f"paths.outputs={tmp_path}", f"hydra.run.dir={folder}", "method=ce", "stage1.epochs=3")
    written = in_terminal(columns, sys.executable, "-m", "ltexp", "train", *settings)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    bars = [line for line in re.split(r"[\r\n]+", plain) if "━" in line and "loss" in line]
    assert bars
    assert all(len(line) <= columns for line in bars)
    assert re.match(r"stage1 epoch [123]/3 .*loss \d\.\d+  [\d,]+ images/s \d:\d\d gone  \d:\d\d left", bars[0]), bars[
        0
    ]
    log = (folder / "run.log").read_text()
    assert "\x1b" not in log
    assert "━ loss" not in log
    assert len(LINE.findall(log)) == 3
    assert f"ce: digits_lt, 321 images of 10 classes, ratio 60; resnet8, seed 0; {folder}" in log
    assert "on cpu, 1 thread, 32-true" in log


def test_the_log_of_a_run_that_fails_says_why_and_where(tmp_path: Path) -> None:
    answer = train(tmp_path / "run", "method=ce", "stage1.optimizer.lr=1e20")
    assert answer.returncode == 1
    assert answer.stdout.startswith("ce: digits_lt, 321 images of 10 classes, ratio 60; resnet8, seed 0; ")
    said = answer.stderr.splitlines()[-1]
    assert said.startswith("ltexp: stage1: the loss is")
    assert (tmp_path / "run" / "run.log").read_text().endswith(said + "\n")


@pytest.mark.parametrize("names", [("notes.txt",), ("0", "1"), (".git", "README.md", "src", "tests")])
def test_a_runs_folder_with_other_files_is_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=f"holds other files \\({re.escape(names[0])}"):
        require_own(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_folder_that_cannot_be_locked_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"cannot write in .*: Not a directory"),
        _only_here(tmp_path / "file/run", False),
    ):
        pass
    with (
        pytest.raises(WriteError, match=r"cannot lock .*: Not a directory"),
        alone(tmp_path / "file/of/lock", "waiting"),
    ):
        pass

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))  # a network file system without its lock service

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(WriteError, match=r"cannot lock .*: No locks available"), alone(tmp_path / "lock", "waiting"):
        pass


def test_folders_of_the_system_and_other_programs_configs_are_refused(tmp_path: Path) -> None:
    for check in (require_own, require_own_sweep):
        with pytest.raises(ConfigError, match="/ holds other files"):
            check(Path("/"))
        with pytest.raises(ConfigError, match="Hydra takes '~' as it stands"):
            check(Path("~/runs"))
    (tmp_path / "config.yaml").write_text("title: a page\n")
    with pytest.raises(ConfigError):
        require_own(tmp_path)
    with pytest.raises(ConfigError, match=r"holds other files \(config.yaml\)"):
        require_own_sweep(tmp_path)
    (tmp_path / "frozen").mkdir()
    require_own_sweep(tmp_path)
    require_own(tmp_path / "new")


def test_a_home_and_flags_are_read_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert with_home("hydra.run.dir=~/runs/a") == "hydra.run.dir=/home/me/runs/a"
    assert with_home("~stage2") == "~stage2"  # Hydra's sign for leaving out
    assert with_home("name=a~/b") == "name=a~/b"
    assert flags_first(["method=ce", "-m", "seed=0,1"]) == ["-m", "method=ce", "seed=0,1"]


def test_a_sweep_without_jobs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^seed=range\(0,0\) lists no value, so that the sweep has no jobs"):
        check_flags(["-m", "method=ce", "seed=range(0,0)"])
    check_flags(["-m", "--config-name", "config", "method=ce,bsce", "seed={"])  # which is answered elsewhere


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("method=glob(zz*)",), "method=glob(zz*) lists no value, so that the sweep has no jobs: name one or more"),
        (("seed=0,1", "hydra.sweeper.max_batch_size=1"), "hydra.sweeper.max_batch_size=1: all jobs are one batch here"),
        (
            ("seed=0,1", "hydra.sweep.subdir='${hydra:runtime.choices.method}'"),
            "hydra.sweep.subdir=mislas is the folder of job 1 of 2 and of job 2 of 2",
        ),
    ],
)
def test_a_sweep_of_no_jobs_of_batches_or_of_one_folder_is_refused(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        freeze_sweep(*words)
    assert str(refused.value).startswith(f"ltexp: {said}")


def test_a_sweep_over_the_files_of_a_group(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("ltexp.launching.sweep.check_compositions", lambda *_: None)
    monkeypatch.setenv(DRY_RUN_VARIABLE, "1")
    with pytest.raises(SystemExit):
        freeze_sweep("method=glob(crt*)", "hydra.sweep.subdir='${hydra:runtime.choices.method}'")
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("# ", "- "))]
    assert [line.rpartition("/")[2] for line in shown] == ["crt", "- method=crt", "crt_mixup", "- method=crt_mixup"]


def freeze_sweep(*words: str) -> None:
    """What the command does with a sweep's words before anything is run."""
    install()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", list(words), RunMode.MULTIRUN)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("ltexp.launching.sweep.start_prepared", lambda **_: None)
            ValidateAndFreeze().on_multirun_start(config)


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_an_error_of_the_checks_ends_the_command(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra would print a warning and go on without them."""
    config = compose([f"hydra.{kind}.dir={'a' * 300}"])
    start = ValidateAndFreeze().on_run_start if kind == "run" else ValidateAndFreeze().on_multirun_start
    with pytest.raises(SystemExit, match=r"^ltexp: .*a{300}: File name too long"):
        start(config)

    def fail(*_: object) -> None:
        raise KeyError("a fault of ours")

    monkeypatch.setattr("ltexp.launching.sweep._typed_folder", fail)
    with pytest.raises(SystemExit, match=r"^1$"):
        start(config)
    assert "KeyError: 'a fault of ours'" in capsys.readouterr().err


@pytest.fixture
def one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[dict[str, Any], bool]]]:
    """The config that a job with such words is run on, and whether its folder counts as chosen."""
    given: list[tuple[dict[str, Any], bool]] = []
    monkeypatch.setattr("ltexp.train.run_in_folder", lambda plain, _, chosen: given.append((plain, chosen)))

    def started(*words: str) -> tuple[dict[str, Any], bool]:
        config = compose(list(words))
        with open_dict(config):
            config.hydra.mode = RunMode.RUN
            config.hydra.runtime.output_dir, config.hydra.runtime.cwd = str(tmp_path / "run"), str(tmp_path)
        HydraConfig.instance().set_config(config)
        job.__wrapped__(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
        return given.pop()

    yield started
    HydraConfig.instance().cfg = None


def test_paths_are_of_where_the_command_was_typed(
    one_job: Callable[..., tuple[dict[str, Any], bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")  # as Hydra does with hydra.job.chdir=true
    plain, _ = one_job("hydra.job.chdir=true", "paths.data=d", "paths.outputs=o")
    assert plain["paths"] == {"data": str(tmp_path / "d"), "outputs": str(tmp_path / "o")}
    assert Path.cwd() == tmp_path / "run"


def test_a_folder_is_typed_with_any_sign_and_with_interpolations(
    one_job: Callable[..., tuple[dict[str, Any], bool]],
) -> None:
    assert [one_job(word)[1] for word in ("hydra.run.dir=a", "++hydra.run.dir=a", "seed=1")] == [True, True, False]
    assert one_job("hydra.run.dir='${hydra:runtime.choices.method}'")[1]
    assert _typed_folder(compose(["++hydra.run.dir=a"]), "hydra.run.dir") == Path("a")
    assert _typed_folder(compose(["hydra.run.dir='${hydra:runtime.choices.method}'"]), "hydra.run.dir") is None


def test_a_job_that_is_queued_again_finds_its_run(
    one_job: Callable[..., tuple[dict[str, Any], bool]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a script of the user's the folder is named after the time; submitit keeps that of its sweep."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    plain, chosen = one_job("method=ce")
    assert (plain["resume"], chosen) == (True, False)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert one_job("method=ce")[1], "the run of another job of the same config is no business of this one"
    assert not one_job("method=ce", "resume=true")[1], "it went on with an earlier run when it was first started"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    assert one_job("method=ce", "resume=true")[1]


@pytest.mark.parametrize(("mode", "idle"), [(RunMode.RUN, "hydra.sweep.dir"), (RunMode.MULTIRUN, "hydra.run.dir")])
def test_a_folder_of_another_kind_of_job_is_noted(mode: RunMode, idle: str, capsys: pytest.CaptureFixture[str]) -> None:
    for typed, said in (
        ([f"{idle}=a"], f"note: {idle} has no effect on "),
        (["hydra.run.dir=a", "hydra.sweep.dir=b"], ""),
    ):
        overrides = SimpleNamespace(hydra=typed)
        note_other_folder(SimpleNamespace(mode=mode, overrides=overrides, job=SimpleNamespace(num=0)))
        assert capsys.readouterr().err.startswith(said)


def test_a_finished_run_says_what_differs_and_what_has_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = to_config(composed("method=crt"))
    monkeypatch.setattr(prepare, "load", lambda _: there)
    monkeypatch.setattr(prepare, "read_status", lambda _: "finished")
    for typed, said in (
        (["stage2.epochs=3"], f"(stage2.epochs is {there.stages['stage2'].epochs} there and 3 here): choose another"),
        (["stage2.epochs=3", "seed=1"], "(seed, stage2.epochs): choose another hydra.run.dir"),
    ):
        other = replace(to_config(composed("method=crt", *typed)), stage_cache=StageCacheConfig(enabled=True))
        with pytest.raises(ConfigError, match=r"from the stage cache$") as refused:
            prepare._already_finished(other, tmp_path)
        assert said in str(refused.value)
    assert prepare._already_finished(to_config(composed("method=crt", "resume=true", "evaluation.every=1")), tmp_path)
    assert capsys.readouterr().out.endswith("nothing to do (evaluation.every=1 has no effect on it)\n")


def test_a_lock_tells_a_running_run_from_a_killed_one(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    for number, status in enumerate(("running", "running", "stopped", "failed", "failed")):
        write_record(tmp_path / str(number), {**BEGUN, "status": status})
    with FileLock(tmp_path / "0" / LOCK):
        assert is_held(tmp_path / "0")
        runs, notes = find_runs([tmp_path])
    assert not runs
    assert notes == ["left out: 5 runs not finished (2 failed, 1 killed, 1 running, 1 stopped)"]
    assert not is_held(tmp_path / "0")


def test_signals_are_raised_but_those_that_are_ignored_stay_so() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    with pytest.raises(Stopped) as stopped, raised_signals():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.number == signal.SIGTERM
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raised_signals():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before[1])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before


def test_a_process_that_does_not_answer_a_signal_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltexp.launching.signals.GRACE", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    end_process(process, signal.SIGTERM)
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A prepared process without libraries, which can become `sleeping`; its number."""
    (tmp_path / "sleeping.py").write_text(
        "import os, sys, time\n\n\ndef main():\n"
        "    open(sys.argv[1], 'w').write(os.environ['WHO'] + str(os.getpid()))\n    time.sleep(float(sys.argv[2]))\n"
        "    sys.exit(7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    listener = socket.socket(socket.AF_UNIX)
    name = f"ltexp-test-{os.getpid()}"
    listener.bind(f"\0{name}")
    listener.listen()
    process = multiprocessing.get_context("fork").Process(target=lambda: Server(listener, become).serve())
    process.start()
    listener.close()
    monkeypatch.setenv(PREPARED, f"{name} {prepared._start_of(os.environ)}")
    yield process.pid or 0
    process.terminate()
    process.join(10)
    assert process.exitcode == 0


def as_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes today's environment for the server's: pytest changes it between a fixture and its test."""
    monkeypatch.setenv(PREPARED, f"{os.environ[PREPARED].split()[0]} {prepared._start_of(os.environ)}")


def gone(process: int, seconds: float = 10) -> bool:
    """Whether the process ends in so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="the prepared process is Linux's")
def test_a_prepared_process_becomes_what_it_is_asked_for(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    as_started(monkeypatch)
    assert ask("json.tool", '{"a": 1}') == (0, '{\n    "a": 1\n}\n')
    assert start_here("json.tool", ["--version"], os.environ | {"CUDA_VISIBLE_DEVICES": "1"}) is not None
    # libraries may read this one when they are loaded
    assert start_here("json.tool", ["--version"], os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the prepared process is Linux's")
def test_a_job_of_a_prepared_process_answers_signals_and_ends_with_who_asked(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHO", "")
    as_started(monkeypatch)

    def begin(name: str, seconds: str) -> tuple[prepared.PreparedProcess, int]:
        job = start_here("sleeping", [str(tmp_path / name), seconds], os.environ)
        assert job is not None
        wait_for(tmp_path / name, 20)
        time.sleep(0.1)
        return job, int((tmp_path / name).read_text())

    quick, _ = begin("quick", "0")
    assert quick.wait() == 7
    stopped, _ = begin("stopped", "60")
    with pytest.raises(subprocess.TimeoutExpired):
        stopped.wait(0.1)
    end_process(stopped, signal.SIGTERM)
    assert stopped.returncode == -signal.SIGTERM
    left, number = begin("left", "60")
    left.connection.close()  # as when the command is killed
    assert gone(number)
    alone, number = begin("alone", "60")
    os.kill(server, signal.SIGTERM)  # it ends its jobs first
    assert alone.wait(10) == -signal.SIGTERM
    assert gone(number)


@pytest.mark.skipif(sys.platform != "linux", reason="the prepared process is Linux's")
def test_a_process_of_the_launcher_stands_for_its_fork(
    server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends as the fork does, hands SIGTERM on, and takes the fork with it."""
    monkeypatch.setenv("WHO", "")
    as_started(monkeypatch)
    stands = "from ltexp.processes import rank; rank.WORKER = 'sleeping'; rank.main()"
    # what torch's launcher adds
    added = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}
    environment = os.environ | added | {LAUNCHER: str(os.getpid())}

    def begin(name: str, seconds: str) -> tuple[subprocess.Popen[bytes], int]:
        words = [sys.executable, "-c", stands, str(tmp_path / name), seconds]
        process = subprocess.Popen(words, env=environment)
        wait_for(tmp_path / name, 20)
        time.sleep(0.1)
        fork = int((tmp_path / name).read_text())
        assert fork not in descendants(os.getpid()) - descendants(server)
        return process, fork

    assert begin("quick", "0")[0].wait(10) == 7
    for number in (signal.SIGTERM, signal.SIGKILL):
        process, fork = begin(number.name, "60")
        process.send_signal(number)
        assert process.wait(10) == -number
        assert gone(fork)
    process, fork = begin("starved", "60")
    os.kill(fork, signal.SIGKILL)  # as where memory runs out
    assert process.wait(10) == -signal.SIGKILL


def descendants(process: int) -> set[int]:
    """All processes below one."""
    found: set[int] = set()
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | descendants(child)
    return found


def sweep_of(tmp_path: Path, *further: str) -> "subprocess.Popen[str]":
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell in the background ignores it, for its children too
    places = (f"paths.outputs={tmp_path}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    return start("train", "-m", *SMALL, *places, *LONG, "seed=0,1", *further)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("launcher", ["basic", "joblib", "local"])
def test_a_signal_ends_a_sweep_and_its_jobs(number: signal.Signals, launcher: str, tmp_path: Path) -> None:
    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{'joblib' if launcher == 'joblib' else 'submitit'}_launcher")
    process = sweep_of(tmp_path, f"launcher={launcher}", *(["launcher.n_jobs=2"] if launcher == "joblib" else []))
    wait_for(tmp_path / "sweep" / "0" / "stage1" / "resume.ckpt", 240)
    below = descendants(process.pid)
    began = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 128 + number
    assert all(gone(child) for child in below)
    assert record(tmp_path / "sweep" / "0")["status"] == "stopped"
    if launcher != "basic":  # jobs side by side
        return
    assert not (tmp_path / "sweep" / "1").exists()
    assert "1 run not finished (1 stopped)" in ltexp("report", str(tmp_path / "sweep")).stderr


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["1", "2"])
def test_nothing_outlives_a_command_that_is_killed(devices: str, tmp_path: Path) -> None:
    process = sweep_of(tmp_path, f"trainer.devices={devices}")
    wait_for(tmp_path / "sweep" / "0" / "record.json", 240)
    below = descendants(process.pid)
    assert len(below) >= 2
    process.kill()
    process.communicate()
    assert all(gone(child) for child in below)
    assert record(tmp_path / "sweep" / "0")["status"] == "running"
    assert "1 run not finished (1 killed)" in ltexp("report", str(tmp_path / "sweep")).stderr


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 1.5, 3.0])
def test_a_worker_ends_with_its_parent_while_it_loads(seconds: float, tmp_path: Path) -> None:
    process = start("train", *SMALL, *LONG, f"hydra.run.dir={tmp_path / 'run'}", f"paths.outputs={tmp_path}")
    wait_for(tmp_path / "run" / "config.yaml", 120)
    time.sleep(seconds)
    below = descendants(process.pid)
    process.kill()
    process.communicate()
    assert below
    assert all(gone(child) for child in below)


@pytest.mark.slow
def test_a_job_of_a_sweep_is_the_run_that_the_same_command_gives(tmp_path: Path) -> None:
    settings = ("method=crt", "stage1.epochs=2", "stage2.epochs=1", "stage_cache.enabled=false")
    places = (f"paths.outputs={tmp_path}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    answer = ltexp("train", "-m", *SMALL, *places, *settings, "seed=0,1")
    assert answer.returncode == 0, answer.stderr
    assert "job 2 of 2: seed=1\n" in answer.stdout
    assert re.search(r"^2 jobs in \d:\d\d: 2 finished; 4 stages trained, 0 shared$", answer.stdout, re.MULTILINE)
    assert train(tmp_path / "alone", *settings, "seed=1").returncode == 0
    for stage in ("stage1", "stage2"):
        assert_equal_weights(weights(tmp_path / "alone", stage), weights(tmp_path / "sweep" / "1", stage))


@pytest.mark.slow
def test_nothing_is_written_outside_the_outputs(tmp_path: Path) -> None:
    """The command's folder, the home and the place for temporary files, after a run and a sweep."""
    places = {name: tmp_path / name for name in ("work", "home", "temporary")}
    for place in places.values():
        place.mkdir()
    environment = os.environ | {"HOME": str(places["home"]), "TMPDIR": str(places["temporary"]), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    for words in (("method=ce",), ("-m", "method=ce", "seed=0,1")):
        command = [sys.executable, "-m", "ltexp", "train", *words, "stage1.epochs=1", "trainer.accelerator=cpu"]
        subprocess.run(command, cwd=places["work"], env=environment, check=True, capture_output=True)
    assert [path.name for path in places["work"].iterdir()] == ["outputs"]
    assert not list(places["temporary"].iterdir())
    libraries = {".cache", ".config"}  # matplotlib's list of fonts
    assert {path.name for path in places["home"].iterdir()} <= libraries
