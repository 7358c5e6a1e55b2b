"""Loggers without a network: what they are told, read back from their files; what goes wrong with one ends no run."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pytorch_lightning.loggers import CSVLogger
from runs import TINY, composed

from ltexp.config import to_config
from ltexp.config.lightning import group_loggers
from ltexp.errors import ConfigError
from ltexp.run_folder import METRICS, read_metrics
from ltexp.training.loggers import _guard, close_loggers, log_epoch, make_loggers, readable_name, tags

SMALL = (*TINY, "trainer.accelerator=cpu", "trainer.progress=false", "evaluation.every=1")


def session_of(folder: Path, *overrides: str) -> Any:
    """As much of a session as loggers need."""
    plain = composed("method=ldam_drw", "dataset.imbalance_ratio=50", "seed=3", *overrides)
    data = SimpleNamespace(name="digits_lt", imbalance_ratio=50.0)
    return SimpleNamespace(config=to_config(plain), folder=folder, data=data)


def train(folder: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`ltexp train` in `folder`, without an account and with the network turned off."""
    command = [sys.executable, "-m", "ltexp.train", *SMALL, *overrides]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    clean |= {"OMP_NUM_THREADS": "1", "HOME": str(folder), "WANDB_CONSOLE": "off"} | environment
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=clean, timeout=400, stdin=subprocess.DEVNULL
    )


def offline_records(folder: Path) -> list[Any]:
    """The records of all offline Weights & Biases files below `folder`, up to where a killed run's file ends."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted(folder.rglob("*.wandb")):
        for content in log_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            found.append(record)
    return found


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format after a header of 7 bytes, as Weights & Biases writes it."""
    assert content.startswith(b":W&B")
    place, block, parts = 7, 32768, b""
    while place + 7 <= len(content):
        if block - place % block < 7:  # no record begins in the last bytes of a block
            place += block - place % block
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        part = content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind == 0 or len(part) < length:
            return
        parts = part if kind in (1, 2) else parts + part  # 1: a whole record; 2, 3, 4: its first, middle, last part
        if kind in (1, 4):
            yield parts


def config_of(records: list[Any]) -> dict[str, Any]:
    """What all records together say of the run's config."""
    known: dict[str, Any] = {}
    for record in records:
        for update in (*record.run.config.update, *record.config.update):
            known[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
    return known


def history_of(records: list[Any]) -> list[dict[str, Any]]:
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]


def test_a_run_is_named_and_tagged_by_what_it_is(tmp_path: Path) -> None:
    session = session_of(tmp_path, "stage1.loss.scale=20", "trainer.log_every=10", "paths.data=x")
    assert tags(session) == ["ldam_drw", "digits_lt", "ratio=50"]
    name = readable_name(session)
    assert name.startswith("ldam_drw digits_lt ratio=50 seed=3 ")
    assert "stage1.loss.scale=20" in name
    assert not any(key in name for key in ("log_every", "paths.data", "logger"))


def test_a_sweeps_folder_is_the_group_unless_one_is_chosen() -> None:
    plain = composed("logger=[csv,wandb]", small=False)
    group_loggers(plain, "2026-11-29")
    assert plain["logger"]["wandb"]["group"] == "2026-11-29"
    assert "group" not in plain["logger"]["csv"]
    group_loggers(plain, "another")
    assert plain["logger"]["wandb"]["group"] == "2026-11-29"


def test_a_logger_that_fails_is_left_out_and_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(CSVLogger):
        calls = 0

        def log_metrics(self, *_: Any, **__: Any) -> None:
            Failing.calls += 1
            raise ConnectionError("the server went away\nat length")

    loggers = [Failing(tmp_path), CSVLogger(tmp_path, name="", version="log")]
    for key, logger in zip(("mine", "csv"), loggers, strict=True):
        _guard(logger, key)
    for epoch in range(3):
        log_epoch(list(loggers), "stage1", {"epoch": epoch, "step": 7 * epoch + 7, "train_loss": 1.5, "test_few": None})
        loggers[1].finalize("success")  # of Lightning, at a stage's end
        loggers[1].save()
    close_loggers(list(loggers), "success")
    told = capsys.readouterr().err
    assert told == "ltexp: logger.mine failed and is left out from here on; the run goes on (the server went away)\n"
    assert Failing.calls == 1
    rows = read_metrics(tmp_path / "log" / METRICS)
    assert [(row["stage1/epoch"], row["step"]) for row in rows] == [("0.0", "7"), ("1.0", "14"), ("2.0", "21")]


