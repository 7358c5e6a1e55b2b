"""What must hold for any list, text, counts and number of processes, over inputs that hypothesis makes up."""

import csv
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ltexp.config.build import build
from ltexp.config.composer import compose
from ltexp.config.words import parse_value, split_words
from ltexp.data import samplers
from ltexp.data.files.lists import ImageList, read_list
from ltexp.data.files.source import read_names
from ltexp.data.images.loader import ImageLoader
from ltexp.data.tail.profile import choose_subset, class_sizes, held_out_sizes
from ltexp.data.text.articles import read_articles
from ltexp.data.types import ImageSplit
from ltexp.errors import ConfigError, DataError, LtexpError
from ltexp.launching.explain import explained
from ltexp.models.vectors import read_vectors

# always the same examples, and nothing kept between runs
steady = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
few = settings(steady, max_examples=20)


@contextmanager
def told_in_a_line(kind: type[LtexpError], typed: str = "") -> Iterator[None]:
    """Whatever is raised is of that kind and, but for what was typed, one line."""
    try:
        yield
    except kind as error:
        if "\n" in str(error).replace(typed, "").replace(repr(typed)[1:-1], ""):
            raise AssertionError(f"more than a line: {error}") from error


LETTERS = st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp"), exclude_characters='\\"/,\x00')
WORDS = st.text(LETTERS, min_size=1, max_size=12).filter(lambda word: word not in (".", ".."))
PATHS = st.lists(WORDS, min_size=1, max_size=3).map("/".join)
BETWEEN = st.sampled_from([" ", "  ", "\t", ",", ", "])
COUNTS = st.lists(st.integers(1, 30), min_size=2, max_size=8)


