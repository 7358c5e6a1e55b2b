"""What a sampler's stream of indices promises: its draws, its order, and the same images on any number of processes."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from choices import build, names
from torch import Tensor
from torch.utils.data import DataLoader

from ltexp.data.deferred import Deferred
from ltexp.data.samplers import ClassAware, ClassBalanced, InstanceBalanced, Sampler
from ltexp.errors import ConfigError
from ltexp.samplers import EpochSampler

COUNTS = torch.tensor([5, 60, 2, 23, 110])  # unsorted, and a class smaller than the images of one visit


def shuffled_labels(counts: Tensor) -> Tensor:
    labels = torch.arange(len(counts)).repeat_interleave(counts)
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


LABELS = shuffled_labels(COUNTS)


def sampler(name: str, **settings: object) -> Sampler:
    return build("sampler", name, labels=LABELS, class_counts=COUNTS, **settings)


@pytest.mark.parametrize("name", names("sampler"))
def test_classes_come_as_often_as_promised(name: str) -> None:
    """The stream's class frequencies agree with `class_probabilities`, and every image of a class is as likely."""
    built = sampler(name, epoch_length=40_000)
    expected = built.class_probabilities(3, 10)
    assert expected.dtype == torch.float64
    assert expected.sum().item() == pytest.approx(1, abs=1e-12)
    times_shown = torch.bincount(built.indices(0, 3, 10), minlength=len(LABELS)).double()
    shares = torch.zeros(5, dtype=torch.float64).index_add_(0, LABELS, times_shown) / 40_000
    torch.testing.assert_close(shares, expected, rtol=0, atol=0.012)  # five standard deviations of a share
    per_image = 40_000 * expected[LABELS] / COUNTS[LABELS]
    assert ((times_shown - per_image).abs() < 5.5 * per_image.sqrt() + 1).all()


@pytest.mark.parametrize("name", names("sampler"))
def test_stream_depends_on_seed_and_epoch_alone(name: str) -> None:
    torch.manual_seed(5)
    first = sampler(name).indices(0, 3, 10)
    torch.manual_seed(6)
    before = torch.random.get_rng_state()
    again = sampler(name)
    again.indices(0, 2, 10)  # an epoch before leaves no trace: a resumed run does not have it
    torch.testing.assert_close(again.indices(0, 3, 10), first)
    assert not torch.equal(again.indices(1, 3, 10), first)
    assert not torch.equal(again.indices(0, 4, 10), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.dtype == torch.int64
    assert first.shape == ({"shot_group": 83}.get(name, 200),)  # of 83 images of its group


@pytest.mark.parametrize("name", names("sampler"))
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_stream(name: str, world_size: int) -> None:
    """A process takes rows rank, rank + world size, ... of each global batch; together they are one process."""
    batch = 32
    stream = sampler(name).indices(0, 1, 10)
    shares = []
    for rank in range(world_size):
        own = sampler(name).indices(0, 1, 10)  # every process draws for itself
        shares += [own[start + rank : min(start + batch, len(own)) : world_size] for start in range(0, len(own), batch)]
    assert sorted(torch.cat(shares).tolist()) == sorted(stream.tolist())


@pytest.mark.parametrize("length", [1, 199, 200, 450])
def test_instance_balanced_shows_every_image_once(length: int) -> None:
    stream = InstanceBalanced(LABELS, COUNTS, epoch_length=length).indices(0, 0, 1)
    assert len(stream) == length
    for start in range(0, length, 200):
        assert stream[start : start + 200].unique().numel() == len(stream[start : start + 200])


@pytest.mark.parametrize("images_per_class", [1, 4, 7])
def test_class_aware_walks_in_cycles(images_per_class: int) -> None:
    """Each cycle visits every class once; a class's images all come before one comes again."""
    length = 5 * images_per_class * 20 + 3  # 20 cycles and a piece
    built = ClassAware(LABELS, COUNTS, images_per_class=images_per_class, epoch_length=length)
    stream = built.indices(0, 0, 1)
    assert len(stream) == length
    visits = LABELS[stream[: length - 3]].view(20, 5, images_per_class)
    assert (visits == visits[:, :, :1]).all()  # a visit shows one class
    cycles = visits[:, :, 0]
    assert (cycles.sort(dim=1).values == torch.arange(5)).all()
    assert len(cycles.unique(dim=0)) > 10  # in an order that is new each cycle
    for c, n in enumerate(COUNTS.tolist()):
        shown = stream[LABELS[stream] == c]
        rounds = [shown[start : start + n] for start in range(0, len(shown), n)]
        assert all(r.unique().numel() == len(r) for r in rounds)
        if n == 5:
            assert len(torch.stack(rounds[:-1]).unique(dim=0)) > len(rounds) // 3  # reshuffled each round


def test_class_aware_batch_holds_equal_shares() -> None:
    """A batch of 128 with 4 images a visit holds 32 visits; with 16 classes that is 8 images of each."""
    counts = torch.arange(10, 26)
    labels = shuffled_labels(counts)
    stream = ClassAware(labels, counts, epoch_length=256).indices(0, 0, 1)
    assert (torch.bincount(labels[stream[:128]]) == 8).all()


def test_class_aware_is_exact_and_fast_at_inaturalists_size() -> None:
    """437,513 images of 8,142 classes, 2 to 1,000 each, in well under a second; no image twice within a round."""
    n = torch.linspace(1000, 2, 8142).pow(3)
    n = (2 + n * (437_513 - 2 * 8142) / n.sum()).long()
    n[0] += 437_513 - n.sum()
    labels = shuffled_labels(n)
    built = ClassAware(labels, n)
    start = time.perf_counter()
    stream = built.indices(0, 0, 1)
    assert time.perf_counter() - start < 2  # measured 0.3 s on one core; a loop over classes takes many times that
    assert len(stream) == 437_513
    visited = torch.bincount(labels[stream], minlength=8142)
    assert visited.min() >= 13 * 4  # 437,513 / 4 visits are 13.4 cycles
    assert visited.max() <= 14 * 4
    times_shown = torch.bincount(stream, minlength=len(labels))
    least = (visited // n)[labels]
    assert ((times_shown == least) | (times_shown == least + 1)).all()


def test_class_balanced_draws_are_independent() -> None:
    """Drawn with replacement: among 200 draws of 2 images of class 2, not an even split every time."""
    splits = set()
    for seed in range(10):
        stream = ClassBalanced(LABELS, COUNTS).indices(seed, 0, 1)
        shown = stream[LABELS[stream] == 2]
        splits.add((len(shown), int((shown == shown[0]).sum())))
    assert len(splits) > 3


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "instance_balanced",
            {"epoch_length": 0},
            "invalid epoch_length=0: expected a whole number of 1 or more, or null",
        ),
        ("class_aware", {"images_per_class": 0}, "invalid images_per_class=0: expected a whole number of 1 or more"),
        ("effective_number", {"beta": 1.0}, "invalid beta=1.0: expected a number of 0 or more and below 1"),
        (
            "class_based_effective_number",
            {"base": 0.9999},
            "invalid slope=0.0009: expected a number of 0 or more and below 1 - base = 0.0001",
        ),
        ("class_based_effective_number", {"slope": -0.1}, "slope=-0.1"),
        ("class_balanced", {"class_counts": torch.tensor([5, 60, 2, 23, 111])}, "not the counts of the labels"),
        ("class_balanced", {"class_counts": torch.tensor([5, 60, 2, 23, 110, 0])}, "no training images for class 5"),
        ("class_balanced", {"labels": LABELS.double()}, "int64 tensor of shape"),
        ("class_balanced", {"labels": LABELS[:, None]}, r"got torch.int64 of shape \(200, 1\)"),
        ("class_balanced", {"labels": LABELS[:0]}, "labels hold no label"),
        ("class_balanced", {"labels": LABELS - 1}, "labels hold a label below 0"),
        ("class_balanced", {"epoch_length": 2.5}, "invalid epoch_length=2.5: expected a whole number of 1 or more"),
        ("class_aware", {"images_per_class": 2.5}, "invalid images_per_class=2.5: expected a whole number of 1 or mo"),
    ],
)
def test_bad_settings(name: str, settings: dict[str, object], message: str) -> None:
    from hydra.errors import InstantiationException

    with pytest.raises(InstantiationException) as caught:
        build("sampler", name, **{"labels": LABELS, "class_counts": COUNTS, **settings})
    assert isinstance(caught.value.__cause__, ConfigError)
    assert caught.match(message)


