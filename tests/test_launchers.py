"""Where the jobs of a sweep run: side by side on free GPUs, and in allocations of a cluster."""

import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import ConfigCompositionException, InstantiationException
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict
from records import write
from runs import composed
from test_command_line import SMALL, ltexp, record, start, wait_for

from hydra_plugins import ltexp_launchers
from hydra_plugins.ltexp_launchers import GpuLauncher, jobs_at_a_time
from ltexp.config import TrainerConfig
from ltexp.config.composer import compose
from ltexp.errors import ConfigError
from ltexp.files import write_text
from ltexp.launching import devices
from ltexp.launching.checks import check_places
from ltexp.launching.devices import check_devices, device_count, free_gpus
from ltexp.launching.explain import explain
from ltexp.launching.outcome import SweepError
from ltexp.launching.places import place_jobs, read_places, write_places
from ltexp.launching.start import without_resume
from ltexp.launching.sweep import ValidateAndFreeze, frozen_path

TINY = (*SMALL, "stage1.epochs=1", "method=ce")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A machine of four GPUs, with locks of its own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    return ["0", "1", "2", "3"]


def test_jobs_get_gpus_that_no_other_holds(gpus: list[str]) -> None:
    with free_gpus(2, 1) as first, free_gpus(1, 1) as second:
        assert sorted([*first, *second]) == ["0", "1", "2"]
        with free_gpus(1, 1) as third:
            assert third == ["3"]
    with free_gpus(4, 1) as everything:
        assert everything == gpus
    with pytest.raises(ConfigError, match=r"trainer\.devices=5, but the sweep has 4 GPUs"), free_gpus(5, 1):
        pass


def test_a_second_job_on_a_gpu_comes_after_the_empty_ones(gpus: list[str]) -> None:
    with free_gpus(3, 2), free_gpus(1, 2) as last_empty, free_gpus(1, 2) as shared:
        assert last_empty == ["3"]
        assert shared == ["0"]


def hold(number: int, folder: str) -> None:
    """A job of two GPUs: it notes them, and when it held them."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "0,1,2"
    devices.tempfile.gettempdir = lambda: folder  # type: ignore[assignment]
    with free_gpus(2, 1) as mine:
        began = time.monotonic()
        time.sleep(0.3)
        (Path(folder) / f"{number}.json").write_text(json.dumps([began, time.monotonic(), mine]))


def test_jobs_wait_until_enough_gpus_are_free(tmp_path: Path) -> None:
    """Three processes want two of three GPUs each: one at a time, and none waits with half of what it wants."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=hold, args=(number, str(tmp_path))) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    spans = sorted(json.loads((tmp_path / f"{number}.json").read_text()) for number in range(3))
    for (_, ended, _), (began, _, _) in pairwise(spans):
        assert ended <= began


def test_a_job_sees_its_own_gpus_and_the_launcher_all(gpus: list[str]) -> None:
    job = OmegaConf.create({"trainer": {"accelerator": "auto", "devices": 2}})
    assert GpuLauncher(lambda job: os.environ["CUDA_VISIBLE_DEVICES"], 1)(job) == "0,1"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    job.trainer.accelerator = "cpu"
    assert GpuLauncher(lambda job: os.environ["CUDA_VISIBLE_DEVICES"], 1)(job) == "0,1,2,3"


@pytest.mark.parametrize(
    ("trainer", "share", "jobs"),
    [
        (TrainerConfig(devices=1), 1, 4),
        (TrainerConfig(devices=2), 1, 2),
        (TrainerConfig(devices=3), 1, 1),
        (TrainerConfig(devices=1), 2, 8),
        (TrainerConfig(accelerator="cpu"), 1, 1),
    ],
)
def test_as_many_jobs_as_gpus_have_room_for(gpus: list[str], trainer: TrainerConfig, share: int, jobs: int) -> None:
    assert jobs_at_a_time(trainer, share) == jobs


