"""`ltexp reproduce run` on tiny images: what is missing is trained, once; killed, it goes on; a failure stays alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ltexp.report.records import find_runs
from ltexp.reproduce.__main__ import main

CELLS = "cells=mislas/3/*mixup/cifar100_lt/10"  # mixup, crt_mixup and lws_mixup: one stage 1
SMALL = (
    *("dataset.num_classes=3", "dataset.max_per_class=20", "stage1.epochs=2", "stage2.epochs=2", "evaluation.every=0"),
    *("evaluation.figures=false", "trainer.accelerator=cpu", "trainer.progress=false", "logger=none"),
)
pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with CIFAR-100 arrays of noise, 20 training images of each of the 100 classes, and no runs."""
    images = np.random.default_rng(0).integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8)
    folder = tmp_path / "data" / "cifar100"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        np.save(folder / f"{split}_images.npy", images)
        np.save(folder / f"{split}_labels.npy", np.arange(2000, dtype=np.int64) % 100)
    (folder / "classes.txt").write_text("\n".join(f"class{label}" for label in range(100)) + "\n")
    monkeypatch.setenv("LTEXP_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def records(folder: Path) -> dict[str, float]:
    """When each run was finished, by its folder."""
    return {str(run.folder): run.finished for run in find_runs([folder])[0]} if folder.exists() else {}


def table(folder: Path) -> str:
    assert main(["compare", CELLS, f"runs={folder}", f"out={folder}/table.csv"]) == 0
    return (folder / "table.csv").read_text()


def test_a_command_killed_three_times_ends_with_the_same_table(place: Path) -> None:
    assert main(["run", CELLS, "seeds=0,1", *SMALL, "paths.outputs=whole"]) == 0
    command = [sys.executable, "-m", "ltexp.reproduce", "run", CELLS, "seeds=0,1", *SMALL, "paths.outputs=killed"]
    for finished in (1, 3, 5):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        while len(records(place / "killed")) < finished and process.poll() is None:
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)  # its worker ends with it
        process.wait()
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert table(place / "killed") == table(place / "whole")
    done = records(place / "killed")
    assert len(done) == 6
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert records(place / "killed") == done  # nothing was run again


def test_stage_1_is_trained_once_and_precision_does_not_repeat_a_cell(place: Path) -> None:
    assert main(["run", CELLS, *SMALL]) == 0
    runs, _ = find_runs([place / "outputs"])
    trained = [stage["name"] for run in runs for stage in run.record["stages"] if not stage["cached"]]
    assert sorted(trained) == ["stage1", "stage2", "stage2"]
    before = records(place / "outputs")
    assert main(["run", CELLS, *SMALL, "trainer=bf16"]) == 0
    assert records(place / "outputs") == before


def test_a_failed_cell_does_not_stop_the_rest_and_the_status_tells(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # crt_mixup's stage 2 has one learning rate for all its parameters; lws_mixup has no parameter of this name
    wrong = "+stage2.lr_factors={classifier.weight: 1.0, nothing: 1.0}"
    assert main(["run", CELLS, *SMALL, wrong]) == 1
    assert {Path(folder).parent.name.split("-")[0] for folder in records(place / "outputs")} == {"mixup"}
    errors = capfd.readouterr().err
    assert "failed: ltexp train method=crt_mixup" in errors
    assert "failed: ltexp train method=lws_mixup" in errors


def test_without_data_it_says_so_before_training(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "cells=mislas/3/ce/cifar10_lt/10", *SMALL]) == 1
    assert "no run on cifar10_lt" in capfd.readouterr().err
    assert not (place / "outputs").exists()


def test_the_ordinary_launchers_run_it(place: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert main(["run", CELLS, *SMALL, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]) == 0
    assert len(records(place / "outputs")) == 3
