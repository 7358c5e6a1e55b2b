"""Bad inputs of every kind: each command ends with a line and a status other than 0, and leaves nothing half-written.

ONLY=weights,list tries those whose name begins so.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from faults.commands import SMALL, answer, ltexp

MOST_LINES = 30
Case = tuple[str, list[str]]


def main(folder: Path) -> list[str]:
    """Prints how many were answered in a line, and returns the others."""
    files = write_files(folder / "files")
    tree = write_tree(folder / "tree")
    write_texts(folder / "data")
    cases = [*of_files(files, tree), *of_data(folder, files, tree), *of_words(folder, files)]
    cases = [case for case in cases if case[0].startswith(tuple(os.environ.get("ONLY", "").split(",")))]
    faults = []
    for number, (name, words) in enumerate(cases):
        run = folder / "outputs" / str(number)
        if words[0] == "train" and not any(word.startswith(("hydra.run.dir", "paths.outputs")) for word in words):
            words = [*words, f"hydra.run.dir={run}", f"paths.outputs={folder / 'outputs'}"]
        status, out, err = answer(ltexp(words, LTEXP_DATA=str(folder / "data")))
        problem = fault_of(status, out, err)
        left = sorted(str(path.relative_to(run)) for path in run.rglob("*")) if run.exists() else []
        if problem or left:
            faults.append(f"{name}: {problem or f'left {left[:3]}'}")
            print(faults[-1], flush=True)
    print(f"{len(cases)} bad inputs: {len(cases) - len(faults)} answered in a line, {len(faults)} faults")
    return faults


def fault_of(status: int, out: str, err: str) -> str | None:
    """What is wrong with how a command ended."""
    if status == 0:
        return f"status 0: {(out + err).strip()[-150:]}"
    if "Traceback" in err + out:
        return f"a traceback: {err.strip()[-200:]}"
    said = [line for line in (err.strip() or out.strip()).splitlines() if line.strip()]
    most = MOST_LINES if out.strip() else 3  # `ltexp data check` lists what it finds, some lines of each kind
    return None if 1 <= len(said) <= most else f"{len(said)} lines: {err.strip()[:300]}"


def write_files(folder: Path) -> dict[str, Path]:
    """Files that are no checkpoint, list or picture of ltexp's, by what they are."""
    folder.mkdir()
    files = {
        name: folder / name for name in ("text", "yaml", "csv", "picture", "empty", "noise", "pickle", "other", "npy")
    }
    files["text"].write_text("no checkpoint\n" * 50)
    files["yaml"].write_text("method: mislas\nstage1: [1, 2\n")
    files["csv"].write_text("image,label\na.jpg,crow\n")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(files["picture"], "PNG")
    files["empty"].write_bytes(b"")
    files["noise"].write_bytes(np.random.default_rng(0).bytes(5000))
    torch.save(Path("an object"), files["pickle"])
    torch.save({"blocks.0.weight": torch.zeros(3)}, files["other"])
    with files["npy"].open("wb") as file:
        np.save(file, np.zeros(3))
    return files


def write_tree(folder: Path) -> Path:
    """Images of two classes, a test image of each."""
    draws = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 1)):
        for name in ("crow", "heron"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draws.integers(0, 256, (36, 36, 3), np.uint8)).save(
                    folder / split / name / f"{number}.png"
                )
    return folder


def write_texts(root: Path) -> None:
    """AG's News of 12 articles."""
    (root / "ag_news").mkdir(parents=True)
    rows = "".join(f'"{label}","title {label}","some text of {label}"\n' for label in (1, 2, 3, 4) for _ in range(3))
    for name in ("train.csv", "test.csv"):
        (root / "ag_news" / name).write_text(rows)