def test_a_logger_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pytorch_lightning.loggers.wandb as module

    monkeypatch.setattr(module, "_WANDB_AVAILABLE", False)
    session = session_of(tmp_path, "logger=wandb", "logger.wandb.offline=true")
    with pytest.raises(ConfigError, match=r'^logger.wandb needs .* pip install "ltexp\[wandb\]"$|pip install'):
        make_loggers(session, "1")


@pytest.mark.slow
def test_without_a_key_or_a_network_wandb_is_refused_before_training(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    place = f"hydra.run.dir={tmp_path}/run"
    for environment, message in (
        ({}, "ltexp: logger.wandb: there is no key of a Weights & Biases account"),
        (
            {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"},
            "ltexp: logger.wandb needs an account and a network: http://127.0.0.1:9: ",
        ),
    ):
        answer = train(tmp_path, "method=ce", "logger=wandb", place, **environment)
        assert answer.returncode == 1
        assert message in answer.stderr
        assert "logger.wandb.offline=true" in answer.stderr
        assert "Traceback" not in answer.stderr
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_offline_wandb_run_has_config_curves_of_cached_stages_and_media(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    shared = ("stage_cache.enabled=true", "stage1.epochs=2", "stage2.epochs=1", "evaluation.figures=true")
    shared = (*shared, "logger.wandb.tags=[mine]", "logger.wandb.offline=true")
    swept = ("-m", "hydra.sweep.dir=outputs/sweep", "logger=[wandb,csv]")
    answer = train(tmp_path, *swept, *shared, "method=crt,lws")
    assert answer.returncode == 0, answer.stderr
    for job, method, cached in (("0", "crt", False), ("1", "lws", True)):
        folder = tmp_path / "outputs" / "sweep" / job
        records = offline_records(folder)
        config = config_of(records)
        assert config["stage1"]["optimizer"]["lr"] > 0
        assert config["choices"]["method"] == method
        (run,) = {record.run.run_group: record.run for record in records if record.HasField("run")}.values()
        assert run.run_group == "sweep"
        assert list(run.tags) == [method, "digits_lt", "ratio=6", "mine"]
        assert run.display_name.startswith(f"{method} digits_lt ratio=6 seed=0")
        assert json.loads((folder / "record.json").read_text())["stages"][0]["cached"] is cached
        history = history_of(records)
        for stage in ("stage1", "stage2"):
            losses = [row[f"{stage}/train_loss"] for row in history if f"{stage}/train_loss" in row]
            kept = [float(row["train_loss"]) for row in read_metrics(folder / stage / METRICS)]
            assert losses == pytest.approx(kept)
        logged = {"/".join(key.split("/")[:2]) for row in history for key in row}
        assert {"final/classes", "figures/confusion", "figures/reliability", "final/all"} <= logged
        assert (folder / "log" / METRICS).exists()


@pytest.mark.slow
def test_a_run_that_is_killed_offline_has_its_config(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    command = [sys.executable, "-m", "ltexp.train", *SMALL, "method=ce", "stage1.epochs=100000", "logger=wandb"]
    command += ["logger.wandb.offline=true", f"hydra.run.dir={tmp_path}/run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(read_metrics(tmp_path / "run" / "stage1" / METRICS)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(2)
    process.send_signal(signal.SIGKILL)  # its worker goes with it
    process.wait()
    config = config_of(offline_records(tmp_path / "run"))
    assert config["choices"]["method"] == "ce"
    assert config["stage1"]["epochs"] == 100000


@pytest.mark.slow
def test_tensorboard_has_config_curves_and_media_in_one_file(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shared = ("stage1.epochs=2", "stage2.epochs=2", "evaluation.figures=true", "hydra.run.dir=run")
    answer = train(tmp_path, "method=crt", "logger=tensorboard", *shared)
    assert answer.returncode == 0, answer.stderr
    (file,) = (tmp_path / "run" / "tensorboard").glob("events.*")
    events = accumulator.EventAccumulator(str(file), {"images": 0, "tensors": 0, "scalars": 0}).Reload()
    rows = read_metrics(tmp_path / "run" / "stage2" / METRICS)
    curve = events.Scalars("stage2/train_loss")
    assert [event.value for event in curve] == pytest.approx([float(row["train_loss"]) for row in rows])
    assert [event.step for event in curve] == [int(row["step"]) for row in rows]
    assert {"figures/confusion", "figures/reliability"} <= set(events.Tags()["images"])
    (table,) = events.Tensors("final/classes/text_summary")
    assert table.tensor_proto.string_val[0].decode().count("\n") == 5  # two lines of heading and four classes
    assert np.isfinite(events.Scalars("final/all")[0].value)
    assert "lr:" in (tmp_path / "run" / "tensorboard" / "hparams.yaml").read_text()
    assert "_hparams_/session_start_info" in events.summary_metadata