def test_auto_is_all_gpus_of_the_machine_or_its_cpu(gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert composed("trainer.devices=auto", "trainer.accelerator=auto", small=False)["trainer"]["devices"] == 4
    assert composed("trainer.devices=auto", "trainer.accelerator=cpu", small=False)["trainer"]["devices"] == 1
    trainer = OmegaConf.create({"accelerator": "auto", "devices": "auto"})
    assert jobs_at_a_time(trainer, 2) == 2  # each takes all four
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_count(trainer) == 1


def test_devices_without_a_gpu_are_refused_unless_the_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"^trainer.devices=8, but there is no GPU here: .* trainer.accelerator=cpu"):
        check_devices(TrainerConfig(devices=8))
    check_devices(TrainerConfig(devices=8, accelerator="cpu"))
    check_devices(TrainerConfig(devices=1))


def frozen_in(folder: Path, *overrides: str) -> dict[str, Any]:
    """The config of a run, which lies in `folder` as the run writes it."""
    plain = composed(*overrides)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(without_resume(plain))))
    return plain


def test_a_job_has_the_folder_of_its_config_and_a_new_one_a_free_folder(tmp_path: Path) -> None:
    before = [(f"method={method}", f"seed={seed}") for method in ("ce", "crt") for seed in (0, 1)]
    held = [frozen_in(tmp_path / str(number), *words) for number, words in enumerate(before)]
    assert place_jobs(tmp_path, held) == {}
    new = [composed(f"method={method}", "seed=2", "resume=true") for method in ("ce", "crt")]
    assert place_jobs(tmp_path, [*held[:2], new[0], *held[2:], new[1]]) == {2: "4", 3: "2", 4: "3"}
    assert place_jobs(tmp_path / "new", [*held, *new]) == {}
    moved = composed(*before[0], "paths.data=elsewhere", "resume=true")  # it computes the same
    assert place_jobs(tmp_path, [moved, new[0]]) == {1: "4"}
    (tmp_path / "0" / "config.yaml").write_text("[")
    assert place_jobs(tmp_path, [held[0]]) == {0: "4"}


def test_a_launcher_gives_each_job_its_folder(tmp_path: Path) -> None:
    write_places(tmp_path, {1: "4"})
    launcher, given = ltexp_launchers.Basic(), []
    launcher.launcher = SimpleNamespace(launch=lambda jobs, first: given.extend(jobs) or [])  # type: ignore[func-returns-value]
    launcher.announced, launcher.folder, launcher.chosen = ltexp_launchers.Announced(None), str(tmp_path), True
    launcher.launch([["seed=0"], ["seed=1"]], 0)
    assert given == [["seed=0"], ["seed=1", "hydra.sweep.subdir=4"]]
    write_places(tmp_path, {})
    assert read_places(tmp_path) == {}


@pytest.mark.parametrize("sweeper", ["hydra_plugins.ltexp_listed.Listed", "hydra_plugins.ltexp_search.Search"])
def test_folders_of_an_earlier_sweep_are_not_those_of_listed_jobs_and_trials(
    sweeper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_places(tmp_path, {1: "4"})
    monkeypatch.setattr(GlobalHydra, "instance", lambda: SimpleNamespace(config_loader=lambda: None))
    sweep = {"sweep": {"dir": str(tmp_path)}, "sweeper": {"_target_": sweeper, "jobs": []}, "overrides": {"task": []}}
    ValidateAndFreeze()._freeze_jobs(OmegaConf.create({"hydra": sweep}))
    assert read_places(tmp_path) == {}


def test_the_configs_of_an_earlier_sweep_are_not_those_of_trials_nor_of_a_listed_job_that_cannot_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, wrong = compose([f"hydra.sweep.dir={tmp_path}"]), compose(["stage1.epochs=-1"])
    loader = SimpleNamespace(load_sweep_config=lambda *_: wrong)
    running = SimpleNamespace(config_loader=lambda: loader, is_initialized=lambda: True)
    monkeypatch.setattr(GlobalHydra, "instance", lambda: running)
    for sweeper in ({"_target_": "an.Listed", "jobs": [["stage1.epochs=-1"]]}, {"_target_": "a.Search"}):
        write_text(frozen_path(tmp_path, 0), "of before: 1")
        with open_dict(config):
            config.hydra.sweeper = sweeper
        ValidateAndFreeze()._freeze_jobs(config)
        assert not frozen_path(tmp_path, 0).exists()


def test_a_failed_job_counts_as_failed_alone_and_a_refused_one_is_promised_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a job is refused a folder, another's record lies there."""
    write(tmp_path)
    place = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(tmp_path)}}})
    failed = JobReturn(overrides=["seed=0"], hydra_cfg=place, status=JobStatus.FAILED)
    failed.return_value = ConfigError("it holds another run")
    launcher = ltexp_launchers.Basic()
    launcher.launcher = SimpleNamespace(launch=lambda *_: [failed])
    launcher.announced, launcher.folder, launcher.chosen = ltexp_launchers.Announced(None), str(tmp_path), True
    with pytest.raises(SweepError, match=r"^1 of 1 jobs failed; the same command with resume=true continues"):
        launcher.launch([["seed=0"]], 0)
    assert "1 job in 0:00: 1 failed; 0 stages trained, 0 shared" in capsys.readouterr().out
    with pytest.raises(SweepError, match=r"^1 of 1 jobs failed$"):
        launcher.launch([["seed=0", "resume=true"]], 0)


