"""Files at rest: every way in which they can be missing or wrong is said, and nothing is unpickled."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ltexp.data.images.arrays import FILES, PreparedArrays, inspect_folder
from ltexp.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "cifar10"
    path.mkdir()
    rng = np.random.RandomState(0)
    for split, count in (("train", 30), ("test", 10)):
        np.save(path / f"{split}_images.npy", rng.randint(0, 256, (count, 4, 4, 3), dtype=np.uint8))
        np.save(path / f"{split}_labels.npy", np.arange(count) % 10)
    (path / "classes.txt").write_text("".join(f"name{label}\n" for label in range(10)))
    return path


def test_sound_files_open(folder: Path) -> None:
    arrays = PreparedArrays("cifar10").open(folder.parent)
    assert PreparedArrays("cifar10").inspect(folder.parent)[1] == []
    assert arrays.train_images.shape == (30, 4, 4, 3)
    assert arrays.class_names[3] == "name3"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("train_images.npy", truncate, "train_images.npy is damaged or truncated"),
    ("test_labels.npy", truncate, "test_labels.npy is damaged or truncated"),
    ("test_labels.npy", lambda p: p.write_bytes(b""), "test_labels.npy is damaged or truncated"),
    ("train_images.npy", lambda p: p.write_bytes(b"not an array"), "not a .npy file"),
    ("train_labels.npy", lambda p: np.save(p, np.array([{}] * 30)), "train_labels.npy is damaged"),
    ("train_labels.npy", lambda p: np.save(p, np.zeros(30)), "is float64 (30,), not int64 (N,)"),
    ("train_labels.npy", lambda p: np.save(p, np.zeros(29, int)), "30 images but train_labels.npy 29 labels"),
    ("train_labels.npy", lambda p: np.save(p, np.full(30, 10)), "from 10 to 10, 30 of them outside the 10 classes"),
    ("test_labels.npy", lambda p: np.save(p, np.full(10, -1)), "labels from -1 to -1"),
    ("train_images.npy", lambda p: np.save(p, np.zeros((30, 3, 4, 4), np.uint8)), "not uint8 (N, H, W, 3)"),
    ("train_images.npy", lambda p: np.save(p, np.zeros((30, 4, 4, 3), np.float32)), "is float32"),
    ("test_images.npy", lambda p: np.save(p, np.zeros((10, 5, 5, 3), np.uint8)), "differ in size"),
    ("train_images.npy", lambda p: np.save(p, np.zeros((0, 4, 4, 3), np.uint8)), "train_images.npy is empty"),
    ("classes.txt", lambda p: p.write_text(""), "classes.txt holds 0 lines"),
    ("classes.txt", lambda p: p.write_bytes(b"\xff\xfe\xff"), "classes.txt cannot be read"),
]


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGE)
def test_damage_is_said(folder: Path, name: str, damage: Callable[[Path], object], words: str) -> None:
    damage(folder / name)
    arrays, problems = inspect_folder(folder)
    assert arrays is None
    assert len(problems) == 1
    assert words in problems[0]
    with pytest.raises(DataError) as error:
        PreparedArrays("cifar10").open(folder.parent)
    assert words in str(error.value)
    assert f"ltexp data prepare cifar10 root={folder.parent}" in str(error.value)
    assert "\n" not in str(error.value)


def test_all_problems_at_once(folder: Path) -> None:
    (folder / "test_images.npy").unlink()
    (folder / "classes.txt").unlink()
    truncate(folder / "train_labels.npy")
    np.save(folder / "train_images.npy", np.zeros((30, 4, 4)))
    problems = "; ".join(inspect_folder(folder)[1])
    assert "missing test_images.npy, classes.txt" in problems
    assert "train_labels.npy is damaged" in problems
    assert "train_images.npy is float64" in problems


def test_missing_folder_lists_all_files(tmp_path: Path) -> None:
    problems = PreparedArrays("cifar100").inspect(tmp_path)[1]
    assert all(name in problems[0] for name in FILES)


def test_a_pickle_is_never_run(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    np.save(folder / "train_labels.npy", np.array([Trap()], dtype=object))
    assert inspect_folder(folder)[0] is None
    assert not (tmp_path / "sprung").exists()
