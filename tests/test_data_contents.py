"""What identifies data is what it holds: the same names with other pictures, texts or class names are other data."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_trees import long_tail, make_image, write_tree
from records import write
from runs import composed, run_here

from ltexp.config import to_config
from ltexp.config.build import build
from ltexp.data.files import contents
from ltexp.data.files.contents import contents_hash
from ltexp.data.files.split import FileSplit
from ltexp.data.types import LongTailedData
from ltexp.evaluation.record import read_record
from ltexp.report.records import find_runs
from ltexp.run_folder import FEATURE_NORMS
from ltexp.training.fingerprint import fingerprint_of
from ltexp.training.session import Session
from ltexp.user_cache import user_cache

SIZES = ("dataset=image_folder", "backbone=resnet10", "dataset.image_size=32", "dataset.resize=36")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", long_tail(4, 8, 2))


def dataset(tree: Path, *overrides: str) -> LongTailedData:
    words = (*SIZES, f"dataset.source.folder={tree}", "method=ce", *overrides)
    config = to_config(composed(*words))
    data: LongTailedData = build(config.dataset, root=config.paths.data)
    return data


def repaint(path: Path) -> None:
    """Another picture, of equal name and time of change."""
    before = path.stat()
    make_image(3, 77).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def first(tree: Path, split: str) -> Path:
    return sorted(path for path in (tree / split).rglob("*") if path.is_file())[0]


def test_a_copy_is_the_same_data_until_a_picture_changes(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(tree, copy)
    one, other = dataset(tree), dataset(copy)
    assert (one.content_hash, one.test_hash) == (other.content_hash, other.test_hash)
    repaint(first(copy, "train"))
    changed = dataset(copy)
    assert changed.content_hash != one.content_hash
    assert changed.test_hash == one.test_hash
    repaint(first(copy, "test"))
    assert dataset(copy).test_hash != one.test_hash


def test_validation_images_are_known_by_what_they_hold(tree: Path) -> None:
    (tree / "test").rename(tree / "val")
    held = ("dataset.test.fraction=0.5",)
    before = dataset(tree, *held)
    assert (before.validation_hash != "", dataset(tree, *held).validation_hash) == (True, before.validation_hash)
    repaint(first(tree, "val"))
    assert dataset(tree, *held).validation_hash != before.validation_hash
    shutil.rmtree(tree / "val")
    assert dataset(tree, *held).validation_hash == ""


def test_the_stage_cache_gives_no_run_the_model_of_other_pictures(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy)
    repaint(first(copy, "train"))
    for name, folder in (("one", tree), ("again", tree), ("other", copy)):
        words = (*SIZES, f"dataset.source.folder={folder}", "dataset.workers=0", "method=ce", "stage1.epochs=1")
        run_here(tmp_path / name, *words)
    records = {name: read_record(tmp_path / name) for name in ("one", "again", "other")}
    assert [record["stages"][0]["cached"] for record in records.values()] == [False, True, False]
    assert records["one"]["content_hash"] == records["again"]["content_hash"] != records["other"]["content_hash"]


def test_a_cached_stage_brings_no_measurements_of_other_pictures(tree: Path, tmp_path: Path) -> None:
    words = (*SIZES, f"dataset.source.folder={tree}", "dataset.workers=0", "method=ce", "stage1.epochs=1")
    asked = ("evaluation.every=1",)
    run_here(tmp_path / "one", *words, *asked)
    run_here(tmp_path / "again", *words, *asked, "evaluation.figures=true")
    repaint(first(tree, "test"))
    run_here(tmp_path / "other", *words, *asked)
    stages = {name: read_record(tmp_path / name)["stages"][0] for name in ("one", "again", "other")}
    assert [stage["cached"] for stage in stages.values()] == [False, True, True]
    assert stages["one"]["best_on_test"] == stages["again"]["best_on_test"] is not None
    assert stages["other"]["best_on_test"] is None
    norms = {name: (tmp_path / name / "stage1" / FEATURE_NORMS).exists() for name in stages}
    assert norms == {"one": True, "again": True, "other": False}


@pytest.mark.parametrize(
    ("method", "stage", "further", "reads"),
    [
        ("ce", "stage1", (), {}),
        ("glag", "stage2", (), {"validation"}),
        ("lfme", "stage4", (), {"validation"}),
        ("ce", "stage1", ("callbacks=early_stopping", "evaluation.every=1"), {"validation", "test"}),
        ("kd", "stage2", (), {"validation", "test"}),  # with a schedule that goes by a metric
    ],
)
def test_a_stage_that_is_measured_while_it_trains_is_another_where_the_images_are(
    method: str, stage: str, further: tuple[str, ...], reads: set[str], tmp_path: Path
) -> None:
    config = to_config(composed(f"method={method}", "dataset.validation.fraction=0.2", *further))
    if method == "kd":
        config.stages[stage].schedule["monitor"] = "validation_all"
    data: LongTailedData = build(config.dataset, root=config.paths.data)

    def fingerprint(**changes: Any) -> str:
        session = Session(config, tmp_path, replace(data, **changes), torch.device("cpu"))
        return fingerprint_of(session, stage, config.stages[stage], dict.fromkeys(config.stages, "earlier"))

    fewer = {"validation": data.validation.take(np.arange(1, len(data.validation)))}  # type: ignore[union-attr,arg-type]
    assert fingerprint() == fingerprint()
    assert (fingerprint(**fewer) != fingerprint()) is ("validation" in reads)
    assert (fingerprint(validation=None) != fingerprint()) is ("validation" in reads)
    assert (fingerprint(test_hash="other") != fingerprint()) is ("test" in reads)


def test_what_was_sampled_is_not_read_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = dataset(tree).train
    assert isinstance(split, FileSplit)
    before = contents_hash(split)
    read: list[Any] = []
    sample = contents._sample
    monkeypatch.setattr(contents, "_sample", lambda *given: read.append(given) or sample(*given))
    assert contents_hash(split) == before
    assert not read
    repaint(first(tree, "train"))
    os.utime(first(tree, "train"))  # as a changed file has it
    assert contents_hash(split) != before
    assert len(read) == 1


@pytest.mark.parametrize("content", [b"", b"not a file of numpy", b"PK\x03\x04 truncated"])
def test_a_damaged_memory_of_samples_is_made_again(
    content: bytes, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    split = dataset(tree).train
    assert isinstance(split, FileSplit)
    before = contents_hash(split)
    (memo,) = (tmp_path / "cache" / "ltexp" / "contents").iterdir()
    memo.write_bytes(content)
    assert contents_hash(split) == before
    assert len(np.load(memo)["keys"]) == len(split)


def test_long_files_that_differ_in_their_middle_or_end_differ(tmp_path: Path) -> None:
    hashes = set()
    for place in (0, 50_000, 99_999):
        file = bytearray(100_000)
        file[place] = 1
        (tmp_path / "image.jpg").write_bytes(file)
        one = np.zeros(1, dtype=np.int64)
        split = FileSplit(labels=one, index=one, paths=np.array([b"image.jpg"]), root=str(tmp_path))
        hashes.add(contents_hash(split))
    assert len(hashes) == 3


def test_class_names_and_test_samples_are_part_of_what_data_is() -> None:
    def data(*overrides: str) -> LongTailedData:
        config = to_config(composed("method=ce", *overrides))
        found: LongTailedData = build(config.dataset, root=config.paths.data)
        return found

    fewer = data("dataset.num_classes=9")
    assert data().test_hash == data("dataset.subset.seed=1").test_hash != fewer.test_hash


def test_runs_on_other_data_are_no_seeds_of_one_experiment(tmp_path: Path) -> None:
    for name, seed, content in (("a", 0, "x"), ("b", 1, "x"), ("c", 2, "y"), ("d", 3, None)):
        write(tmp_path / name, seed=seed, content_hash=content)
    runs, _ = find_runs([tmp_path])
    by_seed = {run.record["seed"]: run.identity for run in runs}
    assert by_seed[0] == by_seed[1]
    assert len(set(by_seed.values())) == 3  # a record of before contents were kept stands apart


def test_of_a_large_split_files_are_taken_evenly(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = dataset(tree).train
    assert isinstance(split, FileSplit)
    monkeypatch.setattr(contents, "MOST", 3)
    looked_at: list[bytes] = []
    sample = contents._sample
    monkeypatch.setattr(contents, "user_cache", lambda: tree / "no such memory")
    monkeypatch.setattr(contents, "_sample", lambda path, length: looked_at.append(path) or sample(path, length))
    contents_hash(split)
    kept = [os.path.join(os.fsencode(split.root), split.paths[row]) for row in (0, (len(split) - 1) // 2, -1)]
    assert sorted(looked_at) == sorted(kept)


def test_a_user_without_a_home_has_a_place_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert user_cache().name == "ltexp"