@pytest.mark.slow
def test_a_sweep_is_extended_in_its_folder(tmp_path: Path) -> None:
    words = (
        "-m",
        *TINY,
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        f"paths.outputs={tmp_path}",
        "stage1.batch_size=64,32",
    )
    assert ltexp("train", *words, "seed=0,1").returncode == 0
    answer = ltexp("train", *words, "seed=0,1,2", "resume=true")
    assert answer.returncode == 0, answer.stderr
    assert "6 jobs in" in answer.stdout
    assert ": 2 finished, 4 finished before; " in answer.stdout
    assert sorted(record(tmp_path / "sweep" / str(number))["seed"] for number in range(6)) == [0, 0, 1, 1, 2, 2]


def test_what_a_launcher_needs_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ltexp_launchers, "find_spec", lambda name: None)
    for launcher in (ltexp_launchers.Joblib, ltexp_launchers.Slurm, ltexp_launchers.Local):
        with pytest.raises(ltexp_launchers.LaunchError, match=f"pip install {launcher.package}"):
            launcher.check()
    monkeypatch.undo()
    monkeypatch.setattr(ltexp_launchers, "find_spec", lambda name: name)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ltexp_launchers.LaunchError, match="there is no sbatch here"):
        ltexp_launchers.Slurm.check()


def test_a_wrong_key_of_a_launcher_or_a_sweeper_is_its_own_line() -> None:
    for node, said in (
        ({"_target_": "hydra_plugins.ltexp_launchers.Joblib", "n_jobs": 0, "jobs_per_gpu": 1}, "launcher.n_jobs and "),
        (
            {"_target_": "hydra_plugins.ltexp_search.Search", "trials": 1, "parallel": 1, "metric": "fwe", "seed": 0},
            "unknown hydra.sweeper.metric 'fwe'",
        ),
    ):
        with pytest.raises(InstantiationException) as refused:
            instantiate(node)
        assert explain(refused.value, []).startswith(said)


