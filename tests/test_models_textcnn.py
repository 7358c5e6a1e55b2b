"""TextCNN against its definition, its dropout, and GloVe files."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ltexp.distributed import rank
from ltexp.errors import ConfigError, DataError
from ltexp.models.dropout import KeyedDropout
from ltexp.models.textcnn import TextCNN
from ltexp.models.vectors import read_vectors

WORDS = ("<padding>", "<unknown>", "the", "cat", "sat", "at name@domain.com")


def network(**settings: object) -> TextCNN:
    return TextCNN(WORDS, **({"dim": 5, "filters": 3} | settings))  # type: ignore[arg-type]


def test_features_are_the_largest_responses_by_width() -> None:
    """Word by word, by hand: max over positions of ReLU(sum over the window of filter . vector + bias)."""
    model = network().eval().requires_grad_(False)
    tokens = torch.tensor([[2, 3, 4, 5, 1, 0, 0, 0], [4, 4, 2, 0, 0, 0, 0, 0]])
    features = model(tokens)
    assert features.shape == (2, 9)
    for row in range(2):
        vectors = [model.embedding.weight[number] for number in tokens[row]]
        expected = []
        for convolution in model.convolutions:
            width = convolution.weight.shape[2]
            for weight, bias in zip(convolution.weight, convolution.bias, strict=True):
                responses = [
                    sum(float(weight[:, i] @ vectors[start + i]) for i in range(width)) + float(bias)
                    for start in range(len(vectors) - width + 1)
                ]
                expected.append(max(0.0, *responses))
        torch.testing.assert_close(features[row], torch.tensor(expected))


def test_maps_and_short_texts() -> None:
    model = network().eval()
    features, maps = model.forward_maps(torch.tensor([[2, 3]]))
    assert [found.shape for found in maps] == [(1, 3, 3, 1), (1, 3, 2, 1), (1, 3, 1, 1)]
    assert model.map_channels == [3, 3, 3]
    torch.testing.assert_close(features, torch.cat([found.amax((2, 3)) for found in maps], dim=1))


def test_experts_share_the_words_alone() -> None:
    """Each expert is an ordinary network of its own convolutions."""
    model, one = network(experts=2).eval(), network().eval()
    tokens = torch.tensor([[2, 3, 4, 5, 1, 0]])
    features, maps = model.forward_maps(tokens)
    assert features.shape == (1, 2, 9)
    assert [found.shape[1] for found in maps] == model.map_channels == [6, 6, 6]
    one.embedding = model.embedding
    for expert in range(2):
        one.convolutions = model.convolutions[3 * expert : 3 * expert + 3]
        torch.testing.assert_close(one(tokens), features[:, expert])


def test_padding_stays_zero() -> None:
    model = network(dropout=0.0)
    model(torch.tensor([[2, 0, 0, 0, 0, 0]])).sum().backward()
    assert model.embedding.weight.grad is not None
    assert not model.embedding.weight[0].any()
    assert not model.embedding.weight.grad[0].any()


@pytest.mark.parametrize("settings", [{"widths": []}, {"filters": 0}, {"dim": 0}, {"dropout": 1.0}])
def test_settings_out_of_range(settings: dict[str, object]) -> None:
    ((key, value),) = settings.items()
    with pytest.raises(ConfigError, match=re.escape(f"invalid {key}={value}: expected ")):
        network(**settings)


# --- dropout ---------------------------------------------------------------------------------------------------------


def dropped(key: tuple[int, int, int], rows: int = 400, size: int = 400) -> Tensor:
    module = KeyedDropout(0.25).train()
    module.set_step(*key, size)
    return module(torch.ones(rows, 50))


def test_dropout_keeps_the_mean_and_is_nothing_in_eval_mode() -> None:
    values = dropped((0, 1, 2))
    assert sorted(values.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert float(values.mean()) == pytest.approx(1, abs=0.02)
    assert torch.equal(KeyedDropout(0.25).eval()(torch.ones(3, 4)), torch.ones(3, 4))


def test_dropout_depends_on_the_step_alone() -> None:
    assert torch.equal(dropped((0, 1, 2)), dropped((0, 1, 2)))
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert not torch.equal(dropped((0, 1, 2)), dropped(other))


def _rows_of_rank(_: int) -> tuple[int, Tensor]:
    return rank(), dropped((0, 1, 2), rows=2 if rank() else 3, size=5)


def test_processes_drop_what_one_process_drops(run_on_ranks) -> None:  # type: ignore[no-untyped-def]
    whole = dropped((0, 1, 2), rows=5, size=5)
    for number, rows in run_on_ranks(_rows_of_rank, 2, 0):
        assert torch.equal(rows, whole[number::2])


def _views_of_rank(_: int) -> Tensor:
    module, rows = KeyedDropout(0.25).train(), 2 if rank() else 3
    module.set_step(0, 1, 2, size=5, views=2)
    return module(torch.ones(2 * rows, 50)).view(2, rows, 50)


def test_each_view_is_dropped_apart_and_on_processes_as_on_one(run_on_ranks) -> None:  # type: ignore[no-untyped-def]
    """The first view as it would be alone, the second otherwise; of the second half of the rows likewise."""
    module = KeyedDropout(0.25).train()
    module.set_step(0, 1, 2, size=5, views=2)
    both = module(torch.ones(10, 50)).view(2, 5, 50)
    assert torch.equal(both[0], dropped((0, 1, 2), rows=5, size=5))
    assert not torch.equal(both[0], both[1])
    for number, views in enumerate(run_on_ranks(_views_of_rank, 2, 0)):
        assert torch.equal(views, both[:, number::2])
    module.set_step(0, 1, 2, size=5, part=slice(3, 5), views=2)
    assert torch.equal(module(torch.ones(4, 50)).view(2, 2, 50), both[:, 3:])


# --- GloVe -----------------------------------------------------------------------------------------------------------


def test_vectors_are_read_by_word(tmp_path: Path) -> None:
    """The first line of a word counts, and a word may hold a blank, as some of GloVe's do."""
    path = tmp_path / "glove.txt"
    path.write_text("the 1 2\ndog 3 4\nat name@domain.com 5 -6e-1\nthe 9 9\n")
    found = read_vectors(path, WORDS, 2)
    assert {number: vector.tolist() for number, vector in found.items()} == {
        2: [1, 2],
        5: [5, pytest.approx(-0.6)],
    }


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"the 1 2\ncat 1 2 3\n", r"glove.txt, line 2: 3 numbers, expected backbone.dim=2"),
        (b"the 1 2\ncat 1\n", r"glove.txt, line 2: 1 numbers, expected backbone.dim=2"),
        (b"the 1 2\ndog 1 2\ncat 1 two\n", r"glove.txt, line 3: could not convert"),
        (b"the 1 2\nc\xe4t 1 2\n", r"glove.txt, line 2: bytes that are not UTF-8"),
        (b"the 1 nan\n", r"glove.txt, line 1: 'the' has numbers that are not finite"),
        (b"dog 1 2\n", r"glove.txt has none of the dataset's 6 words"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "glove.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=expected):
        read_vectors(path, WORDS, 2)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_vectors(tmp_path / "none.txt", WORDS, 2)
