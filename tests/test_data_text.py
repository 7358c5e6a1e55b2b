"""Text datasets: their CSV files, words and vocabulary, the long-tailed subset, and what is wrong with bad files."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import assert_equal_weights, composed, run_here, weights
from texts import NAMES, write_articles

from ltexp.config.build import build
from ltexp.data.__main__ import main as data_command
from ltexp.data.text.articles import CsvArticles
from ltexp.data.text.dataset import TokenSplit, long_tailed_text
from ltexp.data.text.loader import TokenLoader
from ltexp.data.text.tokens import PADDING, SPECIAL, UNKNOWN, build_vocabulary, encode, words
from ltexp.data.types import LongTailedData
from ltexp.errors import ConfigError, DataError
from ltexp.evaluation.record import read_record

SMALL = ("dataset=ag_news_lt", "dataset.max_per_class=40", "dataset.imbalance_ratio=10", "backbone.dim=16")
SMALL_RUN = (*SMALL, "backbone.filters=8", "stage1.epochs=2")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_articles(tmp_path / "data")


def dataset(root: Path, **changes: object) -> LongTailedData:
    settings: dict[str, object] = {"max_per_class": 40, "imbalance_ratio": 10.0} | changes
    source = CsvArticles("ag_news", NAMES)
    return long_tailed_text(source=source, root=root, name="ag_news_lt", **settings)  # type: ignore[arg-type]


# --- words -----------------------------------------------------------------------------------------------------------


def test_words() -> None:
    """Lower case, no punctuation; the character references that AG's News lost the ampersands of are read."""
    assert words("Wall St. Bears Claw Back, Into the Black") == [
        "wall",
        "st",
        "bears",
        "claw",
        "back",
        "into",
        "the",
        "black",
    ]
    assert words("can #39;t see what #39;s the  #36;10 million\\prize") == [
        "can't",
        "see",
        "what's",
        "the",
        "10",
        "million",
        "prize",
    ]
    assert words("&lt;b&gt;quot;Café AT&amp;T") == ["b", "café", "at", "t"]
    assert words(" ... #55555555; #1114112;") == ["55555555"]


def test_vocabulary_is_by_falling_frequency_and_then_by_letters() -> None:
    texts = [["b", "a", "c"], ["b", "a"], ["b", "d"]]
    assert build_vocabulary(texts, 2) == (*SPECIAL, "b", "a")
    assert build_vocabulary(texts, 1) == (*SPECIAL, "b", "a", "c", "d")


def test_encoding_cuts_pads_and_marks_the_unknown() -> None:
    rows = encode([["b", "x"], ["a", "b", "b", "a"], []], {"a": 3, "b": 2}, 3)
    assert rows.tolist() == [[2, UNKNOWN, PADDING], [3, 2, 2], [PADDING] * 3]


# --- the dataset -----------------------------------------------------------------------------------------------------


def test_long_tail_over_the_published_classes(root: Path) -> None:
    """40 * 10^(-c/3), cut; the test set is whole; step has the last half of the labels as its tail."""
    data = dataset(root)
    assert data.class_counts.tolist() == [40, 18, 8, 4]
    assert np.bincount(data.test.labels).tolist() == [10] * 4
    assert dataset(root, imbalance="step").class_counts.tolist() == [40, 40, 4, 4]
    assert data.class_names == NAMES
    assert data.kind == "text"


def test_published_counts() -> None:
    """30,000 to 300 by default."""
    from ltexp.data.tail.profile import class_sizes

    config = composed("dataset=ag_news_lt", "method=ce", small=False)["dataset"]
    assert class_sizes(config["max_per_class"], 4, config["imbalance"], config["imbalance_ratio"]) == [
        30000,
        6463,
        1392,
        300,
    ]


def test_the_vocabulary_is_of_the_chosen_articles_alone(root: Path) -> None:
    """Neither test articles nor those that the long tail leaves out are looked at."""
    data = dataset(root, min_count=1)
    lines = (root / "ag_news" / "train.csv").read_text().splitlines()
    seen = {word for position in data.train.index for word in words(lines[position].split(",", 1)[1])}
    vocabulary = data.backbone_settings["vocabulary"]
    assert set(vocabulary[2:]) == seen
    split = data.train
    assert isinstance(split, TokenSplit)
    text = " ".join(vocabulary[number] for number in split.tokens[5] if number != PADDING)
    assert text.split() == words(lines[split.index[5]].split(",", 1)[1])


