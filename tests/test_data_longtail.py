"""The subsets are the field's own: sizes and chosen images equal the published ones, draw for draw."""

import numpy as np
import pytest

from ltexp.data.tail.profile import choose_subset, class_sizes, compact_counts, held_out_sizes, workable
from ltexp.errors import ConfigError

CIFAR = {10: 5000, 100: 500}

# Training images by classes, profile and ratio: the sizes that the long-tailed literature prints.
PUBLISHED_TOTALS = [
    (10, "longtail", 10, 20431),
    (10, "longtail", 50, 13996),
    (10, "longtail", 100, 12406),
    (10, "longtail", 200, 11203),
    (100, "longtail", 10, 19573),
    (100, "longtail", 50, 12608),
    (100, "longtail", 100, 10847),
    (100, "longtail", 200, 9502),
    (10, "step", 10, 27500),
    (10, "step", 50, 25500),
    (10, "step", 100, 25250),
    (10, "step", 200, 25125),
    (100, "step", 10, 27500),
    (100, "step", 50, 25500),
    (100, "step", 100, 25250),
    (100, "step", 200, 25100),
    (10, "balanced", 100, 50000),
    (100, "balanced", 100, 50000),
]


@pytest.mark.parametrize(("classes", "imbalance", "ratio", "total"), PUBLISHED_TOTALS)
def test_total_equals_the_published_one(classes: int, imbalance: str, ratio: int, total: int) -> None:
    assert sum(class_sizes(CIFAR[classes], classes, imbalance, ratio)) == total


