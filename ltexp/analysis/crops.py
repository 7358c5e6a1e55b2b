"""Predictions that are means over five crops of each test image (test-time ensembling)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltexp.config.require import is_whole, require
from ltexp.data.loader import Loader
from ltexp.errors import ConfigError, DataError
from ltexp.training.predict import Collector, Predictions, autocast, evaluating, logits_and_norm

if TYPE_CHECKING:
    from ltexp.analysis.restored import LoadedStage


def check_crops(restored: "LoadedStage", crops: Any) -> None:
    """Refuses crops of what has none.

    Raises:
        ConfigError: for data that is no images, or a number of pixels that is none.
        DataError: if the run read small copies of image files, of another size, and the files are not there.
    """
    require(is_whole(crops, 1), "crops", crops, "a whole number of pixels of 1 or more, such as 24")
    data = restored.session.data
    if data.kind != "images" or restored.session.pretext is not None:
        raise ConfigError(f"crops= is for images with the dataset's labels, and {data.name} has others: leave it out")
    if data.loading.get("cache") is None or _is_cached(restored, _side(restored) + crops):
        return
    if len(missing := data.test.missing()):
        raise DataError(
            f"crops= reads the test images' own files, their small copies have another size, and {len(missing):,} of "
            f"{len(data.test):,} are not there: {data.test.where(missing[0])}"
        )


def predict_crops(restored: "LoadedStage", crops: int) -> Predictions:
    """Means of the logits over five crops of each test image: its corners and its middle.

    As LIFT's test-time ensembling (Shi et al., ICML 2024, its code): images are resized to `crops` more pixels than the
    network reads; 24 beside 224 shifts the corners' crops by no multiple of 16-pixel patches. Image files are read at
    that size, not from a cache of another one, images in memory enlarged to it on the device, bilinearly.

    Args:
        restored: the stage whose model predicts.
        crops: pixels.
    """
    session, model, side = restored.session, restored.model, _side(restored)
    loader = _loader(restored, side + crops)
    collector, precision = Collector(loader.rows), session.config.trainer.precision
    with evaluating(model), autocast(precision, loader.device):
        for batch in loader:
            every = [logits_and_norm(model(crop)) for crop in five_crops(batch.inputs, side, crops)]
            collector.add(batch, torch.stack(every).mean(0))
    return collector.predictions()


def _side(restored: "LoadedStage") -> int:
    """Pixels of a side of what the network reads."""
    return int(getattr(restored.model.backbone, "image_size", 0) or restored.session.sample_inputs().shape[-1])


def _is_cached(restored: "LoadedStage", size: int) -> bool:
    """Whether the run's small copies of image files, if it has some, have that size."""
    return bool(restored.session.data.preprocessing.get("resize") == size)


def five_crops(images: Tensor, side: int, extra: int) -> Iterator[Tensor]:
    """The squares (B, 3, side, side) of images resized to side + extra: four corners and the middle."""
    whole = (side + extra, side + extra)
    if images.shape[-2:] != whole:
        images = F.interpolate(images, whole, mode="bilinear", align_corners=False)
    middle = extra // 2
    for top, left in ((0, 0), (0, extra), (extra, 0), (extra, extra), (middle, middle)):
        yield images[..., top : top + side, left : left + side]


def _loader(restored: "LoadedStage", size: int) -> Loader[Any]:
    """The test images, of image files as large as they are cropped."""
    session, settings = restored.session, dict(restored.session.data.preprocessing)
    if "image_size" not in settings:
        return session.evaluation_loader(session.data.test)
    settings |= {"image_size": size, "resize": size}
    loading = session.data.loading if _is_cached(restored, size) else session.data.loading | {"cache": None}
    resized = replace(session, data=replace(session.data, preprocessing=settings, loading=loading))
    return resized.loader(session.data.test, batch_size=session.evaluation_batch)