def test_subset_and_vocabulary_are_the_same_each_time(root: Path) -> None:
    one, other, another = dataset(root), dataset(root), dataset(root, subset={"seed": 1})
    assert (one.subset_hash, one.content_hash) == (other.subset_hash, other.content_hash)
    assert one.backbone_settings == other.backbone_settings
    assert one.subset_hash != another.subset_hash


def test_too_few_articles_name_settings_that_work(root: Path) -> None:
    with pytest.raises(DataError, match=r"too few training articles .*max_per_class=40 or less"):
        dataset(root, max_per_class=30000, imbalance_ratio=10)


def test_validation_is_held_out_of_the_training_articles(root: Path) -> None:
    data = dataset(root, validation={"fraction": 0.25})
    assert data.validation is not None
    assert np.bincount(data.validation.labels).tolist() == [10, 4, 2, 1]
    assert not set(data.validation.index) & set(data.train.index)


def test_loader_gives_word_numbers(root: Path) -> None:
    split = dataset(root).test
    assert isinstance(split, TokenSplit)
    batch = next(iter(TokenLoader(split, batch_size=8, device="cpu")))
    assert batch.inputs.dtype == torch.int64
    assert torch.equal(batch.inputs, torch.from_numpy(split.tokens[:8]).long())


# --- bad files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'"2","only a title"', r"train.csv, line 3: 2 fields, expected 3"),
        (b'"2","a","b","c"', r"train.csv, line 3: 4 fields, expected 3"),
        (b'"2","  ",""', r"train.csv, line 3: no text"),
        (b'"5","a","b"', r"train.csv, line 3: class index '5', expected 1 to 4"),
        (b'"0","a","b"', r"train.csv, line 3: class index '0', expected 1 to 4"),
        (b'"x","a","b"', r"train.csv, line 3: class index 'x', expected 1 to 4"),
        (b'"2","caf\xe9","b"', r"train.csv, line 3: byte 9 of the line is not UTF-8"),
        (b'"2","a"b,"c"', r"train.csv, line 3: not CSV"),
        (b"", r"train.csv, line 3: 0 fields"),
    ],
)
def test_a_bad_line_is_named(root: Path, line: bytes, expected: str) -> None:
    path = root / "ag_news" / "train.csv"
    lines = path.read_bytes().split(b"\r\n")
    path.write_bytes(b"\r\n".join([*lines[:2], line, *lines[2:]]))
    with pytest.raises(DataError, match=expected):
        dataset(root)


def test_a_line_break_within_quotes_does_not_shift_the_lines(root: Path) -> None:
    path = root / "ag_news" / "test.csv"
    path.write_bytes(b'"1","a\nb","c"\n"9","a","b"\n')
    with pytest.raises(DataError, match=r"test.csv, line 3: class index '9'"):
        dataset(root)


def test_many_bad_lines_are_counted(root: Path) -> None:
    (root / "ag_news" / "test.csv").write_text('"7","a","b"\n' * 12)
    with pytest.raises(DataError, match=r"line 5: .*test.csv: 7 more such lines"):
        dataset(root)


def test_missing_and_empty_files(root: Path, tmp_path: Path) -> None:
    (root / "ag_news" / "test.csv").write_text("")
    with pytest.raises(DataError, match=r"test.csv is empty"):
        dataset(root)
    (root / "ag_news" / "train.csv").unlink()
    with pytest.raises(DataError, match=r"missing train.csv.*ltexp.data prepare ag_news source=PATH"):
        dataset(root)


# --- the command -----------------------------------------------------------------------------------------------------


