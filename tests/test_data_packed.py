"""SVHN, CINIC-10 and Tiny ImageNet: files of their published forms become the arrays that they were made of."""

import hashlib
import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from runs import composed, run_here
from scipy.io import savemat
from torchvision.datasets import SVHN, ImageFolder

from ltexp.data.__main__ import main
from ltexp.data.commands.prepare import prepare_packed
from ltexp.data.images.arrays import inspect_folder
from ltexp.data.images.packed import PACKED
from ltexp.data.types import SourceArrays
from ltexp.errors import DataError
from ltexp.evaluation.record import read_record

DRAWS = np.random.default_rng(0)


def noise(side: int) -> Image.Image:
    return Image.fromarray(DRAWS.integers(0, 256, (side, side, 3), dtype=np.uint8))


def png(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def arrays_in(folder: Path) -> SourceArrays:
    arrays, problems = inspect_folder(folder)
    assert arrays is not None, problems
    return arrays


# ---- CINIC-10


def cinic10_files() -> dict[str, bytes]:
    """Three images of each class in every part, one of them grey, not in order."""
    names = ("airplane", "truck", "cat")
    files = {}
    for split in ("train", "valid", "test"):
        for number in (10, 9, 1):
            for name in names:
                image = noise(32) if number != 9 else noise(32).convert("L")
                files[f"{split}/{name}/n_{number}.png"] = png(image)
    return files | {"README.md": b"CINIC-10"}


def write_tar(path: Path, files: dict[str, bytes], prefix: str) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture
def cinic10(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    small = replace(PACKED["cinic10"], classes=3, train_images=9, test_images=9)
    monkeypatch.setitem(PACKED, "cinic10", small)
    return cinic10_files()


@pytest.mark.parametrize("form", ["archive", "folder", "root"])
def test_cinic10_is_what_torchvision_reads(form: str, cinic10: dict[str, bytes], tmp_path: Path) -> None:
    write_files(tmp_path / "CINIC-10", cinic10)
    if form == "archive":
        (tmp_path / "packed").mkdir()
        write_tar(tmp_path / "packed/CINIC-10.tar.gz", cinic10, "./")
    source = {"archive": tmp_path / "packed", "folder": tmp_path / "CINIC-10", "root": None}[form]
    folder, origin = prepare_packed("cinic10", tmp_path, source, None)
    assert origin == f"from {tmp_path / ('packed/CINIC-10.tar.gz' if form == 'archive' else 'CINIC-10')}"
    found = arrays_in(folder)
    assert found.class_names == ("airplane", "cat", "truck")
    for split, images, labels in (
        ("train", found.train_images, found.train_labels),
        ("test", found.test_images, found.test_labels),
    ):
        theirs = ImageFolder(str(tmp_path / "CINIC-10" / split))
        assert labels.tolist() == theirs.targets
        assert np.array_equal(images, np.stack([np.asarray(image) for image, _ in theirs]))
    assert prepare_packed("cinic10", tmp_path, None, None) == (folder, "already prepared")


# ---- Tiny ImageNet


@pytest.fixture
def tiny_imagenet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two classes of two training images each, and three of the validation part, in a .zip."""
    monkeypatch.setitem(
        PACKED, "tiny_imagenet", replace(PACKED["tiny_imagenet"], classes=2, train_images=4, test_images=3)
    )
    files = {f"train/{wnid}/{wnid}_boxes.txt": b"" for wnid in ("n02", "n01")}
    for wnid in ("n02", "n01"):
        for number in (1, 0):
            files[f"train/{wnid}/images/{wnid}_{number}.JPEG"] = png(noise(64), "JPEG")
    lines = []
    for number, wnid in ((2, "n01"), (0, "n02"), (1, "n02")):
        files[f"val/images/val_{number}.JPEG"] = png(noise(64), "JPEG")
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = png(noise(64), "JPEG")
    with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as packed:
        for name, content in files.items():
            packed.writestr(f"tiny-imagenet-200/{name}", content)
    return tmp_path / "tiny-imagenet-200.zip"


def test_tiny_imagenet_is_sorted_and_tested_on_its_validation_part(tiny_imagenet: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tiny_imagenet) as packed:
        packed.extractall(tmp_path / "unpacked")
    tree = tmp_path / "unpacked/tiny-imagenet-200"

    def pixels(path: str) -> np.ndarray:
        return np.asarray(Image.open(tree / path).convert("RGB"))

    for source in (tiny_imagenet, tmp_path / "unpacked"):
        found = arrays_in(prepare_packed("tiny_imagenet", tmp_path / source.stem, source, None)[0])
        assert found.class_names == ("n01", "n02")
        assert found.train_labels.tolist() == [0, 0, 1, 1]
        assert np.array_equal(found.train_images[1], pixels("train/n01/images/n01_1.JPEG"))
        assert np.array_equal(found.train_images[2], pixels("train/n02/images/n02_0.JPEG"))
        assert found.test_labels.tolist() == [0, 1, 1]
        assert np.array_equal(found.test_images[0], pixels("val/images/val_2.JPEG"))


# ---- SVHN


@pytest.fixture
def svhn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The two .mat files, 10 standing for the digit 0, under the sums that they have."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    listed = {}
    for split, count in (("train", 40), ("test", 20)):
        labels = np.arange(count)[:, None] % 10 + 1
        path = folder / f"{split}_32x32.mat"
        images = DRAWS.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        savemat(path, {"X": images, "y": labels.astype(np.uint8)})
        listed[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", listed)
    return folder


def test_svhn_is_what_torchvision_reads_in_its_own_order_of_labels(svhn: Path, tmp_path: Path) -> None:
    found = arrays_in(prepare_packed("svhn", tmp_path, svhn, None)[0])
    assert found.class_names == ("1", "2", "3", "4", "5", "6", "7", "8", "9", "0")
    theirs = SVHN(str(svhn), "train")
    assert [int(found.class_names[label]) for label in found.train_labels] == theirs.labels.tolist()
    assert np.array_equal(found.train_images, np.stack([np.asarray(image) for image, _ in theirs]))
    assert found.test_images.shape == (20, 32, 32, 3)


def test_svhn_is_downloaded_by_torchvision(svhn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the data root has nothing, or anew; nothing is left behind but the arrays."""

    def download(self: SVHN) -> None:
        shutil.copy(svhn / self.filename, self.root)

    monkeypatch.setattr(SVHN, "download", download)
    root = tmp_path / "root"
    folder, origin = prepare_packed("svhn", root, None, None)
    assert origin == f"from {PACKED['svhn'].site}"
    assert len(arrays_in(folder).train_images) == 40
    assert [path.name for path in root.iterdir()] == ["svhn"]
    assert prepare_packed("svhn", root, None, None)[1] == "already prepared"
    assert prepare_packed("svhn", root, None, True)[1] == origin

    def failing(self: SVHN) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(SVHN, "download", failing)
    with pytest.raises(DataError, match=r"^could not prepare svhn from http[^\n]*no route to host[^\n]*$"):
        prepare_packed("svhn", root, None, True)
    assert len(arrays_in(folder).train_images) == 40


def test_svhn_of_another_sum_is_refused(svhn: Path, tmp_path: Path) -> None:
    (svhn / "test_32x32.mat").write_bytes(b"other")
    with pytest.raises(DataError, match=r"^[^\n]*train_32x32.mat and test_32x32.mat are not both there, complete and"):
        prepare_packed("svhn", tmp_path, svhn, None)
    assert not (tmp_path / "svhn").exists()


# ---- what is wrong, and a run


def without(part: str) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        for name in [name for name in files if part in name]:
            del files[name]

    return change


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (without("train/cat/n_9"), "holds 8 train images, not 9: incomplete?"),
        (without("/cat/"), "holds 2 classes, not 3"),
        (
            lambda files: files.update({"test/cat/n_1.png": png(noise(33))}),
            "test/cat/n_1.png has 33x33 pixels, not 32x32",
        ),
        (lambda files: files.update({"test/cat/n_1.png": b"broken"}), "test/cat/n_1.png: not a readable image"),
    ],
)
def test_what_is_not_the_published_set_is_one_line(
    change: Callable[[dict[str, bytes]], None], line: str, cinic10: dict[str, bytes], tmp_path: Path
) -> None:
    change(cinic10)
    write_tar(tmp_path / "CINIC-10.tar.gz", cinic10, "")
    with pytest.raises(DataError, match=f"^[^\n]*{line}[^\n]*$"):
        prepare_packed("cinic10", tmp_path, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["CINIC-10.tar.gz"]


def test_a_truncated_archive_is_one_line(cinic10: dict[str, bytes], tmp_path: Path) -> None:
    write_tar(tmp_path / "CINIC-10.tar.gz", cinic10, "")
    content = (tmp_path / "CINIC-10.tar.gz").read_bytes()
    (tmp_path / "CINIC-10.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"^could not prepare cinic10 from [^\n]*$"):
        prepare_packed("cinic10", tmp_path, None, None)


def test_where_there_is_nothing_the_site_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cinic10", "tiny_imagenet"):
        assert main(["prepare", name, f"root={tmp_path}"]) == 1
        assert PACKED[name].site in capsys.readouterr().err
    assert main(["prepare", "cinic10", "download=true"]) == 2
    assert main(["prepare", "svhn", f"root={tmp_path}", "download=false"]) == 1
    assert main(["check", "svhn_lt", f"root={tmp_path}"]) == 1
    assert f"run `ltexp data prepare svhn root={tmp_path}`" in capsys.readouterr().out


def test_a_run_on_a_prepared_set(svhn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "svhn", f"root={tmp_path}", f"source={svhn}"]) == 0
    assert "svhn: ok: 40 train images (4 a class), 20 test images" in capsys.readouterr().out
    words = ("dataset=svhn_lt", "dataset.max_per_class=4", "dataset.imbalance_ratio=4", f"paths.data={tmp_path}")
    run_here(tmp_path / "run", "method=ce", "backbone=resnet8", "stage1.epochs=1", *words)
    assert read_record(tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize(
    ("dataset", "backbone", "largest", "padding"),
    [
        ("svhn_lt", "resnet32", 1000, None),
        ("cinic10_lt", "resnet32", 9000, None),
        ("tiny_imagenet_lt", "resnet18_small", 500, 8),
    ],
)
def test_recipes_of_the_sets(dataset: str, backbone: str, largest: int, padding: int | None) -> None:
    plain = composed("method=crt", f"dataset={dataset}", small=False)
    assert plain["choices"]["backbone"] == backbone
    assert plain["dataset"]["max_per_class"] == largest
    assert plain["stage1"]["augmentation"]["padding"] == (padding or 4)
    assert plain["stage2"]["augmentation"]["padding"] == (padding or 4)
    assert plain["stage1"]["epochs"] == 200
