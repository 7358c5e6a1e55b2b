"""Lists, names and articles as people have them: UTF-16, marks, tabs, commas, quotes, headers, fields of any length."""

import csv
from pathlib import Path

import pytest

from ltexp.data.files.lists import read_list
from ltexp.data.files.source import read_names
from ltexp.data.text.articles import read_articles
from ltexp.models.vectors import read_vectors

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]
ENTRIES = [("a/图 1.jpg", 0), ("b/ü,2.jpg", 1), ("c/3.jpg", 10)]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("between", [" ", "\t", ",", ", "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_is_the_same_however_it_was_saved(encoding: str, between: str, end: str, tmp_path: Path) -> None:
    text = end.join(f"{path}{between}{label}" for path, label in ENTRIES) + end
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    found, problems = read_list(tmp_path / "list.txt", tmp_path)
    assert problems == []
    assert found is not None
    assert [(path.decode(), label) for path, label in zip(found.paths, found.labels, strict=True)] == ENTRIES


def test_a_list_that_a_spreadsheet_quoted_is_read(tmp_path: Path) -> None:
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(ENTRIES)
    found, problems = read_list(tmp_path / "list.csv", tmp_path)
    assert problems == []
    assert found is not None
    assert [path.decode() for path in found.paths] == [path for path, _ in ENTRIES]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"path label\na.jpg 0\n",
            "line 1: expected a label from 0 at its end, found 'label'; if it names the columns",
        ),
        (
            b"image,class\na.jpg,0\n",
            "line 1: expected a label from 0 at its end, found 'class'; if it names the columns",
        ),
        (b"a.jpg 0\rb.jpg 1\r", "lines end as on old Macs"),
        ("a.jpg 0\nb.jpg 1\n".encode("utf-16-le"), "it holds zero bytes; is the list UTF-16? save it as UTF-8"),
        (b"\xff\xfea", "it begins as UTF-16 does and is not: save it as UTF-8"),
        (b"a.jpg crow\n", "line 1: expected a label from 0 at its end, found 'crow'\n"),
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "line 1"),
    ],
)
def test_a_list_that_cannot_be_read_says_what_to_do(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    found, problems = read_list(tmp_path / "list.txt", tmp_path)
    assert found is None
    assert said in problems[0] + "\n"
    assert not any("\n" in problem for problem in problems)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_class_names_are_read_however_they_were_saved(encoding: str, tmp_path: Path) -> None:
    names = ("crow", "鹭", "a\u2028b", "naïve\x85")  # neither sign ends a line in an editor
    (tmp_path / "classes.txt").write_bytes("\r\n".join(names).encode(encoding))
    assert read_names(tmp_path / "classes.txt") == (tuple(name.strip() for name in names), [])


@pytest.mark.parametrize(
    "content", [b"\xe9\nb\n", b"\xff\xfea", "a\nb\n".encode("utf-16-be"), b"", b"a\n\nb\n", b"a\na\n"]
)
def test_class_names_that_are_none_are_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(content)
    names, problems = read_names(tmp_path / "classes.txt")
    assert names is None
    assert len(problems) == 1
    assert "\n" not in problems[0]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("header", [[], [["Class Index", "Title", "Description"]], [["label", "a", "b"]]])
def test_articles_are_the_same_however_they_were_saved(encoding: str, header: list[list[str]], tmp_path: Path) -> None:
    rows = [["1", 'He said "no", twice', "line\nbreak"], ["2", "一", "x" * 300_000], ["1", "", "text"]]
    with (tmp_path / "train.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(header + rows)
    texts, labels, problems = read_articles(tmp_path / "train.csv", 2, 2)
    assert problems == []
    assert labels == [0, 1, 0]
    assert texts == [f"{title} {text}" for _, title, text in rows]
    assert csv.field_size_limit() == 131072  # the limit of others is as it was


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"1\ta\tb\n", "line 1: fields stand between tabs: write commas"),
        (b'1,"say \\"no\\"",b\n', "a double quote in it is written twice"),
        (b"Kind,a,b\n1,a,b\n", "line 1: class index 'Kind', expected 1 to 2"),
        (b"1;a;b\n", "line 1: 1 fields, expected 3"),
        (b"1,a\0,b\n", ""),
    ],
)
def test_articles_that_cannot_be_read_say_what_to_do(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(content)
    _, _, problems = read_articles(tmp_path / "train.csv", 2, 2)
    assert said in "".join(problems)


@pytest.mark.parametrize("start", ["", "3 2\n"])
@pytest.mark.parametrize("between", [" ", "\t"])
def test_vectors_of_word2vec_and_fasttext_are_read(start: str, between: str, tmp_path: Path) -> None:
    rows = ["a 1 2", "b 3 4", "c 5 6"]
    (tmp_path / "v.vec").write_text(start + "\n".join(row.replace(" ", between) for row in rows) + "\n")
    found = read_vectors(tmp_path / "v.vec", ("<padding>", "<unknown>", "b"), 2)
    assert {number: vector.tolist() for number, vector in found.items()} == {2: [3.0, 4.0]}