def of_files(files: dict[str, Path], tree: Path) -> Iterator[Case]:
    """Any file where a checkpoint, weights, a teacher or vectors belong."""
    image = [
        "train",
        "dataset=image_folder",
        f"dataset.source.folder={tree}",
        "dataset.image_size=32",
        "dataset.resize=36",
    ]
    image += ["trainer.accelerator=cpu", "method=ce", "stage1.epochs=1", "dataset.workers=0"]
    text = ["train", "dataset=ag_news_lt", "dataset.max_per_class=3", "dataset.imbalance_ratio=1", "method=ce"]
    for name in ("text", "yaml", "picture", "empty", "noise", "pickle", "other", "npy"):
        yield f"weights {name}", [*image, "backbone=resnet10", f"backbone.weights={files[name]}"]
        yield f"checkpoint {name}", ["train", *SMALL, "method=crt", f"stage1.checkpoint={files[name]}"]
        yield f"teacher {name}", ["train", *SMALL, "method=kd", f"stage2.teacher={files[name]}"]
    for name in ("text", "csv", "picture", "empty", "noise", "other"):
        yield f"vectors {name}", [*text, f"backbone.vectors={files[name]}"]
    for name in ("text", "picture", "empty"):
        yield f"evaluate {name}", ["evaluate", str(files[name])]
        yield f"report {name}", ["report", str(files[name])]
    yield "evaluate no run", ["evaluate", str(tree)]
    yield "report no run", ["report", str(tree)]


def of_data(folder: Path, files: dict[str, Path], tree: Path) -> Iterator[Case]:
    """Lists, folders, archives and pictures that are none."""
    listed = ["data", "check", "image_list", f"source.folder={tree}", "test.fraction=0.2"]
    for name in ("text", "csv", "picture", "empty", "noise"):
        yield f"list {name}", [*listed, f"source.train={files[name]}"]
        if name != "empty":  # no image is left out
            yield (
                f"leave out {name}",
                ["data", "show", "image_folder", f"source.folder={tree}", f"leave_out={files[name]}"],
            )
        yield (
            f"class names {name}",
            ["data", "check", "image_folder", f"source.folder={tree}", f"source.classes={files[name]}"],
        )
        yield f"archive {name}", ["data", "prepare", "cifar10", f"source={files[name]}", f"root={folder / 'root'}"]
        yield f"cache {name}", ["data", "show", "image_folder", f"source.folder={tree}", f"cache={files[name]}"]
    outside = folder / "outside.txt"
    outside.write_text("../../etc/passwd 0\n/etc/passwd 1\n")
    yield "list outside its folder", [*listed, f"source.train={outside}"]
    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        entry = tarfile.TarInfo("../../escaped")
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"abc"))
    yield "archive outside its folder", ["data", "prepare", "cifar10", f"source={archive}", f"root={folder / 'root'}"]
    broken = write_tree(folder / "broken")
    (broken / "train" / "crow" / "0.png").write_bytes(b"\x89PNG broken")
    yield "a damaged picture", ["data", "check", "image_folder", f"source.folder={broken}", "decode=true"]
    yield "no such folder", ["data", "check", "image_folder", f"source.folder={folder / 'nowhere'}"]


def of_words(folder: Path, files: dict[str, Path]) -> Iterator[Case]:
    """Command lines that cannot work."""
    for word in (
        *("method=mislass", "method=5", "method=", "method", "nosuch=1", "+nosuch=1", "~stage1", "stage1=null", "=1"),
        *(
            "stage1.epochs=-1",
            "stage1.epochs=two",
            "stage1.batch_size=0",
            "stage1.optimizer.lr=-1",
            "stage1.optimizer.lr=nan",
        ),
        *("seed=-1", "seed=1.5", "dataset.num_classes=1", "dataset.imbalance_ratio=0", "dataset.imbalance_ratio=1e9"),
        *("dataset.max_per_class=0", "dataset.max_per_class=99999", "trainer.devices=0", "trainer.precision=64"),
        *("dataset.name=a[b", "stage1.loss.scale={", "hydra.run.dir", "experiment=nosuch", "dataset=nosuch"),
        *("stage1.checkpoint=/nowhere", "stage2.teacher=/nowhere", "trainer.accelerator=tpu", "logger=nosuch"),
    ):
        yield f"word {word}", ["train", *SMALL, word]
    yield "outputs in a file", ["train", *SMALL, f"paths.outputs={files['text']}", f"hydra.run.dir={files['text']}/run"]
    yield "config of another program", ["train", "--config-path", str(files["yaml"].parent), "--config-name", "yaml"]
    yield "columns", ["report", str(folder), "columns=nosuch"]
    yield "figure", ["report", str(folder), "figure=nosuch"]
    yield "verb", ["trian"]
