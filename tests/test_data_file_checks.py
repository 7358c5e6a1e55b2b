"""What is wrong with lists, folders and image files is said in one line each, with file and line, before training."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from image_trees import ODD, long_tail, truncate, write_odd, write_tree
from runs import composed, run_here

from ltexp.data.__main__ import main
from ltexp.data.commands import catalog
from ltexp.errors import ConfigError, DataError
from ltexp.evaluation.record import read_record
from ltexp.launching.sweep import check_data

SIZES = long_tail(5, 12, 2)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", SIZES, test=2)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    code = main(words)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, [line for line in (captured.out + captured.err).splitlines() if line]


def check_list(capsys: pytest.CaptureFixture[str], tree: Path, *words: str) -> tuple[int, list[str]]:
    return run(capsys, "check", "image_list", f"source.folder={tree}", "source.test=test.txt", *words)


def edit(tree: Path, change: Callable[[list[str]], None], name: str = "train.txt") -> None:
    lines = (tree / name).read_text().splitlines()
    change(lines)
    (tree / name).write_text("".join(f"{line}\n" for line in lines))


def replace_line(number: int, text: str) -> Callable[[list[str]], None]:
    def change(lines: list[str]) -> None:
        lines[number - 1] = text

    return change


FIRST = "train/class000/00000.jpg"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (replace_line(3, "train/x.jpg -1"), "train.txt, line 3: expected a label from 0 at its end, found '-1'"),
        (replace_line(3, "train/x.jpg 3.0"), "train.txt, line 3: expected a label from 0 at its end, found '3.0'"),
        (replace_line(3, "train/x.jpg"), "train.txt, line 3: expected a path and a label, found 'train/x.jpg'"),
        (replace_line(3, ""), "train.txt, line 3: it is blank"),
        (replace_line(3, "../x.jpg 0"), "train.txt, line 3: '../x.jpg' is outside the dataset's folder"),
        (replace_line(3, "/etc/x.jpg 0"), "train.txt, line 3: '/etc/x.jpg' is outside the dataset's folder"),
        (replace_line(3, "train\\x.jpg 0"), "train.txt, line 3: 'train\\\\x.jpg': write / between folders"),
        (replace_line(3, f"{FIRST.replace('/', '//')} 0"), f"train.txt, line 3: '{FIRST}' is also line 1"),
        (replace_line(3, "train/./class000/.//00000.jpg 0"), f"train.txt, line 3: '{FIRST}' is also line 1"),
        (replace_line(3, f"{FIRST} 1"), f"train.txt, line 3: '{FIRST}' is also line 1, there with label 0"),
        (
            replace_line(3, "train/x.jpg 1234567890"),
            "train.txt, line 3: expected a label from 0 at its end, found '1234567890'",
        ),
        (
            replace_line(3, "train/x.jpg 900"),
            "train.txt: label 900 is higher than there are lines; labels count from 0",
        ),
    ],
)
def test_a_line_that_is_wrong_is_named(
    tree: Path, capsys: pytest.CaptureFixture[str], change: Callable[[list[str]], None], line: str
) -> None:
    edit(tree, change)
    assert check_list(capsys, tree) == (1, [f"image_list: {line}"])


def test_labels_out_of_range_and_gaps(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = check_list(capsys, tree, "source.num_classes=4")
    assert code == 1
    last = sum(SIZES)
    assert lines[0] == f"image_list: train.txt, line {last - 1}: label 4 is not one of 0 to 3 (num_classes)"
    assert any(line.strip().startswith("test.txt, line 9: label 4 is not") for line in lines)
    assert check_list(capsys, tree, "source.num_classes=7") == (
        1,
        ["image_list: train.txt: no line has label 5, 6 (of 0 to 6)"],
    )
    for name in ("train.txt", "test.txt"):
        edit(tree, lambda lines: lines.__setitem__(slice(None), [f"{x[:-1]}{int(x[-1]) + 1}" for x in lines]), name)
    expected = "image_list: train.txt: no line has label 0 (of 0 to 5); labels count from 0"
    assert check_list(capsys, tree) == (1, [expected])


def test_many_lines_are_counted(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All kinds of problems of all lists at once, each with its first lines."""
    edit(tree, lambda lines: lines.__setitem__(slice(None), [line.replace(" ", "|") for line in lines]))
    edit(tree, replace_line(2, "../x.jpg 0"), "test.txt")
    code, lines = check_list(capsys, tree)
    assert code == 1
    assert len(lines) == 5
    assert lines[3] == f"  train.txt: {sum(SIZES) - 3} more lines with no path and label"
    assert lines[4] == "  test.txt, line 2: '../x.jpg' is outside the dataset's folder"


