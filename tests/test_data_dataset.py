"""A dataset as a run uses it: what is in it, what is held out, how it is identified, and how bad input is answered."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import write_articles

from ltexp.config.build import build
from ltexp.data.commands.catalog import dataset_config, datasets
from ltexp.data.images.dataset import listed_sizes, long_tailed
from ltexp.data.types import LongTailedData, Source, SourceArrays
from ltexp.errors import ConfigError, DataError, LtexpError

CLASSES, PER_CLASS = 4, 60


class Made(Source):
    """Images whose first pixel says where they are in the source."""

    def __init__(self, counts: tuple[int, ...] = (PER_CLASS,) * CLASSES) -> None:
        order = np.random.RandomState(1)
        labels = order.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
        images = np.zeros((len(labels), 2, 2, 3), dtype=np.uint8)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(len(labels)) // 256, np.arange(len(labels)) % 256
        test = np.arange(20) % len(counts)
        names = tuple(f"c{label}" for label in range(len(counts)))
        self.arrays = SourceArrays(images, labels, images[:20], test.astype(np.int64), names)

    def inspect(self, root: Path) -> tuple[SourceArrays, list[str]]:
        return self.arrays, []


def make(source: Made | None = None, **changed: Any) -> LongTailedData:
    settings: dict[str, Any] = {"max_per_class": 50, "imbalance_ratio": 10, "name": "made", "root": "."}
    settings |= {"channel_mean": [0.5] * 3, "channel_std": [0.25] * 3}
    return long_tailed(source=source or Made(), **(settings | changed))


def test_train_split_holds_the_chosen_images() -> None:
    source = Made()
    data = make(source)
    assert data.class_counts.tolist() == [50, 23, 10, 5]
    assert np.array_equal(np.bincount(data.train.labels), data.class_counts)
    assert np.array_equal(data.train.images, source.arrays.train_images[data.train.index])
    assert np.array_equal(data.train.labels, source.arrays.train_labels[data.train.index])
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == data.train.index.dtype == data.class_counts.dtype == np.int64
    assert np.array_equal(data.test.images, source.arrays.test_images)
    assert data.validation is None
    assert (data.num_classes, data.class_names) == (4, ("c0", "c1", "c2", "c3"))


def test_sizes_can_be_listed_for_the_first_classes() -> None:
    settings: dict[str, Any] = {"channel_mean": [0.5] * 3, "channel_std": [0.25] * 3}
    source = Made()
    data = listed_sizes(source=source, root=".", name="made", class_sizes=[50, 5, 10], **settings)
    assert data.class_counts.tolist() == [50, 5, 10]
    assert (data.imbalance, data.imbalance_ratio, data.class_names) == ("given", 10.0, ("c0", "c1", "c2"))
    assert np.array_equal(data.train.images, source.arrays.train_images[data.train.index])
    assert np.bincount(data.test.labels).tolist() == [5, 5, 5]
    for sizes, message in (([5], "class_sizes"), ([5, 0], "class_sizes"), (5, "class_sizes")):
        with pytest.raises(ConfigError, match=message):
            listed_sizes(source=source, root=".", name="made", class_sizes=sizes, **settings)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"class_sizes=\[61, 5\]: class 0 \(c0\) has 60 of 61"):
        listed_sizes(source=source, root=".", name="made", class_sizes=[61, 5], **settings)


def test_validation_is_held_out_of_the_same_subset() -> None:
    data, whole = make(validation={"fraction": 0.1, "max_per_class": 3}), make()
    assert data.validation is not None
    assert np.bincount(data.validation.labels).tolist() == [3, 2, 1, 1]
    assert data.class_counts.tolist() == [47, 21, 9, 4]
    together = np.concatenate([data.train.index, data.validation.index])
    assert sorted(together) == sorted(whole.train.index)
    assert data.subset_hash == whole.subset_hash
    assert data.content_hash != whole.content_hash


def test_class_of_one_image_keeps_it_for_training() -> None:
    data = make(imbalance_ratio=50, validation={"fraction": 0.5})
    assert data.validation is not None
    assert data.class_counts[-1] == 1
    assert 3 not in data.validation.labels


def test_hashes_tell_subsets_apart() -> None:
    data = make()
    assert make().subset_hash == data.subset_hash
    assert make().content_hash == data.content_hash
    assert make(subset={"seed": 1}).subset_hash != data.subset_hash
    assert make(imbalance_ratio=9).subset_hash != data.subset_hash
    repainted = Made()
    repainted.arrays.train_images[data.train.index[0], 1, 1, 2] = 9
    assert make(repainted).subset_hash == data.subset_hash
    assert make(repainted).content_hash != data.content_hash


def test_fewer_classes_are_the_first_labels() -> None:
    data = make(num_classes=2)
    assert data.class_counts.tolist() == [50, 5]
    assert set(data.test.labels) == {0, 1}
    assert len(data.test) == 10


def test_balanced_has_ratio_one() -> None:
    data = make(imbalance="balanced")
    assert data.class_counts.tolist() == [50] * 4
    assert data.imbalance_ratio == 1.0


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        (
            {"num_classes": 9},
            ConfigError,
            "invalid num_classes=9: expected at most 4 .made has 4 classes., or null for all",
        ),
        ({"imbalance_ratio": 200}, ConfigError, r"3 \(c3\); the counts would be 50, 8, 1, 0"),
        ({"imbalance": "given"}, ConfigError, r"invalid imbalance=given: expected longtail \| step \| balanced"),
        ({"validation": {"max_per_class": 2}}, ConfigError, r"validation\.fraction above 0"),
        ({"subset": {"sede": 1}}, ConfigError, r"unknown key 'subset.sede': did you mean 'subset.seed'\?"),
        ({"subset": {"seed": -1}}, ConfigError, "subset.seed=-1"),
        ({"validation": {"fraction": 1.0}}, ConfigError, "validation.fraction=1.0"),
        ({"validation": {"fraction": 0.1, "max_per_class": 0}}, ConfigError, "validation.max_per_class=0"),
        (
            {"max_per_class": 1, "imbalance": "balanced", "validation": {"fraction": 0.5}},
            ConfigError,
            "invalid validation.fraction=0.5: expected 0, since no class has more than one of the images",
        ),
        ({"channel_mean": [0.5]}, ConfigError, "channel_mean"),
        ({"channel_std": [0.5, 0, 0.5]}, ConfigError, "channel_std"),
        ({"max_per_class": 61}, DataError, r"class 0 \(c0\) has 60 of 61.*max_per_class=60 or less"),
    ],
)
def test_bad_settings_have_one_line(changed: dict[str, Any], kind: type[LtexpError], words: str) -> None:
    with pytest.raises(kind, match=words) as error:
        make(**changed)
    assert "\n" not in str(error.value)


def test_short_class_is_named_with_a_ratio_that_works() -> None:
    source = Made((60, 60, 20, 20))
    with pytest.raises(DataError, match=r"class 2 \(c2\) has 20 of 28.*imbalance_ratio=4 or more"):
        make(source, imbalance_ratio=2.3)
    assert make(source, imbalance_ratio=4).class_counts[2] <= 20


IN_MEMORY = [name for name in datasets() if not dataset_config(name)["_target_"].endswith("long_tailed_files")]


@pytest.mark.parametrize("name", IN_MEMORY)
def test_every_dataset_config_builds(name: str, tmp_path: Path) -> None:
    config = dataset_config(name)
    folder = config["source"].get("folder")
    if folder == "ag_news":
        write_articles(tmp_path, train=12)
        assert class_defaults(config) == (30000, 100)
        config |= {"max_per_class": 12, "imbalance_ratio": 6}
    elif folder is not None:
        # a small stand-in with the real number of classes
        classes, side = {"cifar100": (100, 32), "tiny_imagenet": (200, 64)}.get(folder, (10, 32))
        (tmp_path / folder).mkdir()
        labels = np.repeat(np.arange(classes), 12)
        for split in ("train", "test"):
            np.save(tmp_path / folder / f"{split}_images.npy", np.zeros((len(labels), side, side, 3), np.uint8))
            np.save(tmp_path / folder / f"{split}_labels.npy", labels)
        (tmp_path / folder / "classes.txt").write_text("".join(f"name{label}\n" for label in range(classes)))
        if "class_sizes" in config:
            config |= {"class_sizes": [12, 2, 5]}
        else:
            largest = {"cifar10": 5000, "cifar100": 500, "svhn": 1000, "cinic10": 9000, "tiny_imagenet": 500}[folder]
            assert class_defaults(config) == (largest, 100)
            config |= {"max_per_class": 12, "imbalance_ratio": 6}
    data = build(config, root=tmp_path)
    assert data.name == name
    assert data.class_counts.min() >= 1
    assert data.class_counts.sum() == len(data.train)


def class_defaults(config: dict[str, Any]) -> tuple[int, int]:
    return config["max_per_class"], config["imbalance_ratio"]


def test_digits_are_scikit_learns_with_fifty_test_images_a_class() -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    data: LongTailedData = build(dataset_config("digits_lt"), root="nowhere")
    assert data.class_counts.tolist() == [120, 76, 48, 30, 19, 12, 7, 4, 3, 2]
    assert np.bincount(data.test.labels).tolist() == [50] * 10
    assert data.train.images.shape[1:] == (8, 8, 3)
    whole: LongTailedData = build(
        dataset_config("digits_lt") | {"imbalance": "balanced", "max_per_class": 124}, root="."
    )
    known = {image.astype(int).tobytes() for image in load_digits().images}
    back = [
        np.rint(image[..., 0] / (255 / 16)).astype(int).tobytes() for image in (*whole.train.images, *data.test.images)
    ]
    assert set(back) <= known
    assert not {*back[: len(whole.train)]} & {*back[len(whole.train) :]}  # no test image is a training image
    assert np.array_equal(whole.train.images[..., 0], whole.train.images[..., 2])
    scaled = whole.train.images / 255
    assert whole.preprocessing["channel_mean"][0] == pytest.approx(scaled.mean(), abs=0.005)
    assert whole.preprocessing["channel_std"][0] == pytest.approx(scaled.std(), abs=0.005)


@pytest.mark.skipif(
    not Path(os.environ.get("LTEXP_DATA", "?"), "cifar100", "train_images.npy").is_file(),
    reason="needs prepared CIFAR-100 under LTEXP_DATA",
)
def test_real_cifar100() -> None:
    data: LongTailedData = build(dataset_config("cifar100_lt"), root=os.environ["LTEXP_DATA"])
    assert len(data.train) == 10847
    assert np.bincount(data.test.labels).tolist() == [100] * 100
    mean = data.test.images.mean(axis=(0, 1, 2)) / 255
    assert mean == pytest.approx([0.5071, 0.4865, 0.4409], abs=0.004)  # the published statistics of CIFAR-100
