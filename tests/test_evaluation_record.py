"""Records: written whole or not at all, read only if they can be trusted."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import record, write

from ltexp.errors import LtexpError
from ltexp.evaluation.record import (
    RecordError,
    environment,
    mark_failed,
    read_record,
    write_predictions,
    write_record,
)

METRICS = record()["metrics"]


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path, record())
    assert read_record(tmp_path) == read_record(tmp_path / "record.json") == record()
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_full_disk_leaves_the_old_record_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(tmp_path, record())

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(LtexpError, match="disk is full"):
        write_record(tmp_path, record(seed=1))
    assert read_record(tmp_path)["seed"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"schema": 1', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (json.dumps(record(seed=float("nan"))).encode(), "not JSON"),
        (b"[1, 2]", "not a record of ltexp"),
        (b'{"name": "package.json"}', "not a record of ltexp"),
        (b'{"schema": 99}', "schema 99"),
        (b'{"schema": 1, "status": "finished"}', "lacks method"),
        (json.dumps(record(status="done")).encode(), "unknown status 'done'"),
        (json.dumps(record(seed="zero")).encode(), "seed"),
        (json.dumps(record(class_counts="many")).encode(), "class_counts"),
        (json.dumps(record(metrics=[1])).encode(), "metrics: not a mapping"),
        (json.dumps(record(metrics=METRICS | {"all": 120})).encode(), "all is not a percentage"),
        (json.dumps(record(metrics=METRICS | {"all": None})).encode(), "all is not a percentage"),
        (json.dumps(record(metrics=METRICS | {"per_class": [1.0]})).encode(), "per_class"),
        (json.dumps(record(stages="none")).encode(), "stages"),
        (json.dumps(record(stages=[{"name": "stage1"}])).encode(), "stages: not a mapping"),
    ],
)
def test_what_cannot_be_trusted_is_refused_in_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=reason) as raised:
        read_record(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unfinished_record_needs_no_results(tmp_path: Path) -> None:
    running = record(status="running")
    for key in ("metrics", "stages", "selection", "finished"):
        del running[key]
    write_record(tmp_path, running)
    mark_failed(tmp_path, "the loss is nan")
    failed = read_record(tmp_path)
    assert (failed["status"], failed["error"]) == ("failed", "the loss is nan")


def test_a_finished_run_cannot_fail_any_more(tmp_path: Path) -> None:
    mark_failed(write(tmp_path), "a figure could not be drawn")
    assert read_record(tmp_path) == record()
    mark_failed(tmp_path / "nowhere", "no record yet")  # and it never raises


def test_predictions_are_plain_arrays(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    write_predictions(path, np.array([[0.5, 1.0]]), np.array([1]), np.array([0]), np.array([2.0]))
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays) == {"logits", "labels", "index", "feature_norms"}
        assert arrays["logits"].dtype == np.float32
        assert arrays["logits"].tolist() == [[0.5, 1.0]]


def test_the_environment_names_versions_but_not_the_machine() -> None:
    found = environment()
    assert set(found["versions"]) >= {"python", "ltexp", "torch", "pytorch-lightning", "hydra-core", "numpy"}
    assert os.uname().nodename not in json.dumps(found).split('"')
    assert found["cpus"] >= 1
