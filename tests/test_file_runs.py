"""Whole runs on image files: refused, cached, and killed in each stage on two processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_trees import long_tail, write_odd, write_tree
from runs import assert_equal_weights, run_here, weights

from ltexp.data.__main__ import main as data_command
from ltexp.errors import ConfigError, DataError

SIZES = ("dataset=image_folder", "backbone=resnet10", "dataset.image_size=32", "dataset.resize=36")


def on_tree(tree: Path, *overrides: str) -> tuple[str, ...]:
    return (*SIZES, f"dataset.source.folder={tree}", *overrides)


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tree(tmp_path_factory.mktemp("files") / "tree", long_tail(4, 12, 2), validation=1)
    write_odd(folder / "train" / "class001")
    return folder


def test_a_run_on_files_and_on_their_copies(tree: Path, tmp_path: Path) -> None:
    settings = on_tree(tree, "method=crt", "stage1.epochs=1", "stage2.epochs=1", "evaluation.every=1")
    run_here(tmp_path / "files", *settings, "dataset.workers=2")
    assert record(tmp_path / "files")["status"] == "finished"
    run_here(tmp_path / "again", *settings, "dataset.workers=0")
    assert all(stage["cached"] for stage in record(tmp_path / "again")["stages"])  # the same training
    cache = tmp_path / "cache"
    command = [
        "cache",
        "image_folder",
        f"source.folder={tree}",
        f"out={cache}",
        "image_size=32",
        "resize=36",
        "workers=1",
    ]
    assert data_command(command) == 0
    run_here(tmp_path / "copies", *settings, f"dataset.cache={cache}", "dataset.workers=0")
    copies = record(tmp_path / "copies")
    assert copies["data"]["cache"] == str(cache)
    assert not any(stage["cached"] for stage in copies["stages"])  # other pixels, so another training
    assert copies["config_hash"] != record(tmp_path / "files")["config_hash"]


def test_what_does_not_fit_image_files_is_refused_before_training(tree: Path, tmp_path: Path) -> None:
    wrong = "augmentation@stage2.augmentation=crop_flip"
    with pytest.raises(
        ConfigError, match=r"stage2: augmentation crop_flip is for images in memory, and dataset image_f"
    ):
        run_here(tmp_path / "one", *on_tree(tree, "method=crt", wrong))
    with pytest.raises(
        ConfigError, match=r"random_resized_crop is for image files, and dataset digits_lt holds images in"
    ):
        run_here(tmp_path / "two", "augmentation@stage1.augmentation=random_resized_crop")
    with pytest.raises(DataError, match=r"holds no cache: run `ltexp data cache"):
        run_here(tmp_path / "three", *on_tree(tree, "method=crt", f"dataset.cache={tmp_path}"))
    assert not any(tmp_path.glob("*/stage1"))


@pytest.mark.parametrize(
    ("method", "views"),
    [
        ("bcl", ("augmentation=rand_and_two_contrastive_files",)),
        pytest.param("gpaco", ("augmentation=rand_and_contrastive_files",), marks=pytest.mark.slow),
        pytest.param(
            "glmc",
            tuple(f"augmentation.augmentations.{view}=rand_augment_files" for view in ("first", "second")),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_several_versions_of_files(method: str, views: tuple[str, ...], tree: Path, tmp_path: Path) -> None:
    """A step of a method that reads them; its own choice, of images in memory, is refused."""
    settings = on_tree(tree, f"method={method}", "dataset.workers=0", "trainer.fast_dev_run=true")
    with pytest.raises(ConfigError, match="is for images in memory, and dataset image_folder"):
        run_here(tmp_path / "refused", *settings)
    run_here(tmp_path / "run", *settings, *(f"augmentation@stage1.{view}" for view in views))
    assert np.isfinite(record(tmp_path / "run")["stages"][0]["train_loss"])


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    settings = (
        "trainer=ddp",
        "trainer.devices=2",
        "trainer.accelerator=cpu",
        "evaluation.figures=false",
        "logger=none",
    )
    command = [sys.executable, "-m", "ltexp.train", *settings, f"hydra.run.dir={folder}", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output


@pytest.mark.slow
def test_mislas_on_two_processes_killed_in_each_stage_ends_equal(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", long_tail(20, 100, 5))  # 600 images
    write_odd(tree / "train" / "class003")
    settings = on_tree(
        tree,
        "method=mislas",
        "stage1.epochs=3",
        "stage2.epochs=3",
        "stage_cache.enabled=false",
        "dataset.workers=1",
        f"paths.outputs={tmp_path}",
    )
    for stage in ("stage1", "stage2"):
        process = start(tmp_path / "killed", *settings, "resume=true")
        deadline = time.monotonic() + 900  # on a busy machine
        while not (tmp_path / "killed" / stage / "resume.ckpt").exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)  # its processes go with it
        process.communicate()
        assert not (tmp_path / "killed" / stage / "checkpoint.pt").exists()
    finish(start(tmp_path / "killed", *settings, "resume=true"))
    finish(start(tmp_path / "whole", *settings))
    for stage in ("stage1", "stage2"):
        assert_equal_weights(weights(tmp_path / "killed", stage), weights(tmp_path / "whole", stage))
    killed, whole = record(tmp_path / "killed"), record(tmp_path / "whole")
    assert killed["status"] == "finished"
    assert killed["metrics"] == whole["metrics"]
    assert killed["environment"]["world_size"] == 2