def tool(folder: Path, name: str, text: str) -> None:
    """An executable `name` in `folder`."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def job_script(*overrides: str) -> str:
    """What launcher=slurm would hand to sbatch for a sweep of one job."""
    submitit = pytest.importorskip("submitit")
    config = compose(["launcher=slurm", *overrides])
    context = HydraContext(config_loader=None, callbacks=None)  # type: ignore[arg-type]
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=lambda job: None, config=config
    )
    scripts = []

    def rendered(executor: Any, *_: Any) -> list[Any]:
        scripts.append(executor._executor._make_submission_file_text("COMMAND", "uid"))
        return []

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(submitit.AutoExecutor, "map_array", rendered)
        launcher.launch([["seed=0"]], 0)
    return scripts[0]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A login node, as far as submitit looks."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for name in ("sbatch", "srun", "scontrol"):
        tool(tmp_path / "bin", name, "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return tmp_path


def test_slurms_job_script(cluster: Path) -> None:
    script = job_script(
        f"hydra.sweep.dir={cluster}/sweep",
        *("trainer.devices=4", "trainer.num_nodes=2", "launcher.partition=gpu", "launcher.account=lab"),
        *("launcher.timeout_min=90", "launcher.mem_gb=64", "launcher.setup=['module load cuda']"),
        "+launcher.additional_parameters.mail-type=FAIL",
    )
    lines = script.splitlines()
    for expected in (
        *("--nodes=2", "--gpus-per-node=4", "--ntasks-per-node=1", "--cpus-per-task=32", "--mem=64GB", "--time=90"),
        *(
            "--partition=gpu",
            "--account=lab",
            "--mail-type=FAIL",
            "--signal=USR2@120",
            "--job-name=ltexp",
            "--open-mode=append",
        ),
    ):
        assert f"#SBATCH {expected}" in lines, script
    assert lines.index("module load cuda") < next(number for number, line in enumerate(lines) if "srun" in line)
    assert f"{cluster}/sweep/.submitit" in script


def test_slurm_gives_no_gpu_to_a_run_on_the_cpu(cluster: Path) -> None:
    assert "gpus" not in job_script("trainer.accelerator=cpu", f"hydra.sweep.dir={cluster}/sweep")


def test_the_jobs_of_a_submitted_sweep_want_one_allocation(cluster: Path) -> None:
    answer = ltexp("train", "launcher=slurm", "trainer.devices=1,2", f"paths.outputs={cluster}/outputs")
    assert answer.returncode == 1
    assert answer.stderr.strip() == (
        "ltexp: the jobs of this sweep ask for different allocations (trainer.devices=1 trainer.num_nodes=1; "
        "trainer.devices=2 trainer.num_nodes=1): submit a sweep for each"
    )
    assert not (cluster / "outputs").exists()


@pytest.mark.parametrize(
    ("typed", "job", "said"),
    [
        ((), {"devices": 2}, "wants 2 GPUs a node and would get 1: add launcher.gpus_per_node=2"),
        ((), {"num_nodes": 2}, "wants 2 nodes and would get 1: add launcher.nodes=2"),
        (("launcher.gpus_per_node=8",), {"devices": 2}, ""),
        (("trainer.devices=2",), {"devices": 2}, ""),
        (("launcher.nodes=2",), {"num_nodes": 2}, ""),
        ((), {"devices": 2, "accelerator": "cpu"}, ""),
    ],
)
def test_an_allocation_is_of_the_size_that_the_jobs_want(
    typed: tuple[str, ...], job: dict[str, Any], said: str
) -> None:
    """The launcher reads what all jobs have in common, and not what is swept, or in files that are."""
    jobs = [TrainerConfig(**{"accelerator": "gpu", **job})] * 2
    if not said:
        check_places(jobs, compose(["launcher=slurm", *typed]))
        return
    with pytest.raises(ConfigError, match=f"each job of this sweep {said}"):
        check_places(jobs, compose(["launcher=slurm", *typed]))


SBATCH = f"""#!{sys.executable}
'''Runs the job script at once, one node after the other's start, as SLURM would on two nodes.'''
import os, re, subprocess, sys
script = sys.argv[-1]
log = re.search("--output=(.*)", open(script).read()).group(1)
environment = os.environ | {{"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "2"}}
subprocess.Popen(["bash", script], env=environment, stdout=open(os.devnull, "w"), stderr=subprocess.STDOUT)
print("Submitted batch job 41")
"""
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
command = sys.argv[next(n for n, word in enumerate(sys.argv) if word.endswith("python") or "/python" in word):]
nodes = []
for number in range(2):
    own = {{"SLURM_PROCID": str(number), "SLURM_NODEID": str(number), "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}}
    nodes.append(subprocess.Popen(command, env=os.environ | own))
sys.exit(max(node.wait() for node in nodes))
"""


@pytest.mark.slow
def test_a_job_of_two_nodes_through_sbatch(cluster: Path) -> None:
    """SLURM played by two scripts: both nodes run the pickled job, find each other and train one run."""
    tool(cluster / "bin", "sbatch", SBATCH)
    tool(cluster / "bin", "srun", SRUN)
    sweep = (f"paths.outputs={cluster}", f"hydra.sweep.dir={cluster / 'sweep'}")
    answer = ltexp("train", "launcher=slurm", *TINY, *sweep, "trainer.num_nodes=2", "seed=3")
    assert answer.returncode == 0, answer.stderr
    finished = record(cluster / "sweep" / "0")
    assert finished["status"] == "finished"
    assert finished["environment"]["nodes"] == 2  # type: ignore[index]


@pytest.mark.slow
def test_a_sweep_through_submitit_runs_its_frozen_jobs(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = (f"paths.outputs={tmp_path}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    answer = ltexp("train", "launcher=local", *TINY, *sweep, "stage1.optimizer.lr=0.1,1e20")
    assert answer.returncode == 1
    assert "ltexp: job 2 of 2 (stage1.optimizer.lr=1e+20) failed: stage1: the loss is" in answer.stderr
    assert [record(tmp_path / "sweep" / job)["status"] for job in ("0", "1")] == ["finished", "failed"]
    frozen = OmegaConf.load(tmp_path / "sweep" / "frozen" / "0.yaml")
    ran = OmegaConf.load(tmp_path / "sweep" / "0" / "config.yaml")
    assert frozen == ran
    assert "launcher" not in ran
    assert "launcher" not in ran.choices


@pytest.mark.slow
def test_a_submitted_job_continues_after_its_time_limit(tmp_path: Path) -> None:
    """Submitit's own warning before the end of an allocation: the job is queued again and goes on, unasked."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = (f"paths.outputs={tmp_path}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    process = start("train", "launcher=local", *SMALL, *sweep, "method=ce", "stage1.epochs=40")
    wait_for(tmp_path / "sweep" / "0" / "stage1" / "resume.ckpt", 200)
    logs = next((tmp_path / "sweep" / ".submitit").glob("*/*_submitted.pkl")).parent  # named after the controller
    found = subprocess.run(["pgrep", "-P", logs.name], capture_output=True, text=True)
    os.kill(int(found.stdout), signal.SIGUSR2)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert record(tmp_path / "sweep" / "0")["status"] == "finished"
    assert "stage1  continues after epoch" in "".join(path.read_text() for path in logs.glob("*.out"))


@pytest.mark.slow
def test_a_sweep_through_joblib(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = (f"paths.outputs={tmp_path}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    answer = ltexp("train", "launcher=joblib", "launcher.n_jobs=2", *TINY, *sweep, "seed=0,1")
    assert answer.returncode == 0, answer.stderr
    assert [record(tmp_path / "sweep" / job)["seed"] for job in ("0", "1")] == [0, 1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("+dataset=cifar10_lt",), "+dataset=cifar10_lt: there is a choice of dataset already: leave out the +"),
        (
            ("-m", "hydra/sweeper=search", "sweep=mislas_forms"),
            "hydra.sweeper.jobs: Search takes no jobs: leave out hydra/sweeper=search or sweep=mislas_forms",
        ),
        (
            ("-m", "hydra/sweeper=basic", "sweep=mislas_forms"),
            "hydra.sweeper.jobs: BasicSweeperConf takes no jobs: leave out hydra/sweeper=basic or sweep=mislas_forms",
        ),
    ],
)
def test_choices_that_exclude_each_other_are_told_in_one_line(words: tuple[str, ...], line: str) -> None:
    found = ltexp("train", "--dry-run", *words)
    assert found.returncode != 0
    assert found.stderr.strip().splitlines()[-1] == f"ltexp: {line}"


def test_a_choice_that_a_file_makes_once_more_is_an_override() -> None:
    said = "Multiple values for loss@stage1.loss. To override a value use 'override loss@stage1.loss: ldam'"
    assert explain(ConfigCompositionException(said), ["method=mine"]) == (
        "a file chooses loss@stage1.loss once more: write '- override /loss@stage1.loss: ldam' in its defaults list"
    )