def test_cifar10_counts_at_ratio_100() -> None:
    assert class_sizes(5000, 10, "longtail", 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


@pytest.mark.parametrize(("ratio", "tail"), [(200, 2), (100, 5), (50, 10), (10, 50)])
def test_cifar100_tail_is_cut_not_rounded(ratio: int, tail: int) -> None:
    assert class_sizes(500, 100, "longtail", ratio)[-1] == tail


# Class counts many (> 100) / medium / few (< 20) of CIFAR-100-LT, as in the literature.
@pytest.mark.parametrize(
    ("ratio", "shots"), [(10, (69, 31, 0)), (50, (41, 41, 18)), (100, (35, 35, 30)), (200, (30, 31, 39))]
)
def test_cifar100_shots(ratio: int, shots: tuple[int, int, int]) -> None:
    sizes = np.array(class_sizes(500, 100, "longtail", ratio))
    many, few = (sizes > 100).sum(), (sizes < 20).sum()
    assert (many, 100 - many - few, few) == shots


def positions_within_class(labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Each chosen image's number among the images of its class, in the data's own order."""
    number = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        number[own] = np.arange(len(own))
    return number[chosen]


# Fixtures of seed 0 at ratio 100: (classes, last class, first positions of class 0 and of the last, sum of all).
@pytest.mark.parametrize(
    ("classes", "first", "last", "total"),
    [
        (10, [398, 3833, 4836], [2204, 3816, 2206], 30953231),
        (100, [90, 254, 283], [348, 153, 363], 2709482),
    ],
)
def test_subset_is_the_published_one(classes: int, first: list[int], last: list[int], total: int) -> None:
    sizes = class_sizes(CIFAR[classes], classes, "longtail", 100)
    # the positions depend on the number of images of each class alone, not on how classes are interleaved
    labels = np.random.RandomState(5).permutation(np.repeat(np.arange(classes), CIFAR[classes]))
    chosen = choose_subset(labels, sizes, seed=0)
    within = positions_within_class(labels, chosen)
    assert chosen.dtype == np.int64
    assert within[:3].tolist() == first
    assert within[-sizes[-1] :][:3].tolist() == last
    assert within.sum() == total
    assert np.array_equal(labels[chosen], np.repeat(np.arange(classes), sizes))
    assert len(np.unique(chosen)) == len(chosen)


def test_subset_depends_on_its_seed_alone() -> None:
    labels = np.repeat(np.arange(4), 50)
    before = np.random.get_state()[1].copy()
    one, again = (choose_subset(labels, [40, 20, 10, 5], seed=3) for _ in range(2))
    other = choose_subset(labels, [40, 20, 10, 5], seed=4)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert np.array_equal(before, np.random.get_state()[1])  # NumPy's global generator is left alone


def test_fewer_classes_keep_the_first_labels() -> None:
    labels = np.repeat(np.arange(4), 50)
    assert np.array_equal(choose_subset(labels, [9, 9], 0), choose_subset(labels, [9, 9, 9, 9], 0)[:18])


def test_step_with_odd_number_of_classes_covers_all() -> None:
    assert class_sizes(100, 5, "step", 10) == [100, 100, 10, 10, 10]


def test_empty_classes_are_named_with_the_counts() -> None:
    with pytest.raises(ConfigError) as error:
        class_sizes(10, 4, "longtail", 25, ["cat", "dog", "eel", "fox"])
    message = str(error.value)
    assert "3 (fox)" in message
    assert "10, 3, 1, 0" in message
    assert "at most 10 with max_per_class=10" in message
    assert "\n" not in message
    assert class_sizes(10, 4, "longtail", 10)[-1] == 1  # what the message recommends works


def test_recommended_ratio_works_where_division_falls_short() -> None:
    with pytest.raises(
        ConfigError, match="invalid imbalance_ratio=60: expected at most 48 with max_per_class=49; it leaves 1 of 3"
    ):  # 49 * (1 / 49) is below 1 in floating point
        class_sizes(49, 3, "longtail", 60)
    assert class_sizes(49, 3, "longtail", 48)[-1] == 1


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"ratio": 0.5}, "imbalance_ratio=0.5"),
        ({"ratio": float("nan")}, "imbalance_ratio=nan"),
        ({"ratio": "10x"}, "imbalance_ratio=10x"),
        ({"imbalance": "longtial"}, "did you mean 'longtail'"),
        ({"max_per_class": 0}, "max_per_class=0"),
        ({"max_per_class": 10.5}, "max_per_class=10.5"),
        ({"num_classes": 1}, "num_classes=1"),
    ],
)
def test_bad_settings_have_one_line(keywords: dict[str, object], words: str) -> None:
    good = {"max_per_class": 100, "num_classes": 4, "imbalance": "longtail", "ratio": 10}
    with pytest.raises(ConfigError, match=words) as error:
        class_sizes(**(good | keywords))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_workable_settings_are_the_tightest() -> None:
    available = np.array([100, 60, 30, 10])
    assert workable(available, 10**12, "longtail", 2)[0] is None  # at once: no ratio makes the first class smaller
    ratio, largest = workable(available, 100, "longtail", 2)
    assert ratio is not None
    assert largest is not None
    assert (np.array(class_sizes(100, 4, "longtail", ratio)) <= available).all()
    assert not (np.array(class_sizes(100, 4, "longtail", ratio - 1)) <= available).all()
    assert (np.array(class_sizes(largest, 4, "longtail", 2)) <= available).all()
    assert not (np.array(class_sizes(largest + 1, 4, "longtail", 2)) <= available).all()


def test_held_out_part() -> None:
    # floor, at least one, at most max_per_class, never all of a class
    assert held_out_sizes([100, 29, 9, 2, 1], 0.1) == [10, 2, 1, 1, 0]
    assert held_out_sizes([100, 29, 9, 2, 1], 0.1, max_per_class=5) == [5, 2, 1, 1, 0]
    assert held_out_sizes([100, 3], 0.29) == [29, 1]
    assert held_out_sizes([100, 3], 0.0) == [0, 0]


def test_compact_counts() -> None:
    assert compact_counts([5, 5, 5, 2, 1, 1]) == "5 x3, 2, 1 x2"