@steady
@given(
    entries=st.dictionaries(PATHS, st.integers(0, 999), min_size=1, max_size=20),
    between=BETWEEN,
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_a_list_comes_back_as_it_was_written(
    entries: dict[str, int], between: str, end: str, encoding: str, tmp_path: Path
) -> None:
    text = "".join(f"{path}{between}{label}{end}" for path, label in entries.items())
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    found, problems = read_list(tmp_path / "list.txt", tmp_path)
    assert problems == []
    assert found is not None
    assert dict(zip((path.decode() for path in found.paths), found.labels.tolist(), strict=True)) == entries


@steady
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_told_in_lines(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    found, problems = read_list(path, tmp_path)
    assert (found is None) or not problems or "also line" in problems[0]
    assert found is not None or problems
    names, wrong = read_names(path)
    assert (names is None) == bool(wrong)
    texts, labels, faults = read_articles(path, 3, 1)
    assert len(texts) == len(labels)
    for line in (*problems, *wrong, *faults):
        assert "\n" not in line
    assert_inside(found)


def assert_inside(found: ImageList | None) -> None:
    """Nothing outside the folder is named."""
    for name in [] if found is None else found.paths.tolist():
        assert not name.startswith(b"/")
        assert b".." not in name.split(b"/")


STEPS = st.sampled_from(["", ".", "..", "a", "b.jpg", "~", "c d", "C:", "..\\x"])
LISTED = st.tuples(st.lists(STEPS, min_size=1, max_size=4).map("/".join), BETWEEN, st.integers(0, 9))


@steady
@given(rows=st.lists(LISTED, min_size=1, max_size=4))
def test_a_list_names_nothing_outside_its_folder(rows: list[tuple[str, str, int]], tmp_path: Path) -> None:
    """Whatever steps a path takes: it is refused in a line, or stays below the folder."""
    path = tmp_path / "file"
    path.write_text("".join(f"{name}{between}{label}\n" for name, between, label in rows))
    found, problems = read_list(path, tmp_path)
    assert (found is None) == bool(problems)
    for line in problems:
        assert "\n" not in line
    assert_inside(found)
    inside = all(name and not name.startswith("/") and ".." not in name.split("/") for name, *_ in rows)
    event("outside" if not inside else "read" if found is not None else "refused")
    assert inside or found is None


@steady
@given(
    rows=st.lists(
        st.tuples(
            st.integers(1, 5),
            st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00\r"), min_size=1),
        ).filter(lambda row: row[1].strip() != ""),
        min_size=1,
        max_size=8,
    )
)
def test_articles_come_back_as_they_were_written(rows: list[tuple[int, str]], tmp_path: Path) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    (tmp_path / "train.csv").write_bytes(text.getvalue().encode())
    texts, labels, problems = read_articles(tmp_path / "train.csv", 5, 1)
    assert problems == []
    assert (labels, texts) == ([number - 1 for number, _ in rows], [text for _, text in rows])


@steady
@given(content=st.binary(max_size=100))
def test_any_bytes_for_vectors_are_read_or_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_bytes(content)
    with told_in_a_line(DataError):
        read_vectors(tmp_path / "v.txt", ("a", "b"), 2)


@steady
@given(text=st.text(max_size=30))
def test_any_value_of_a_command_is_read_or_refused(text: str) -> None:
    with told_in_a_line(ConfigError, text):
        parse_value("key", text)


@steady
@given(value=st.one_of(st.integers(), st.booleans(), st.none(), st.lists(st.integers(), max_size=4)))
def test_a_value_of_a_command_comes_back(value: object) -> None:
    import yaml

    typed = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    assert parse_value("key", typed) == value


@steady
@given(values=st.dictionaries(st.sampled_from(["a", "b.c", "d"]), st.text(max_size=20)), others=st.lists(WORDS))
def test_words_of_a_command_are_told_apart(values: dict[str, str], others: list[str]) -> None:
    others = [word for word in others if "=" not in word and word]
    typed = [*others, *(f"{key}={value}" for key, value in values.items() if value)]
    found, options = split_words(typed, ["a", "b.c", "d"])
    assert found == others
    assert options == {key: value for key, value in values.items() if value}


@pytest.mark.slow
@few
@given(text=st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20))
def test_any_text_can_be_the_value_of_an_override(text: str) -> None:
    """In quotes, with quotes and the backslashes before them escaped, as docs/reliability.md shows it."""
    quoted = "'" + quoted_for_hydra(text) + "'"
    if "${" in text:  # OmegaConf's reading of another key, which quotes do not take away
        return
    assert compose([f"dataset.name={quoted}"]).dataset.name == text


def quoted_for_hydra(text: str) -> str:
    """Backslashes count only before a quote or the end: there each is doubled."""
    import re

    return re.sub(r"(\\*)(?=')|(\\+)$", lambda found: found[0] * 2, text).replace("'", "\\'")


@pytest.mark.slow
@few
@given(text=st.text(max_size=25))
def test_any_text_as_an_override_is_read_or_one_line(text: str) -> None:
    with told_in_a_line(ConfigError, text), explained([text]):
        compose([text])


@steady
@given(
    most=st.integers(1, 2000),
    classes=st.integers(2, 120),
    kind=st.sampled_from(["longtail", "step", "balanced"]),
    ratio=st.floats(1, 500, allow_nan=False),
)
def test_profiles_fall_from_the_largest_class_to_the_ratio(most: int, classes: int, kind: str, ratio: float) -> None:
    if kind != "balanced" and most / ratio < 1 + 1e-9:
        with told_in_a_line(ConfigError):
            assert min(class_sizes(most, classes, kind, ratio)) >= 1
        return
    sizes = class_sizes(most, classes, kind, ratio)
    assert len(sizes) == classes
    assert sizes[0] == most
    assert sizes == sorted(sizes, reverse=True)
    smallest = most if kind == "balanced" else most / ratio
    assert sizes[-1] >= 1
    assert smallest - 1 - 1e-6 < sizes[-1] <= smallest + 1e-6


@steady
@given(counts=COUNTS, seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_subset_has_the_sizes_asked_for(counts: list[int], seed: int, data: st.DataObject) -> None:
    sizes = [data.draw(st.integers(1, count)) for count in counts]
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    kept = choose_subset(labels, sizes, seed)
    assert len(set(kept.tolist())) == len(kept)
    assert np.bincount(labels[kept], minlength=len(counts)).tolist() == sizes
    assert kept.tolist() == choose_subset(labels, sizes, seed).tolist()


@steady
@given(counts=COUNTS, fraction=st.floats(0, 0.999), most=st.none() | st.integers(1, 40))
def test_what_is_held_out_leaves_an_image_of_each_class(counts: list[int], fraction: float, most: int | None) -> None:
    held = held_out_sizes(counts, fraction, most)
    for count, out in zip(counts, held, strict=True):
        assert 0 <= out < count
        assert out <= (most or math.inf)
        assert out <= max(1, count * fraction + 1e-6)
        assert (out > 0) == (fraction > 0 and count > 1)


SAMPLERS: dict[str, dict[str, Any]] = {
    name: {"_target_": f"ltexp.data.samplers.{name}"}
    for name in ("InstanceBalanced", "ClassBalanced", "ClassAware", "SquareRoot", "ProgressivelyBalanced", "Reversed")
} | {"EffectiveNumber": {"_target_": "ltexp.data.samplers.EffectiveNumber"}}


@pytest.mark.parametrize("name", SAMPLERS)
@settings(steady, max_examples=25)
@given(counts=COUNTS, seed=st.integers(0, 10**6), epoch=st.integers(0, 3))
def test_a_sampler_shows_what_it_says(name: str, counts: list[int], seed: int, epoch: int) -> None:
    labels = torch.tensor(np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)))
    sampler = build(SAMPLERS[name], labels=labels, class_counts=torch.tensor(counts))
    shares = sampler.class_probabilities(epoch, 4)
    assert shares.sum().item() == pytest.approx(1)
    assert (shares >= 0).all()
    order = sampler.indices(seed, epoch, 4)
    assert len(order) == len(labels)
    assert ((order >= 0) & (order < len(labels))).all()
    assert torch.equal(order, sampler.indices(seed, epoch, 4))
    shown = torch.bincount(labels[order], minlength=len(counts)).double()
    if name == "InstanceBalanced":
        assert sorted(order.tolist()) == list(range(len(labels)))
    elif name == "ClassAware":  # whole cycles over the classes: no two differ by more than one visit
        assert shown.max() - shown.min() <= 4
    else:  # draws: within seven standard deviations
        deviation = (len(labels) * shares * (1 - shares)).sqrt()
        assert ((shown - len(labels) * shares).abs() <= 7 * deviation + 1).all()


