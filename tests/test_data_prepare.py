"""Preparing: published archives become plain arrays in their own order, whole or not at all; no pickle runs code."""

import errno
import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltexp.data.commands import prepare as prepare_module
from ltexp.data.commands.prepare import prepare
from ltexp.data.images import official as official_module
from ltexp.data.images.arrays import FILES, inspect_folder
from ltexp.data.images.official import OFFICIAL, Form, OfficialSet, load_restricted
from ltexp.errors import DataError

TRAIN, TEST = 20, 10


class Fake:
    """A small dataset in the published file formats, with its true arrays."""

    def __init__(self, name: str, folder: Path) -> None:
        rng = np.random.RandomState(3)
        real = OFFICIAL[name]
        self.name, self.folder = name, folder
        self.images = rng.randint(0, 256, (TRAIN + TEST, 32, 32, 3), dtype=np.uint8)
        self.labels = rng.permutation(TRAIN + TEST).astype(np.int64) % real.classes
        self.names = [f"name {label}" for label in range(real.classes)]
        python, binary = (self._sign(form, self._files(form)) for form in (real.python, real.binary))
        self.official = replace(real, train_images=TRAIN, test_images=TEST, python=python, binary=binary)

    def _files(self, form: Form) -> dict[str, bytes]:
        flat = self.images.transpose(0, 3, 1, 2).reshape(-1, 3072)
        bounds = [*np.linspace(0, TRAIN, len(form.train) + 1).astype(int), TRAIN + TEST]
        files = {}
        for name, start, stop in zip([*form.train, *form.test], bounds[:-1], bounds[1:], strict=True):
            pixels, labels = flat[start:stop], self.labels[start:stop]
            if form.label_bytes is None:
                files[name] = pickle.dumps({"data": pixels, form.label_key: labels.tolist(), "filenames": []}, 3)
            else:
                coarse = np.full((len(labels), form.label_bytes - 1), 77, dtype=np.uint8)
                files[name] = np.hstack([coarse, labels[:, None].astype(np.uint8), pixels]).tobytes()
        names = pickle.dumps({form.names_key: self.names}, 3)
        files[next(iter(form.names))] = names if form.label_bytes is None else "\n".join([*self.names, ""]).encode()
        return files

    def _sign(self, form: Form, files: dict[str, bytes]) -> Form:
        """Writes the archive; the form with the sums that the fake files have."""
        path = self.folder / form.archive
        with tarfile.open(path, "w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"{form.folder}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

        def sums(part: Any) -> dict[str, str | None]:
            return {name: part[name] and hashlib.md5(files[name]).hexdigest() for name in part}

        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        return replace(form, md5=md5, train=sums(form.train), test=sums(form.test), names=sums(form.names))

    def unpack(self, form: Form, target: Path) -> Path:
        with tarfile.open(self.folder / form.archive) as archive:
            archive.extractall(target, filter="data")
        return target / form.folder

    def check(self, folder: Path) -> None:
        arrays, problems = inspect_folder(folder)
        assert problems == []
        assert arrays is not None
        assert np.array_equal(arrays.train_images, self.images[:TRAIN])
        assert np.array_equal(arrays.train_labels, self.labels[:TRAIN])
        assert np.array_equal(arrays.test_images, self.images[TRAIN:])
        assert np.array_equal(arrays.test_labels, self.labels[TRAIN:])
        assert list(arrays.class_names) == self.names


@pytest.fixture(params=["cifar10", "cifar100"])
def fake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    (tmp_path / "archives").mkdir()
    made = Fake(request.param, tmp_path / "archives")
    monkeypatch.setitem(OFFICIAL, made.name, made.official)
    return made


def forms(official: OfficialSet) -> list[Form]:
    return [official.python, official.binary]


@pytest.mark.parametrize("which", [0, 1], ids=["python", "binary"])
def test_from_an_archive_under_any_name(fake: Fake, tmp_path: Path, which: int) -> None:
    renamed = tmp_path / "download (1).tgz"
    (fake.folder / forms(fake.official)[which].archive).rename(renamed)
    folder, _ = prepare(fake.name, tmp_path / "root", renamed)
    assert folder == tmp_path / "root" / fake.name
    fake.check(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert [path.name for path in (tmp_path / "root").iterdir()] == [fake.name]  # no leftovers


@pytest.mark.parametrize("which", [0, 1], ids=["python", "binary"])
@pytest.mark.parametrize("inside", [True, False])
def test_from_an_unpacked_archive(fake: Fake, tmp_path: Path, which: int, inside: bool) -> None:
    unpacked = fake.unpack(forms(fake.official)[which], tmp_path / "unpacked")
    folder, _ = prepare(fake.name, tmp_path / "root", unpacked if inside else unpacked.parent)
    fake.check(folder)


def test_from_the_data_root_without_naming_a_source(fake: Fake, tmp_path: Path) -> None:
    fake.check(prepare(fake.name, fake.folder)[0])
    assert prepare(fake.name, fake.folder)[1] == "already prepared"


def test_from_prepared_arrays(fake: Fake, tmp_path: Path) -> None:
    first, _ = prepare(fake.name, tmp_path / "one", fake.folder)
    for source in (first, first.parent):
        fake.check(prepare(fake.name, tmp_path / "two", source)[0])


def test_damaged_arrays_are_replaced_and_other_files_stay(fake: Fake, tmp_path: Path) -> None:
    folder, _ = prepare(fake.name, fake.folder)
    (folder / "train_images.npy").write_bytes(b"broken")
    (folder / "notes.txt").write_text("mine")
    fake.check(prepare(fake.name, fake.folder)[0])
    assert (folder / "notes.txt").read_text() == "mine"


def test_an_altered_archive_is_not_opened(fake: Fake, tmp_path: Path) -> None:
    path = fake.folder / fake.official.python.archive
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="not the published archive, or incomplete"):
        prepare(fake.name, tmp_path / "root", path)
    assert not (tmp_path / "root" / fake.name).exists()


def test_an_altered_unpacked_file_is_named(fake: Fake, tmp_path: Path) -> None:
    unpacked = fake.unpack(fake.official.python, tmp_path)
    name = next(iter(fake.official.python.test))
    (unpacked / name).write_bytes(b"other")
    with pytest.raises(DataError, match=f"{name} is damaged or not the published file"):
        prepare(fake.name, tmp_path / "root", unpacked)


@pytest.mark.parametrize(("cut", "words"), [(5, "is truncated"), (None, "not 10: truncated")])
def test_a_short_binary_file_is_named(fake: Fake, tmp_path: Path, cut: int | None, words: str) -> None:
    unpacked = fake.unpack(fake.official.binary, tmp_path)
    path = unpacked / next(iter(fake.official.binary.test))
    path.write_bytes(path.read_bytes()[: -(cut or 3072 + (fake.official.binary.label_bytes or 0))])
    with pytest.raises(DataError, match=words):
        prepare(fake.name, tmp_path / "root", unpacked)


def test_arrays_of_another_dataset_are_refused(fake: Fake, tmp_path: Path) -> None:
    folder, _ = prepare(fake.name, tmp_path / "one", fake.folder)
    other = {"cifar10": "cifar100", "cifar100": "cifar10"}[fake.name]
    with pytest.raises(DataError, match=f"not the {OFFICIAL[other].classes} of {other}"):
        prepare(other, tmp_path / "two", folder)


def test_nothing_to_prepare_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found none of cifar-10-python.tar.gz.*give source=PATH"):
        prepare("cifar10", tmp_path, download=False)
    with pytest.raises(DataError, match="does not exist"):
        prepare("cifar10", tmp_path, tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds nothing to prepare cifar10 from"):
        prepare("cifar10", tmp_path, tmp_path)


def test_full_disk_leaves_nothing_half_written(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = prepare(fake.name, tmp_path / "root", fake.folder)
    (before / "train_labels.npy").unlink()
    kept = {path.name: path.read_bytes() for path in before.iterdir()}
    save: Callable[..., None] = np.save

    def fail(file: Any, array: Any, **options: Any) -> None:
        if array.ndim == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, array, **options)

    monkeypatch.setattr(prepare_module.np, "save", fail)
    with pytest.raises(DataError, match=r"could not write .*No space left on device"):
        prepare(fake.name, tmp_path / "root", fake.folder)
    assert {path.name: path.read_bytes() for path in before.iterdir()} == kept
    assert [path.name for path in (tmp_path / "root").iterdir()] == [fake.name]


def test_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import utils

    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(utils, "download_url", no_network)
    with pytest.raises(DataError, match=r"could not download .*cifar-100-python.tar.gz.*put it in") as error:
        prepare("cifar100", tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_download_is_read_like_any_archive(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import utils

    def copy(url: str, root: str, filename: str, md5: str) -> None:
        assert url.endswith(fake.official.python.archive)
        Path(root, filename).write_bytes((fake.folder / fake.official.python.archive).read_bytes())

    monkeypatch.setattr(utils, "download_url", copy)
    folder, origin = prepare(fake.name, tmp_path / "root", download=True)
    assert fake.official.python.archive in origin
    fake.check(folder)


class Call:
    """A pickle of this calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("function", [print, eval, np.load, np.lib.format.open_memmap])
def test_the_unpickler_calls_nothing(function: Callable[..., object]) -> None:
    with pytest.raises(DataError, match="not allowed"):
        load_restricted(pickle.dumps(Call(function, "1"), 3))


def test_the_unpickler_reads_what_python_2_wrote() -> None:
    # {'data': uint8 array([[1, 200]]), 'labels': [5]} as Python 2 pickles it: byte strings, NumPy's old module name
    content = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01K\x02\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x02\x01\xc8tbU\x06labels](K\x05eu."
    )
    found = load_restricted(content)
    assert found["data"].tolist() == [[1, 200]]
    assert found["data"].dtype == np.uint8
    assert found["labels"] == [5]
    with pytest.raises(DataError):
        load_restricted(content[:-9])


def test_published_sums_are_torchvisions() -> None:
    from torchvision.datasets import CIFAR10, CIFAR100

    for ours, theirs in ((OFFICIAL["cifar10"].python, CIFAR10), (OFFICIAL["cifar100"].python, CIFAR100)):
        assert (ours.archive, ours.md5, ours.folder) == (theirs.filename, theirs.tgz_md5, theirs.base_folder)
        assert list(map(list, ours.train.items())) == theirs.train_list
        assert list(map(list, ours.test.items())) == theirs.test_list
        assert dict(ours.names) == {theirs.meta["filename"]: theirs.meta["md5"]}
        assert ours.names_key == theirs.meta["key"]
    assert official_module.PIXELS == 3072
