"""A dataset's reader of a user's own: what it gives is checked once, for training and `ltexp data check` alike."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltexp.config.build import build
from ltexp.data.commands.check import check
from ltexp.data.files.decode import AS_STORED
from ltexp.data.files.split import FileSplit, SourceFiles
from ltexp.data.images.digits import Digits
from ltexp.data.intake import take_in
from ltexp.data.text.articles import SourceTexts
from ltexp.data.types import Source, SourceArrays
from ltexp.errors import ConfigError, DataError

PLACE = "dataset.source: test_data_own_reader.Reader: "
EXPECTED = "expected uint8 (N, H, W, 3), RGB from 0 to 255"
PAIR = "expected a pair: the dataset and [], or None and a list of what is wrong, a text each"


def arrays() -> SourceArrays:
    labels = np.repeat(np.arange(3), [20, 8, 4])
    images = np.zeros((len(labels), 4, 4, 3), dtype=np.uint8)
    return SourceArrays(images, labels, images[::2], labels[::2], ("a", "b", "c"))


class Reader(Source):
    """Gives what a test puts into `given`, a value or a function without arguments."""

    given: Any = None

    def inspect(self, root: Path) -> Any:
        return self.given() if callable(self.given) else self.given


class NoSource:
    """As a torch Dataset is one."""


class WithoutRoot(Source):
    def inspect(self) -> Any:  # type: ignore[override]
        return None, []


def config(target: str = "Reader") -> dict[str, Any]:
    return {
        "_target_": "ltexp.data.images.dataset.long_tailed",
        "name": "mine",
        "source": {"_target_": f"test_data_own_reader.{target}"},
        "max_per_class": 16,
        "imbalance_ratio": 4,
        "channel_mean": [0.5] * 3,
        "channel_std": [0.25] * 3,
    }


def answers(target: str = "Reader") -> str:
    """What training says of a reader, which is what the check says."""
    with pytest.raises(ConfigError) as refused:
        build(config(target), root=".", path="dataset")
    assert check(config(target), Path()) == ([str(refused.value)], [], None, frozenset())
    assert "\n" not in str(refused.value)
    return str(refused.value)


WRONG_IMAGES: list[tuple[Callable[[Any], Any], str]] = [
    (lambda images: images / 255, f" is float64 ({{count}}, 4, 4, 3), {EXPECTED}"),
    (lambda images: images.transpose(0, 3, 1, 2), f" is uint8 ({{count}}, 3, 4, 4), {EXPECTED}"),
    (lambda images: images[..., 0], f" is uint8 ({{count}}, 4, 4), {EXPECTED}"),
    (lambda images: images.astype(np.int64), f" is int64 ({{count}}, 4, 4, 3), {EXPECTED}"),
    (lambda images: list(images), f" is a list, expected a NumPy array, {EXPECTED.removeprefix('expected ')}"),
]
IN_NAMES = "expected 0 to 2, positions in the 3 names of class_names"
WRONG_LABELS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda labels: labels[:-5], " holds {fewer} labels, expected one for each of the {count} of {of}"),
    (lambda labels: labels + 1, f" holds labels from 1 to 3, {IN_NAMES}"),
    (lambda labels: labels - 1, f" holds labels from -1 to 1, {IN_NAMES}"),
    (lambda labels: labels.astype(float), " is float64 ({count},), expected integers (N,), such as int64"),
    (lambda labels: np.eye(3, dtype=int)[labels], " is int64 ({count}, 3), expected integers (N,), such as int64"),
    (lambda labels: labels.tolist(), " is a list, expected a NumPy array, integers (N,), such as int64"),
]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("kind", "wrong"),
    [*(("images", number) for number in range(len(WRONG_IMAGES))), *(("labels", k) for k in range(len(WRONG_LABELS)))],
)
def test_arrays_of_another_kind_or_that_do_not_fit_are_refused(
    kind: str, wrong: int, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, answer = {"images": WRONG_IMAGES, "labels": WRONG_LABELS}[kind][wrong]
    name = f"{split}_{kind}"
    found = getattr(arrays(), name)
    monkeypatch.setattr(Reader, "given", (replace(arrays(), **{name: change(found)}), []))
    told = answer.format(count=len(found), fewer=len(found) - 5, of=f"{split}_images")
    assert answers() == f"{PLACE}{name}{told}"


@pytest.mark.parametrize(
    ("changed", "answer"),
    [
        ({"class_names": ("a", "b")}, "train_labels holds labels from 0 to 2, expected 0 to 1, positions in the 2 "),
        ({"class_names": ("a", "b", "a")}, "class_names holds 'a' 2 times, expected names that differ"),
        ({"class_names": (0, 1, 2)}, "class_names is (0, 1, 2), expected a tuple of at least two names, one str "),
        ({"class_names": ("a",)}, "class_names holds 1, expected a tuple of at least two names"),
        ({"class_names": None}, "class_names is None, expected a tuple"),
        ({"test_images": arrays().test_images[:0]}, "test_images is empty, expected at least one sample"),
        ({"test_images": arrays().test_images[:, :2]}, "test_images are of 2x4 pixels, expected 4x4 as in train"),
    ],
)
def test_names_and_parts_that_do_not_fit_are_refused(
    changed: dict[str, Any], answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reader, "given", (replace(arrays(), **changed), []))
    assert answers().startswith(PLACE + answer)


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        (arrays(), f"inspect gives a SourceArrays, {PAIR}"),
        (None, f"inspect gives a NoneType, {PAIR}"),
        ((arrays(), "none"), f"inspect gives 'none' as what is wrong, {PAIR}"),
        ((None, []), f"inspect gives None and no text of what is wrong, {PAIR}"),
        (({}, []), "inspect gives a dict as the dataset, expected a SourceArrays"),
    ],
)
def test_an_answer_of_another_form_is_refused(given: Any, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "given", given)
    assert answers() == PLACE + answer


def test_what_is_no_source_is_refused() -> None:
    told = "expected a subclass of ltexp.data.types.Source, whose inspect(root) gives the arrays"
    assert answers("NoSource") == f"dataset.source: test_data_own_reader.NoSource: {told}"
    found = check(config("WithoutRoot"), Path()).problems
    assert answers("WithoutRoot").startswith("dataset.source: test_data_own_reader.WithoutRoot: TypeError: ")
    assert "takes 1 positional argument" in found[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (ValueError("need at least one array"), "ValueError: need at least one array"),
        (KeyError("label"), "KeyError: 'label'"),
        (FileNotFoundError(2, "No such file", "x.csv"), "FileNotFoundError: [Errno 2] No such file: 'x.csv'"),
        (TypeError("first line\nsecond line"), "TypeError: first line"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_an_error_of_the_reader_is_one_line_with_its_place(
    wrong: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise wrong

    monkeypatch.setattr(Reader, "given", staticmethod(fail))
    line = fail.__code__.co_firstlineno + 1
    assert answers() == f"{PLACE}{message} (test_data_own_reader.py, line {line}, in fail)"


def test_an_error_of_notes_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Source, opened: Any) -> list[str]:
        raise ValueError("no notes")

    monkeypatch.setattr(Reader, "given", (arrays(), []))
    monkeypatch.setattr(Reader, "notes", fail)
    (problem,) = check(config(), Path()).problems
    assert problem.startswith(f"{PLACE}ValueError: no notes (test_data_own_reader.py, line ")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "uint64", ">i8", "int64"])
def test_labels_of_any_integer_type_are_taken(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = arrays()
    own = replace(plain, train_labels=plain.train_labels.astype(dtype), test_labels=plain.test_labels.astype(dtype))
    monkeypatch.setattr(Reader, "given", (own, []))
    data = build(config(), root=".", path="dataset")
    assert data.train.labels.dtype == data.test.labels.dtype == np.int64
    assert data.class_counts.tolist() == [16, 8, 4]
    assert not check(config(), Path())[0]


def test_what_the_reader_says_is_wrong_is_told_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "given", (arrays(), ["mine: one", "two"]))
    with pytest.raises(DataError, match=r"^mine: one; two$"):
        build(config(), root=".", path="dataset")
    assert check(config(), Path())[0] == ["mine: one", "two"]


def test_a_reader_of_ltexp_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, problems = Digits().inspect(Path())
    monkeypatch.setattr(Digits, "inspect", lambda self, root: (whole, problems))
    assert take_in(Digits(), Path())[0] is whole


def texts(**changed: Any) -> SourceTexts:
    plain = SourceTexts(["one"] * 4, np.array([0, 0, 0, 1]), ["two"] * 2, np.array([0, 1]), ("a", "b"))
    return replace(plain, **changed)


@pytest.mark.parametrize(
    ("changed", "answer"),
    [
        ({"train_texts": np.zeros(4)}, "train_texts is a ndarray, expected a list of str"),
        ({"test_texts": ["one", 2]}, "test_texts holds a int, expected a list of str"),
        ({"test_texts": []}, "test_texts is empty"),
        ({"test_labels": np.array([0, 2])}, "test_labels holds labels from 0 to 2, expected 0 to 1"),
        ({"train_labels": np.array([0, 1])}, "train_labels holds 2 labels, expected one for each of the 4 of train_te"),
    ],
)
def test_texts_are_checked_as_well(changed: dict[str, Any], answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "given", (texts(**changed), []))
    with pytest.raises(ConfigError) as refused:
        take_in(Reader(), Path())
    assert str(refused.value).startswith(PLACE.removeprefix("dataset.") + answer)


def test_a_dataset_of_images_takes_no_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "given", (texts(), []))
    with pytest.raises(ConfigError, match="inspect gives a SourceTexts, and this dataset reads a SourceArrays"):
        build(config(), root=".", path="dataset")


@pytest.mark.parametrize(
    ("changed", "answer"),
    [
        ({"paths": np.array(["x", "y"])}, "train.paths is <U1 (2,), expected bytes (N,)"),
        ({"labels": np.array([0, 2])}, "train.labels holds labels from 0 to 2, expected 0 to 1"),
        ({"labels": np.array([0])}, "train.labels holds 1 labels, expected one for each of the 2 of train.paths"),
    ],
)
def test_files_are_checked_as_well(changed: dict[str, Any], answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain: dict[str, Any] = {"paths": np.array([b"x", b"y"]), "labels": np.arange(2), "index": np.arange(2)}
    split = FileSplit(root=".", reading=AS_STORED, **(plain | changed))
    monkeypatch.setattr(Reader, "given", (SourceFiles(split, None, None, ("a", "b"), {"train": ""}), []))
    with pytest.raises(ConfigError) as refused:
        take_in(Reader(), Path())
    assert str(refused.value).startswith(PLACE.removeprefix("dataset.") + answer)
