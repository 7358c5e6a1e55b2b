"""What moved since a run began: its folder, its data, what it started from. All is known by contents, not by place."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from image_trees import make_image, write_tree
from records import record
from runs import composed, run_here

from ltexp import evaluate
from ltexp.config import to_config
from ltexp.config.build import build
from ltexp.config.identity import other_keys
from ltexp.config.places import is_moved
from ltexp.data.files.cache import make_cache
from ltexp.data.types import LongTailedData
from ltexp.errors import CheckpointError, ConfigError, DataError
from ltexp.report.__main__ import main as report
from ltexp.training.description import check_same_things

SIZES = (
    *("dataset=image_folder", "backbone=resnet10", "dataset.image_size=32", "dataset.resize=36", "dataset.workers=0"),
    *("method=crt", "stage1.epochs=1", "stage2.epochs=1", "evaluation.figures=false", "trainer.progress=false"),
    *("trainer.accelerator=cpu", "logger=none", "evaluation.every=0", "stage_cache.enabled=false"),
)


@pytest.mark.parametrize(
    ("key", "one", "other", "moved"),
    [
        ("dataset.source.folder", "birds", "/new/birds", True),
        ("dataset.cache", "/a", "/b", True),
        ("dataset.cache", None, "/b", False),
        ("stage2.teacher", "/a/run", "/b/run", True),
        ("stage2.teacher", "stage1", "/b/run", False),
        ("stage4.teachers.few", "/a/run", "/b/run", True),
        ("stage4.teachers.few", "stage3", "/b/run", False),
        ("stage10.checkpoint", "/a/run", "/b/run", True),
        ("pretext.init.backbone", "/a/run", "/b/run", True),
        ("stage2.init.backbone", "/a/run", "/b/run", True),
        ("stage1.checkpoint", None, "/b/run", False),
        ("backbone.weights", "/a.pt", "/b.pt", True),
        ("backbone.weights", "IMAGENET1K_V1", "IMAGENET1K_V2", False),
        ("dataset.name", "a", "b", False),
        ("stage1.loss.path", "/a", "/b", False),
    ],
)
def test_which_keys_are_places(key: str, one: object, other: object, moved: bool) -> None:
    assert is_moved(key, one, other) is moved


def test_a_run_is_the_same_wherever_its_data_lies() -> None:
    plain = composed(*SIZES, "dataset.source.folder=birds")
    one, other = to_config(plain), to_config(composed(*SIZES, "dataset.source.folder=/new/birds", "seed=1"))
    assert other_keys(one, other) == ["seed"]


def test_a_run_is_not_continued_on_other_data_or_from_other_files(tmp_path: Path) -> None:
    base = {"content_hash": "a", "validation_hash": "", "test_hash": "b", "started_from": {"stage2": ["c"]}}
    check_same_things(tmp_path, base)  # nothing has begun
    began = record(status="running") | base
    (tmp_path / "record.json").write_text(json.dumps(began))
    check_same_things(tmp_path, base)
    for key in base:
        with pytest.raises(CheckpointError, match=f"began with other .*{key} "):
            check_same_things(tmp_path, base | {key: "other"})
    (tmp_path / "record.json").write_text(json.dumps(began | {"test_hash": ""}))
    check_same_things(tmp_path, {"content_hash": "of today"})  # hashes of before were others


def test_evaluate_takes_the_place_where_the_data_lies_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = write_tree(tmp_path / "tree", [8, 4], size=(40, 36))
    run_here(tmp_path / "run", *SIZES, f"dataset.source.folder={tree}")
    before = json.loads((tmp_path / "run" / "record.json").read_text())["metrics"]["all"]
    tree.rename(tmp_path / "elsewhere")
    (tmp_path / "run").rename(tmp_path / "kept")
    words = [str(tmp_path / "kept"), f"dataset.source.folder={tmp_path / 'elsewhere'}"]
    assert evaluate.evaluate(*evaluate.parse(words)) == 0
    said = capsys.readouterr().out
    assert "other test data" not in said
    kept = json.loads((tmp_path / "kept" / "evaluations" / "stage2.json").read_text())
    assert kept["metrics"]["all"] == before
    assert report([str(tmp_path / "kept")]) == 0
    make_image(7, 7).save(next((tmp_path / "elsewhere" / "test" / "class000").iterdir()))
    assert evaluate.evaluate(*evaluate.parse(words)) == 0
    assert "note: this is other test data than the run's" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="the run's dataset has no such key"):
        evaluate.evaluate(*evaluate.parse([words[0], "dataset.source.train=x.txt"]))


def test_shots_are_the_records_and_nothing_else_comes_from_other_training_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = write_tree(tmp_path / "tree", [8, 4], size=(40, 36))
    run_here(tmp_path / "run", *SIZES, f"dataset.source.folder={tree}", "evaluation.few_shot_below=6")
    before = json.loads((tmp_path / "run" / "record.json").read_text())["metrics"]
    for number in range(4):  # the class of 4 has 8 now
        make_image(9, number).save(tree / "train" / "class001" / f"more{number}.png")
    assert evaluate.evaluate(*evaluate.parse([str(tmp_path / "run")])) == 0
    said = capsys.readouterr().out
    assert "note: these are other training images than the run's (16 images where the record has 12)" in said
    kept = json.loads((tmp_path / "run" / "evaluations" / "stage2.json").read_text())["metrics"]
    assert [kept[group] for group in ("medium", "few")] == [before[group] for group in ("medium", "few")]
    assert before["few"] is not None
    for word in ("classifier=logit_adjusted", "features=true", "shift=forward5"):
        with pytest.raises(DataError, match=f"^{word} is of the run's training images, and these are others"):
            evaluate.evaluate(*evaluate.parse([str(tmp_path / "run"), word]))
    assert [path.name for path in (tmp_path / "run" / "evaluations").iterdir()] == ["stage2.json"]


def test_keys_that_change_no_test_image_are_refused_and_precisions_are_kept_apart(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", [8, 4], size=(40, 36))
    run_here(tmp_path / "run", *SIZES, f"dataset.source.folder={tree}")
    for word in ("dataset.resize=64", "dataset.channel_mean=[0,0,0]"):
        with pytest.raises(ConfigError, match=re.escape(f"{word} has no effect: test images are prepared as in")):
            evaluate.evaluate(*evaluate.parse([str(tmp_path / "run"), word]))
    for precision in ("32-true", "bf16-mixed"):
        assert evaluate.evaluate(*evaluate.parse([str(tmp_path / "run"), f"precision={precision}"])) == 0
    files = sorted((tmp_path / "run" / "evaluations").iterdir())
    assert [path.name for path in files] == ["stage2.json", "stage2_bf16-mixed.json"]
    assert [json.loads(path.read_text())["precision"] for path in files] == ["32-true", "bf16-mixed"]


def test_images_that_the_run_was_trained_on_are_no_test_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = write_tree(tmp_path / "tree", [8, 4], test=3, validation=2, size=(40, 36))
    lists = ("dataset=image_list", "dataset.source.train=train.txt", "dataset.source.validation=val.txt")
    run_here(tmp_path / "run", *SIZES[1:], *lists, f"dataset.source.folder={tree}", "dataset.test.fraction=0.25")
    for words, noted in (("test", False), ("val", True)):
        words = [str(tmp_path / "run"), f"dataset.source.test={words}.txt"]
        assert evaluate.evaluate(*evaluate.parse(words)) == 0
        note = "note: 4 of these 4 test images are the run's validation images"
        assert (note in capsys.readouterr().out) is noted
    others = ["dataset=image_folder", f"dataset.source.folder={tree / 'train'}", "dataset.test.fraction=0.5"]
    trained_on = (
        rf"the run was trained on \d of these 6 test images, such as {tree}/train/class00\d/.*: leave them out$"
    )
    for words, message in (
        (others, trained_on),
        (["dataset.test.fraction=0.5"], r"^dataset\.test\.fraction= would hold out images that the run was trained on"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate.evaluate(*evaluate.parse([str(tmp_path / "run"), *words]))


def test_a_run_from_small_copies_is_evaluated_without_them(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", [8, 4], size=(40, 36))
    lists = ("dataset.source.train=train.txt", "dataset.source.test=test.txt")
    typed = (*SIZES[1:], "dataset=image_list", f"dataset.source.folder={tree}", *lists)
    data: LongTailedData = build(to_config(composed(*typed)).dataset, root=tree)
    make_cache(tmp_path / "cache", list(data.splits.values()), 36, 1)
    run_here(tmp_path / "run", *typed, f"dataset.cache={tmp_path / 'cache'}")
    run = str(tmp_path / "run")
    assert evaluate.evaluate(*evaluate.parse([run, "crops=8"])) == 0  # 40 pixels, of the files
    (tree / "test").rename(tmp_path / "away")
    with pytest.raises(DataError, match=rf"^crops= reads the test images' own files, .* 4 of 4 .*: {tree}/test/class"):
        evaluate.evaluate(*evaluate.parse([run, "crops=8"]))
    (tmp_path / "away").rename(tree / "test")
    shutil.rmtree(tmp_path / "cache")
    for words in (["dataset.cache=null"], ["dataset.cache=null", "dataset.leave_out=null"]):
        assert evaluate.evaluate(*evaluate.parse([run, *words])) == 0


@pytest.mark.slow
def test_a_run_goes_on_where_its_folder_and_its_data_are_now(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", [8, 4], size=(40, 36))
    run_here(tmp_path / "run", *SIZES, f"dataset.source.folder={tree}")
    finished = json.loads((tmp_path / "run" / "record.json").read_text())
    shutil.rmtree(tmp_path / "run" / "stage2")  # as if it had been killed after stage 1
    (tmp_path / "run" / "record.json").write_text(json.dumps(finished | {"status": "running"}))
    tree.rename(tmp_path / "elsewhere")
    (tmp_path / "run").rename(tmp_path / "kept")

    def resumed(folder: Path) -> subprocess.CompletedProcess[str]:
        places = [f"dataset.source.folder={folder}", f"hydra.run.dir={tmp_path / 'kept'}", "resume=true"]
        places.append(f"paths.outputs={tmp_path}")
        command = [sys.executable, "-m", "ltexp.train", *SIZES, *places]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    other = write_tree(tmp_path / "other", [8, 4], size=(36, 40))
    refused = resumed(other)
    assert refused.returncode == 1
    assert "began with other training data" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = resumed(tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "kept" / "record.json").read_text())
    assert (again["status"], again["metrics"]) == ("finished", finished["metrics"])
