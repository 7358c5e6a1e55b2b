"""Several processes and nodes: how they find each other, what is refused before, and what is told when one fails."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from runs import assert_equal_weights, composed, weights
from test_command_line import SMALL, record, start, train, wait_for

from ltexp.config import to_config
from ltexp.errors import ConfigError
from ltexp.launching import devices, nodes
from ltexp.processes.failure import first_failure, first_to_fail, forget_failure

TWO_NODES = ("trainer.num_nodes=2", "trainer.rendezvous=login:29500")


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM", "SUBMITIT", "CUDA_VISIBLE"))]:
        monkeypatch.delenv(name)


def test_the_world_is_the_devices_of_all_nodes() -> None:
    batch = "stage1.batch_size=64"
    assert to_config(composed(*TWO_NODES, "trainer.devices=4", batch)).trainer.world_size == 8
    with pytest.raises(ConfigError, match=r"invalid stage1\.batch_size=64: expected a multiple of the 6 devices"):
        composed(*TWO_NODES, "trainer.devices=3", batch)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.num_nodes=0", "invalid trainer.num_nodes=0: expected at least 1"),
        ("trainer.rendezvous=host:29500", "expected null for one node"),
        ("+trainer.nodes=2", "unknown key 'trainer.nodes': did you mean 'trainer.num_nodes'"),
    ],
)
def test_wrong_nodes_are_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(override)


def test_a_rendezvous_is_a_host_and_a_port() -> None:
    assert composed("trainer.num_nodes=2", "trainer.rendezvous='[fe80::1]:29500'")
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        composed("trainer.num_nodes=2", "trainer.rendezvous=host")


def test_nodes_meet_where_the_command_says_or_where_slurm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert nodes.meeting_point(to_config(composed()), folder_agreed=False) is None
    typed, silent = to_config(composed(*TWO_NODES)), to_config(composed("trainer.num_nodes=2"))
    assert nodes.meeting_point(typed, folder_agreed=True) == "login:29500"
    with pytest.raises(ConfigError, match="share one folder"):
        nodes.meeting_point(typed, folder_agreed=False)
    with pytest.raises(ConfigError, match="HOST:PORT, HOST one of the nodes"):
        nodes.meeting_point(silent, folder_agreed=True)
    for name, value in {"SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "41017"}.items():
        monkeypatch.setenv(name, value)
    assert nodes.meeting_point(silent, folder_agreed=True) == "gpu07:21017"
    monkeypatch.setenv("SLURM_NNODES", "4")
    with pytest.raises(ConfigError, match="but SLURM allocated 4"):
        nodes.meeting_point(silent, folder_agreed=True)
    monkeypatch.setenv("SLURM_LOCALID", "1")
    with pytest.raises(ConfigError, match="--ntasks-per-node=1"):
        nodes.meeting_point(silent, folder_agreed=True)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node7", "node7"),
        ("node[001-004,007],login", "node001"),
        ("gpu-a-12,gpu-b-3", "gpu-a-12"),
        ("rack[1,3]n2", "rack1n2"),
        ("rack[1-2]n[3-4]", "rack1n3"),
    ],
)
def test_the_first_host_of_slurms_list(hosts: str, first: str) -> None:
    assert nodes.first_host(hosts) == first


def test_a_node_joins_a_run_of_its_own_config_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "PATIENCE", 0.1)
    config = to_config(composed(*TWO_NODES))
    with pytest.raises(ConfigError, match="wrote no config"):
        nodes.join_run(tmp_path, config)
    plain = composed(*TWO_NODES, "resume=true")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain)))
    nodes.join_run(tmp_path, config)
    with pytest.raises(ConfigError, match=r"another config \(seed\): give every node the same command"):
        nodes.join_run(tmp_path, to_config(composed(*TWO_NODES, "seed=1")))


def test_the_first_failure_alone_is_kept(tmp_path: Path) -> None:
    assert first_failure(tmp_path) is None
    assert first_to_fail(tmp_path, "the loss is nan")
    assert not first_to_fail(tmp_path, "connection closed by peer")
    failure = first_failure(tmp_path)
    assert failure is not None
    assert failure.message == "the loss is nan"
    assert failure.node.startswith(socket.gethostname())
    forget_failure(tmp_path)
    assert first_failure(tmp_path) is None


@pytest.mark.parametrize(
    ("gpus", "settings", "message"),
    [
        ([], ("trainer.accelerator=gpu",), "there is no GPU here: set trainer.accelerator=cpu"),
        (["0"], ("trainer.accelerator=auto", "trainer.devices=4"), "trainer.devices=4, but there is 1 GPU"),
        (["0", "1"], ("trainer.accelerator=gpu", "trainer.devices=4"), "but there are 2 GPUs"),
        ([], ("trainer.accelerator=auto", "trainer.devices=4"), "trainer.devices=4, but there is no GPU here"),
        (["0"], ("trainer.accelerator=cpu", "trainer.devices=4"), None),
        (["0", "1"], ("trainer.accelerator=gpu", "trainer.devices=2"), None),
        (None, ("trainer.accelerator=gpu",), None),  # unknown: torch will tell
    ],
)
def test_devices_that_do_not_exist_are_one_line(
    gpus: list[str] | None, settings: tuple[str, ...], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "visible_gpus", lambda: gpus)
    trainer = to_config(composed(*settings)).trainer
    if message is None:
        devices.check_devices(trainer)
        return
    with pytest.raises(ConfigError, match=message):
        devices.check_devices(trainer)


def test_visible_gpus_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for value, expected in {
        "": [],
        "-1": [],
        "2, 3": ["2", "3"],
        "1,-1,2": ["1"],
        "GPU-1a2b": ["GPU-1a2b"],
    }.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert devices.visible_gpus() == expected
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H100 (UUID: GPU-2)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert devices.visible_gpus() == ["0", "1"]


FAILING = '''
import os, signal
from ltexp.errors import DataError
from ltexp.losses.cross_entropy import CrossEntropy


class Failing(CrossEntropy):
    """Fails on rank 1 in the third step."""

    calls = 0

    def per_sample(self, output, target):
        self.calls += 1
        if self.calls == 3 and os.environ["RANK"] == "1":
            how = os.environ["FAIL_HOW"]
            if how == "mistake":
                raise DataError("image 7.jpg is damaged")
            if how == "bug":
                raise ZeroDivisionError("a bug")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().per_sample(output, target)
'''


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    (tmp_path / "failing_loss.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return ("method=ce", "stage1.epochs=2", "stage1.loss._target_=failing_loss.Failing")


def own_lines(text: str) -> list[str]:
    """The lines of stderr but for those that torch's own log writes when a connection breaks, `[W1125 08:50 ...]`."""
    return [line for line in text.splitlines() if line.strip() and not re.match(r"\[[WE]\d{4} ", line)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "told", "last"),
    [
        ("mistake", "ltexp: rank 1: image 7.jpg is damaged", "ltexp: rank 1: image 7.jpg is damaged"),
        ("bug", "ltexp: rank 1: failing_loss.py, line ", "ltexp: rank 1: failing_loss.py, line "),
        ("killed", "ltexp: rank 1 was killed by signal 9", "ltexp: rank 1 was killed by signal 9"),
    ],
)
def test_all_end_when_one_rank_fails_and_its_error_is_told_first(
    how: str, told: str, last: str, failing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL_HOW", how)
    answer = train(tmp_path / "run", *failing, "trainer.devices=2", "stage_cache.enabled=false")
    ended = time.time()
    assert answer.returncode == 1
    lines = own_lines(answer.stderr)
    assert lines[0].startswith(told), answer.stderr
    assert lines[-1].startswith(last), answer.stderr
    assert len(lines) == 1, answer.stderr
    assert how != "bug" or "in per_sample: ZeroDivisionError: a bug (traceback: " in lines[0]
    assert ended - (tmp_path / "run" / ".failed").stat().st_mtime < 60
    assert record(tmp_path / "run")["status"] == "failed"
    assert str(record(tmp_path / "run")["error"]) in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mistake", "killed"])
def test_all_nodes_end_when_a_rank_of_one_fails(
    how: str, failing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL_HOW", how)
    settings = (
        *failing,
        "trainer.num_nodes=2",
        f"trainer.rendezvous=localhost:{free_port()}",
        f"paths.outputs={tmp_path}",
    )
    both = [start("train", *SMALL, *settings, f"hydra.run.dir={tmp_path / 'run'}") for _ in range(2)]
    errors = [own_lines(process.communicate(timeout=240)[1]) for process in both]
    assert [process.returncode for process in both] == [1, 1], errors
    assert [len(lines) for lines in errors] == [1, 1], errors
    own, other = sorted((lines[0] for lines in errors), key=lambda line: "another node" in line)
    assert own.startswith("ltexp: rank 1")
    assert other.startswith("ltexp: stopped by a failure on another node")


@pytest.mark.slow
def test_two_nodes_equal_one_process_and_a_third_command_is_refused(tmp_path: Path) -> None:
    assert train(tmp_path / "one", "method=mixup", "stage1.epochs=2").returncode == 0
    settings = ("method=crt", f"stage1.checkpoint={tmp_path / 'one'}", "stage2.epochs=2")
    assert train(tmp_path / "alone", *settings).returncode == 0
    settings += ("trainer.num_nodes=2", f"trainer.rendezvous=localhost:{free_port()}")
    together = (*SMALL, *settings, f"paths.outputs={tmp_path}", f"hydra.run.dir={tmp_path / 'together'}")
    first = start("train", *together)
    wait_for(tmp_path / "together" / "config.yaml")
    stranger = start("train", *together, "seed=1")
    assert "is being run with another config (seed)" in stranger.communicate(timeout=240)[1]
    second = start("train", *together)
    for process in (first, second):
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    assert_equal_weights(weights(tmp_path / "alone", "stage2"), weights(tmp_path / "together", "stage2"), 1e-5)
    environment = record(tmp_path / "together")["environment"]
    assert (environment["world_size"], environment["nodes"]) == (2, 2)  # type: ignore[index]


def test_a_missing_gpu_is_answered_before_torch_is_imported(tmp_path: Path) -> None:
    folder, began = tmp_path / "outputs", time.monotonic()
    answer = subprocess.run(
        [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "ltexp.train",
            "trainer.accelerator=gpu",
            f"paths.outputs={folder}",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        timeout=120,
    )
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1] == (
        "ltexp: trainer.accelerator=gpu, but there is no GPU here: set trainer.accelerator=cpu"
    )
    assert "| torch\n" not in answer.stderr
    assert not folder.exists()
    assert time.monotonic() - began < 60
