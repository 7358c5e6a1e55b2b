"""The target of datasets of image files in conf/dataset/: all of them or a long-tailed subset, and what is held out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltexp.config.require import is_whole, require, require_choice
from ltexp.data.files.cache import open_cache
from ltexp.data.files.contents import contents_hash
from ltexp.data.files.left_out import without
from ltexp.data.files.source import FileSource
from ltexp.data.files.split import FileSplit, SourceFiles, passed_over_note
from ltexp.data.images.dataset import check_channels
from ltexp.data.intake import open_source
from ltexp.data.tail.profile import IMBALANCES, choose_subset, held_out_sizes
from ltexp.data.tail.selection import GIVEN, Request, choose, hash_of, read_held_out
from ltexp.data.types import LongTailedData
from ltexp.errors import ConfigError, DataError, SettingError

TEST_SEED = 0  # of the choice of test images where a dataset has none of its own; they must stay the same


def long_tailed_files(
    *,
    source: FileSource,
    root: str | Path,
    name: str,
    channel_mean: Sequence[float],
    channel_std: Sequence[float],
    image_size: int = 224,
    resize: int = 256,
    workers: int | None = None,
    cache: str | None = None,
    imbalance: str = GIVEN,
    imbalance_ratio: float | None = None,
    max_per_class: int | None = None,
    num_classes: int | None = None,
    subset: Mapping[str, Any] | None = None,
    validation: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | None = None,
    leave_out: str | None = None,
) -> LongTailedData:
    """The images of a source, all or a long-tailed subset. Imports no torch and leaves global generators alone.

    Args:
        source: where the images come from.
        root: the data root.
        name: the dataset's name, for records.
        channel_mean, channel_std: those of R, G and B, for images scaled to [0, 1].
        image_size: side of the images that a network reads. Default 224.
        resize: the length of the short side before the middle is cut out for a test. Default 256.
        workers: processes that decode images, for each training process; None: by the number of cores.
        cache: a folder of images made small by `ltexp data cache`; None: none.
        imbalance: `given` (default): the training images as they are; or see `class_sizes`.
        imbalance_ratio, max_per_class: those of a tail that is cut, see `class_sizes`, and of no other. None: 100, and
            all that there are.
        num_classes, subset: see `long_tailed`.
        validation: as in `long_tailed`; what is held out takes the place of an official validation set.
        test: `fraction` (default 0) of each class's training images is held out as a test set where there is none, at
            most `max_per_class` (default null); always the same images, chosen before the tail is cut.
        leave_out: a file of paths, one a line as in the lists, of images that are not to be used, such as
            `ltexp data check NAME decode=true unreadable=FILE` writes; None (default): all are used.

    Raises:
        ConfigError: for a setting out of range, unknown, or that leaves a class without images.
        DataError: for lists or folders that are missing or wrong; whether each file exists is not looked at.
    """
    require_choice("imbalance", imbalance, (GIVEN, *IMBALANCES))
    request = Request(name, max_per_class, imbalance, imbalance_ratio, num_classes, subset, validation)
    preprocessing = _preprocessing(channel_mean, channel_std, image_size, resize)
    require(workers is None or is_whole(workers, 0), "workers", workers, "a whole number of 0 or more, or null")
    fraction, most = read_held_out("test", test)
    files, left_out = without(open_source(source, Path(root), SourceFiles), leave_out)
    train, tested = _with_test(name, files, fraction, most)
    chosen = choose(request, train.labels, tested.labels, files.class_names, files.unit)
    pool, train = train, train.take(chosen.train)
    held = files.validation and files.validation.take(files.validation.labels < len(chosen.class_names))
    if len(chosen.held_out):
        held = pool.take(chosen.held_out)
    counts = np.bincount(train.labels, minlength=len(chosen.class_names)).astype(np.int64)
    # small copies differ a little from their files, and are what is read
    contents = contents_hash if cache is None else open_cache(cache, resize).contents_hash
    tested = tested.take(chosen.test)
    upright = ["upright"] if train.reading.exif_orientation else []  # other pixels; and hashes of before stay
    identity = [files.hashes["train"], str(cache is not None), contents(train), *upright]
    return LongTailedData(
        name=name,
        imbalance=imbalance,
        imbalance_ratio=float(counts.max() / counts.min()) if imbalance == GIVEN else request.ratio,
        train=train,
        validation=held,
        test=tested,
        class_names=chosen.class_names,
        subset_hash=hash_of(np.sort(pool.index[np.concatenate([chosen.train, chosen.held_out])])),
        content_hash=hash_of(train.index, train.labels, np.array(identity)),
        test_hash=hash_of(tested.labels, np.array([contents(tested), *upright, *chosen.class_names])),
        validation_contents="" if held is None else contents(held) + "".join(upright),
        preprocessing=preprocessing,
        loading={"workers": workers, "cache": cache},
        facts=_facts(files, left_out, cache, fraction),
        last_drawn=lambda each: pool.take(chosen.last_drawn(each)),
        notes=passed_over_note(files.passed_over),
    )


def _preprocessing(
    channel_mean: Sequence[float], channel_std: Sequence[float], image_size: int, resize: int
) -> dict[str, Any]:
    """How images are made ready for a network, once its settings are sure to be in range."""
    channels = {
        "channel_mean": check_channels("channel_mean", channel_mean, least=0.0),
        "channel_std": check_channels("channel_std", channel_std, least=1e-6),
    }
    require(is_whole(image_size, 1), "image_size", image_size, "a whole number of 1 or more")
    require(is_whole(resize, image_size), "resize", resize, f"a whole number of at least image_size={image_size}")
    return {**channels, "image_size": image_size, "resize": resize}


def _facts(files: SourceFiles, left_out: dict[str, Any] | None, cache: str | None, fraction: float) -> dict[str, Any]:
    """What the record says of the files beside their hash."""
    return {
        "hashes": dict(files.hashes),
        "held_out_test": fraction if files.test is None else None,
        "left_out": left_out,
        "cache": cache,
        # only where there are any, as in records of before they were counted
        **({"passed_over": dict(files.passed_over)} if files.passed_over else {}),
    }


def _with_test(name: str, files: SourceFiles, fraction: float, most: int | None) -> tuple[FileSplit, FileSplit]:
    """(training images, test images): the source's, or with a part of the training images as the test's.

    Raises:
        ConfigError: if there is no test set and none is asked for, or both.
        DataError: if every class has one image only.
    """
    if files.test is not None:
        if fraction > 0:
            raise SettingError("test.fraction", fraction, f"0, since {name} has test images of its own")
        return files.train, files.test
    if fraction == 0:
        raise ConfigError(
            f"{name} has no test images: add some, or hold a part of each class out with dataset.test.fraction=0.2"
        )
    counts = np.bincount(files.train.labels, minlength=len(files.class_names)).tolist()
    held = choose_subset(files.train.labels, held_out_sizes(counts, fraction, most), TEST_SEED)
    if not len(held):
        raise DataError(f"{name}: no class has more than one image, so none can be held out for a test")
    kept = np.setdiff1d(np.arange(len(files.train)), held)
    return files.train.take(kept), files.train.take(np.sort(held))