@pytest.mark.parametrize("of", [list, Tensor.numpy])
def test_labels_that_are_no_tensor_are_refused(of: Callable[[Tensor], object]) -> None:
    labels: Any = of(LABELS)
    with pytest.raises(ConfigError, match=rf"got {type(labels).__name__}: torch.as_tensor makes one of it"):
        ClassAware(labels, COUNTS)
    with pytest.raises(ConfigError, match=r"got torch.int32 of shape \(200,\)$"):
        ClassAware(LABELS.int(), COUNTS)


def test_a_sampler_without_an_epoch_is_told_apart_by_a_data_loader() -> None:
    with pytest.raises(
        ConfigError, match=r"^ClassAware does not know the epoch: give .*EpochSampler\(sampler, epochs="
    ):
        list(DataLoader(range(len(LABELS)), sampler=ClassAware(LABELS, COUNTS)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 2.5}, "invalid epochs=2.5: expected a whole number"),
        ({"epochs": 2, "rank": 0.5}, "invalid rank=0.5: expected a whole number from 0 to world_size - 1 = 0"),
        ({"epochs": 2, "world_size": 1.5}, "invalid world_size=1.5: expected a whole number"),
        ({"epochs": 2, "sampler": [1, 2]}, "takes a sampler of ltexp.samplers, got list"),
    ],
)
def test_an_epoch_sampler_refuses_what_it_cannot_go_through(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EpochSampler(**{"sampler": ClassAware(LABELS, COUNTS), **settings})


def test_deferred_takes_samplers_as_it_takes_their_nodes() -> None:
    before, after = InstanceBalanced(LABELS, COUNTS), ClassBalanced(LABELS, COUNTS)
    made, built = Deferred(LABELS, COUNTS, before, after, start=0.5), sampler("deferred", start=0.5)
    for epoch in (4, 5):
        assert torch.equal(made.indices(0, epoch, 10), built.indices(0, epoch, 10))
        assert torch.equal(made.indices(0, epoch, 10), (before, after)[epoch == 5].indices(0, epoch, 10))
    for part, settings, message in (
        (ClassBalanced(LABELS.flip(0), COUNTS), {}, "after: its labels are others"),
        (after, {"epoch_length": 50}, "before: it shows 200 images an epoch: build it with epoch_length=50"),
        (ClassBalanced, {}, "after: expected a sampler, or the config node of one, got ABCMeta"),
    ):
        with pytest.raises(ConfigError, match=message):
            Deferred(LABELS, COUNTS, before, part, **settings)