@settings(steady, max_examples=40)
@given(
    counts=COUNTS,
    batch_size=st.integers(1, 40),
    world=st.integers(1, 5),
    shuffled=st.booleans(),
    sampler=st.sampled_from(["InstanceBalanced", "ClassAware"]),
)
def test_the_shares_of_all_processes_are_the_stream(
    counts: list[int], batch_size: int, world: int, shuffled: bool, sampler: str
) -> None:
    """Each step's rows of all processes are those of one process, and their weights are of that many rows."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.zeros((len(labels), 2, 2, 3), np.uint8)
    split = ImageSplit(images=images, labels=labels, index=np.arange(len(labels)))

    def batches(rank: int, processes: int) -> list[Any]:
        chosen = getattr(samplers, sampler)(torch.tensor(labels), torch.tensor(counts))
        keywords: dict[str, Any] = {"channel_mean": (0.5,) * 3, "channel_std": (0.5,) * 3, "shuffle_within": shuffled}
        return list(
            ImageLoader(
                split, batch_size=batch_size, device="cpu", sampler=chosen, rank=rank, world_size=processes, **keywords
            )
        )

    alone, parts = batches(0, 1), [batches(rank, world) for rank in range(world)]
    for step, whole in enumerate(alone):
        rows = len(whole.index)
        shares = [part[step] for part in parts]
        own = [round(share.share * rows / world) for share in shares]
        assert sum(own) == rows
        together = torch.cat([share.index[:count] for share, count in zip(shares, own, strict=True)])
        assert sorted(together.tolist()) == sorted(whole.index.tolist())
    assert {len(part) for part in parts} == {len(alone)}