@pytest.mark.parametrize("spelling", ["{}", "./{}", "{folder}/{}", "/{folder}//./{}", "train//class000/00000.jpg"])
def test_an_image_of_the_training_list_is_no_test_image(
    spelling: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(tree, replace_line(2, f"{spelling.format(FIRST, folder=tree)} 0"), "test.txt")
    expected = f"image_list: test.txt, line 2: '{FIRST}' is also in train.txt, line 1"
    assert check_list(capsys, tree) == (1, [expected])


def test_roots_and_lists_that_are_not_there(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "check", "image_list", "source.folder=nowhere", f"root={tree}") == (
        1,
        [f"image_list: {tree}/nowhere: there is no such folder"],
    )
    assert run(capsys, "check", "image_folder") == (
        1,
        ["image_folder: no folder is given: set dataset.source.folder, below the data root or absolute"],
    )
    assert check_list(capsys, tree, "source.train=no.txt") == (
        1,
        [f"image_list: {tree}/no.txt: No such file or directory"],
    )
    (tree / "empty.txt").write_text("\n")
    assert check_list(capsys, tree, "source.train=empty.txt") == (1, [f"image_list: {tree}/empty.txt is empty"])


def test_a_list_of_another_dataset_is_told_by_its_counts(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("source.train=train.txt", "source.validation=null", "source.test=test.txt")
    code, lines = run(capsys, "check", "imagenet_lt", f"source.folder={tree}", *words)
    assert code == 1
    assert lines[0] == (
        f"imagenet_lt: train.txt: {sum(SIZES)} images, 2 to 12 a class, and the published train list has 115,846 "
        "images, 5 to 1,280 a class"
    )
    assert lines[2] == "  train.txt: no line has label 5, 6, 7, 8, 9 and 990 more (of 0 to 999)"


def test_folders_without_images_or_without_their_class(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "train" / "class009").mkdir()
    (tree / "test" / "dog").mkdir()
    code, lines = run(capsys, "check", "image_folder", f"source.folder={tree}")
    assert code == 1
    assert lines == [
        f"image_folder: {tree}/train: no images of 1 classes: class009",
        f"  {tree}/test: 1 folders that are no training class: dog",
    ]


def test_misnamed_splits_and_files(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("check", "image_folder", f"source.folder={tree}")
    (tree / os.fsdecode(b"train/class000/caf\xe9.jpg")).write_bytes(b"")
    assert run(capsys, *words) == (
        1,
        [f"image_folder: {tree}: 1 names of files that are not UTF-8: b'train/class000/caf\\xe9.jpg'"],
    )
    (tree / "validation").mkdir()
    expected = f"image_folder: {tree}/validation: folders of splits are called train, val and test"
    assert run(capsys, *words) == (1, [expected])


def test_missing_and_damaged_images_are_found_counted_and_left_out(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fast check finds what is missing, the full one what is damaged as well; a run goes on without them."""
    write_odd(tree / "train" / "class004")
    with (tree / "train.txt").open("a") as file:
        file.writelines(f"train/class004/{name} 4\n" for name in ODD)
    assert check_list(capsys, tree, "decode=true")[0] == 0
    truncate(tree / "train/class001/00002.jpg")
    (tree / "test/class000/00012.jpg").write_bytes(b"no image")
    (tree / "train/class000/00003.jpg").unlink()
    gone = f"1 of {sum(SIZES) + len(ODD)} train images are missing: {tree}/train/class000/00003.jpg (train.txt, line 4)"
    code, lines = check_list(capsys, tree)
    assert (code, lines[0]) == (1, f"image_list: {gone}")
    bad = tree / "bad.txt"
    code, lines = check_list(capsys, tree, "decode=true", f"unreadable={bad}")
    assert (code, lines[0]) == (1, f"image_list: {gone}")
    damaged = f"{tree}/train/class001/00002.jpg (train.txt, line {SIZES[0] + 3})"
    assert lines[1].startswith(f"  1 of {sum(SIZES) + len(ODD)} train images cannot be read: {damaged}: ")
    assert lines[2].startswith(
        f"  1 of 10 test images cannot be read: {tree}/test/class000/00012.jpg (test.txt, line 1)"
    )
    assert bad.read_text().splitlines() == [
        "test/class000/00012.jpg",
        "train/class000/00003.jpg",
        "train/class001/00002.jpg",
    ]
    assert check_list(capsys, tree, "source.folder=" + str(tree))[0] == 1


def test_a_list_of_unreadable_images_is_kept_where_none_was_looked_at(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("check", "image_folder", f"source.folder={tree}", "decode=true", f"unreadable={tree / 'bad.txt'}")
    (tree / "bad.txt").write_text(f"{FIRST}\n")
    (tree / "train" / "class009").mkdir()
    told = f"  {tree}/bad.txt is not written: no image was looked at"
    assert run(capsys, *words) == (1, [f"image_folder: {tree}/train: no images of 1 classes: class009", told])
    (tree / "train" / "class009").rmdir()
    assert run(capsys, *words, "leave_out=absent.txt")[1][-1] == told
    assert run(capsys, *words, "imbalance=nope")[1][-1] == told
    fast = [word for word in words if word != "decode=true"]
    none = f"  {tree}/bad.txt is not written: no image is missing, and none was decoded (decode=true)"
    assert run(capsys, *fast)[1][-1] == none
    assert (tree / "bad.txt").read_text() == f"{FIRST}\n"
    code, lines = run(capsys, *words)
    assert (code, lines[-1]) == (
        0,
        f"  {tree}/bad.txt: the paths of 0 unreadable images, for dataset.leave_out={tree}/bad.txt",
    )
    assert run(capsys, "check", "digits_lt", words[-1])[1] == [
        "ltexp data: unreadable=FILE is a file for dataset.leave_out, a key that digits_lt does not have"
    ]


def test_the_check_leaves_out_what_a_run_does(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However its paths are spelled; a further list has what was left out before as well."""
    truncate(tree / FIRST)
    bad = tree / "bad.txt"
    bad.write_text(f"{tree}/./{FIRST.replace('/', '//')}\n\n")
    assert check_list(capsys, tree, "decode=true")[0] == 1
    words = ("decode=true", f"leave_out={bad}", f"unreadable={bad}")
    code, lines = check_list(capsys, tree, *words)
    assert (code, lines[0].startswith(f"image_list: ok: {sum(SIZES) - 1} train images")) == (0, True)
    other = "train/class001/00002.jpg"
    (tree / other).unlink()
    code, lines = check_list(capsys, tree, *words)
    already = "and of 1 that are left out already, for dataset.leave_out="
    assert (code, lines[-1]) == (1, f"  {bad}: the paths of 1 unreadable images, {already}{bad}")
    assert bad.read_text().splitlines() == [FIRST, other]
    bad.write_text("no.jpg\n")
    assert check_list(capsys, tree, *words)[1][0] == f"image_list: {bad}, line 1: 'no.jpg' is no image of this dataset"


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            ["num_classes=4", "imbalance=nope"],
            "invalid dataset.imbalance=nope: expected given | longtail | step | balanced",
        ),
        (["test.fraction=7"], "invalid dataset.test.fraction=7: expected a number of at least 0 and below 1"),
        (["dataset.validation.fraction=3"], "invalid dataset.validation.fraction=3: expected a number of at least 0"),
        (
            ["imbalance_ratio=10"],
            "invalid dataset.imbalance_ratio=10: expected null, or imbalance=longtail to cut a tail",
        ),
        (["num_classes=9"], "invalid dataset.num_classes=9: expected at most 5 (image_list has 5 classes), or null"),
        (
            ["test.fraction=0.2"],
            "invalid dataset.test.fraction=0.2: expected 0, since image_list has test images of its own",
        ),
    ],
)
def test_the_check_refuses_what_no_run_takes(
    keys: list[str], line: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = check_list(capsys, tree, *keys)
    assert (code, lines[0].startswith(f"image_list: {line}")) == (1, True)
    assert lines[1].startswith(f"  else: {sum(SIZES)} train images")


def test_the_check_says_what_a_run_takes(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = check_list(capsys, tree, "num_classes=2")
    taken = f"{sum(SIZES[:2])} train images ({SIZES[1]} to {SIZES[0]} a class), 4 test images (2 a class), 2 classes"
    assert (code, lines[-1]) == (0, f"  a run with these keys: {taken}")


@pytest.mark.parametrize("verb", ["check", "show", "cache"])
@pytest.mark.parametrize("key", ["resize=x", "source.folder=5", "leave_out=5", "source.num_classes=x"])
def test_a_value_of_a_wrong_kind_is_one_line(
    verb: str, key: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = run(capsys, verb, "image_list", f"source.folder={tree}", key)
    assert (code, [line.startswith(f"ltexp data: invalid dataset.{key}: expected ") for line in lines]) == (2, [True])


def test_a_value_that_a_file_interpolates_is_judged_when_it_is_known(
    tree: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dataset").mkdir()
    content = f"defaults: [image_folder, _self_]\nsource: {{folder: {tree}}}\nresize: ${{oc.decode:${{oc.env:SIDE}}}}\n"
    (tmp_path / "dataset" / "birds.yaml").write_text(content)
    monkeypatch.setenv("LTEXP_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("SIDE", "230")
    assert run(capsys, "check", "birds", "num_classes=2")[0] == 0
    monkeypatch.setenv("SIDE", "23")
    assert "invalid dataset.resize=23: expected" in run(capsys, "check", "birds", "num_classes=2")[1][0]


def overrides(tree: Path, *words: str) -> list[str]:
    source = [f"dataset.source.folder={tree}", "dataset.source.test=test.txt"]
    return ["dataset=image_list", "method=ce", *source, *words]


def test_a_run_stops_before_it_starts_at_a_missing_image_and_goes_on_without_it(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_data(composed(*overrides(tree)))
    with pytest.raises(
        ConfigError, match=r"^invalid dataset\.imbalance_ratio=10: expected null, or imbalance=longtail"
    ):
        check_data(composed(*overrides(tree, "dataset.imbalance_ratio=10")))
    (tree / FIRST).unlink()
    with pytest.raises(DataError, match=rf"1 of {sum(SIZES)} train images are missing: .*train.txt, line 1") as error:
        check_data(composed(*overrides(tree)))
    assert "\n" not in str(error.value)
    bad = tree / "bad.txt"
    bad.write_text(f"{FIRST}\n")
    check_data(composed(*overrides(tree, f"dataset.leave_out={bad}")))
    code, lines = run(
        capsys,
        *("show", "image_list", f"source.folder={tree}", "source.test=test.txt", f"leave_out={bad}"),
        f"out={tree / 'figure.png'}",
    )
    assert (code, f"left out: 1 train images, such as {FIRST}" in lines) == (0, True)
    plain = composed(*overrides(tree, "dataset.leave_out=some.txt", "dataset.cache=small"))
    assert [Path(plain["dataset"][key]).is_absolute() for key in ("leave_out", "cache")] == [True, True]
    bad.write_text(f"{FIRST}\ntrain/other.jpg\n")
    with pytest.raises(DataError, match=r"bad.txt, line 2: 'train/other.jpg' is no image of this dataset"):
        check_data(composed(*overrides(tree, f"dataset.leave_out={bad}")))


def test_a_run_without_damaged_images_says_so_in_its_record(tree: Path) -> None:
    """The official validation list is the run's validation set, and what is left out is counted nowhere."""
    write_tree(tree, SIZES, test=2, validation=1)
    truncate(tree / FIRST)
    bad = tree / "bad.txt"
    bad.write_text(f"{FIRST}\ntest/class001/00014.jpg\n")
    small = ["backbone=resnet8", "dataset.image_size=16", "dataset.resize=20", "dataset.workers=0", "stage1.epochs=1"]
    words = ["dataset.source.validation=val.txt", f"dataset.leave_out={bad}", "stage1.batch_size=16", *small]
    run_here(tree / "outputs" / "run", *overrides(tree, *words), "evaluation.every=1")
    record = read_record(tree / "outputs" / "run")
    left_out = {"train": 1, "validation": 0, "test": 1, "first": ["test/class001/00014.jpg", FIRST]}
    assert record["data"]["left_out"] == left_out
    assert record["class_counts"] == [SIZES[0] - 1, *SIZES[1:]]
    assert (record["imbalance"], record["imbalance_ratio"]) == ("given", (SIZES[0] - 1) / 2)
    assert record["stages"][0]["best_on_validation"] is not None


def test_the_docs_example_of_own_data_is_as_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The generator runs, check and show accept its images, the training command composes, and so does the file."""
    page = (Path(__file__).parents[1] / "docs" / "own_data.md").read_text()
    (script,) = re.findall(r"<<'END'\n(.*?)\nEND\n", page, re.DOTALL)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    commands = [line for line in page.replace("\\\n", "").splitlines() if line.startswith("ltexp ")]
    for line in commands[:2]:
        words = [*line.split()[2:], f"root={tmp_path / 'data'}"]
        words += [f"out={tmp_path / 'a.png'}"] if words[0] == "show" else []
        assert run(capsys, *words)[0] == 0
    typed = [word for word in commands[2].split()[3:] if not word.startswith("hydra.")]
    plain = composed(*(word.replace("ce,crt", "crt") for word in typed), small=False)
    assert (plain["dataset"]["name"], plain["stage1"]["epochs"]) == ("noise", 5)
    own = re.findall(r"`conf/dataset/(\w+\.yaml)`.*?```yaml\n(.*?)```", page, re.DOTALL)
    assert len(own) == page.count("```yaml")
    (tmp_path / "dataset").mkdir()
    for name, content in own:
        (tmp_path / "dataset" / name).write_text(content)
    birds, table = (
        composed(f"dataset={name[:-5]}", f"hydra.searchpath=[file://{tmp_path}]", small=False)["dataset"]
        for name, _ in own
    )
    assert table["source"]["train"].endswith(".csv")
    assert (birds["name"], birds["source"]["folder"], birds["test"]["fraction"]) == ("birds", "birds", 0.2)
    assert birds["image_size"] == 224


@pytest.mark.parametrize(
    ("dataset", "jitter", "init"),
    [("imagenet_lt", 0.4, "default"), ("places_lt", 0.4, "default"), ("inat18", 0.0, "default")],
)
def test_recipes_of_the_large_sets(dataset: str, jitter: float, init: str) -> None:
    """Jitter as method-facts 12.2, the head's start as 12.3; that of a CIFAR network stays Kaiming-normal."""
    plain = composed(f"dataset={dataset}", "method=crt", small=False)
    for stage in (plain["stage1"], plain["stage2"]):
        assert stage["augmentation"]["_target_"].endswith("RandomResizedCrop")
        assert stage["augmentation"]["jitter"] == jitter
        assert stage["classifier"]["init"] == init
    assert composed("dataset=cifar10_lt", "method=ce", small=False)["stage1"]["classifier"]["init"] == "kaiming"


def test_a_dataset_may_extend_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "birds.yaml").write_text("defaults: [image_folder, _self_]\nsource: {folder: birds}\n")
    monkeypatch.setenv("LTEXP_CONFIG_DIR", str(tmp_path))
    config = catalog.dataset_config("birds")
    assert config["source"] == dict(catalog.dataset_config("image_folder")["source"], folder="birds")
    assert "defaults" not in config