def test_prepare_from_a_folder_and_from_the_published_archive(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, source in enumerate((root, root / "ag_news", _archive(root, tmp_path))):
        target = tmp_path / f"prepared{number}"
        assert data_command(["prepare", "ag_news", f"source={source}", f"root={target}"]) == 0
        for name in ("train.csv", "test.csv"):
            assert (target / "ag_news" / name).read_bytes() == (root / "ag_news" / name).read_bytes()
    assert "40 a class" in capsys.readouterr().out.replace("160 train articles (40", "40")


def _archive(root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "ag_news_csv.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("train.csv", "test.csv"):
            content = (root / "ag_news" / name).read_bytes()
            entry = tarfile.TarInfo(f"ag_news_csv/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_prepare_takes_nothing_that_is_wrong(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One clear line, and nothing half-built."""
    (root / "ag_news" / "test.csv").write_text('"7","a","b"\n')
    assert data_command(["prepare", "ag_news", f"source={root}", f"root={tmp_path / 'new'}"]) == 1
    assert "test.csv, line 1: class index '7'" in capsys.readouterr().err
    assert not (tmp_path / "new" / "ag_news").exists()
    assert data_command(["prepare", "ag_news", f"source={tmp_path / 'none'}", f"root={tmp_path / 'new'}"]) == 1
    assert data_command(["prepare", "ag_news", f"root={tmp_path / 'new'}"]) == 1
    assert "source=PATH" in capsys.readouterr().err


def test_check_and_show(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data_command(["check", "ag_news", f"root={root}"]) == 0
    said = capsys.readouterr().out
    assert "160 train articles (40 a class), 40 test articles (10 a class), 4 classes, 16 words on average" in said
    figure = tmp_path / "tail.png"
    assert (
        data_command(["show", "ag_news_lt", "max_per_class=40", "imbalance_ratio=10", f"root={root}", f"out={figure}"])
        == 0
    )
    assert "articles of each class: 40, 18, 8, 4" in capsys.readouterr().out
    assert figure.exists()


def test_reading_a_text_dataset_imports_no_torch(root: Path) -> None:
    code = (
        "import sys; from ltexp.config.build import build; from ltexp.data.commands.catalog import dataset_config; "
        "config = dataset_config('ag_news_lt') | {'max_per_class': 40, 'imbalance_ratio': 10}; "
        f"build(config, root={str(root)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- runs ------------------------------------------------------------------------------------------------------------


def test_bkd_trains_on_text_and_its_record_has_every_class(root: Path, tmp_path: Path) -> None:
    """Without mixup: the paper's settings for this dataset take it out of the method."""
    config = run_here(tmp_path / "run", *SMALL_RUN, "method=bkd", f"paths.data={root}", "evaluation.figures=true")
    assert config.stage2 is not None
    assert config.stage2.mixing == {"_target_": "ltexp.training.mixing.NoMixing"}
    assert config.choices["mixing@stage2.mixing"] == "none"
    record = read_record(tmp_path / "run")
    assert len(record["metrics"]["per_class"]) == 4
    assert record["class_names"] == list(NAMES)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("mixing@stage1.mixing=mixup", r"stage1: mixing mixup .*images.*text.*mixing@stage1.mixing=none"),
        ("augmentation@stage1.augmentation=crop_flip", r"stage1: augmentation crop_flip .*text"),
        ("backbone=resnet20", r"backbone resnet20 reads images"),
    ],
)
def test_what_needs_images_is_refused_on_text(root: Path, tmp_path: Path, override: str, expected: str) -> None:
    small = SMALL_RUN if "backbone" not in override else SMALL[:3]
    with pytest.raises(ConfigError, match=expected):
        run_here(tmp_path / "run", *small, "stage1.epochs=1", "method=ce", f"paths.data={root}", override)
    assert not (tmp_path / "run" / "stage1" / "checkpoint.pt").exists()


def test_text_backbone_is_refused_on_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="backbone textcnn reads text and dataset digits_lt holds images"):
        run_here(tmp_path / "run", "method=ce", "backbone=textcnn")


def test_resume_draws_the_same_dropout(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the first of two epochs and resumed: bit-equal weights, though dropout draws at random."""
    settings = (*SMALL_RUN, "method=ce", f"paths.data={root}", "stage_cache.enabled=false")
    run_here(tmp_path / "whole", *settings)
    from ltexp.training.stage import Stage

    begin = Stage.on_train_epoch_start

    def stop(self: Stage) -> None:
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        begin(self)

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "on_train_epoch_start", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run_here(tmp_path / "stopped", *settings)
    run_here(tmp_path / "stopped", *settings, "resume=true")
    assert_equal_weights(weights(tmp_path / "whole", "stage1"), weights(tmp_path / "stopped", "stage1"))


def test_vectors_of_a_glove_file_start_the_network(root: Path, tmp_path: Path) -> None:
    glove = tmp_path / "glove.txt"
    glove.write_text("w0x1 " + " ".join(["0.5"] * 16) + "\n")
    config = composed(*SMALL, "method=ce", f"backbone.vectors={glove}", f"paths.data={root}")
    data = build(config["dataset"], root=root)
    network = build(config["backbone"], **data.backbone_settings)
    number = data.backbone_settings["vocabulary"].index("w0x1")
    assert torch.equal(network.embedding.weight[number], torch.full((16,), 0.5))
