"""A trained stage of a finished run, from its folder alone: the model, its transform, and what it says of images."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ltexp.config import Config
from ltexp.config.locate import locate
from ltexp.config.require import is_whole, require, within
from ltexp.config.words import own_keys
from ltexp.data.files.decode import Reading
from ltexp.errors import ConfigError
from ltexp.evaluation.chosen import chosen
from ltexp.evaluation.record import read_record
from ltexp.inference.transform import ImageTransform, listed
from ltexp.models.model import Model
from ltexp.run_folder import CHECKPOINT
from ltexp.training import checkpoint
from ltexp.training.predict import evaluating
from ltexp.training.session import pick_device
from ltexp.training.teacher import model_of

BATCH = 256  # images at a time


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of N images.

    Attributes:
        names: of each image, its path or its number.
        class_names: C names.
        logits: float32 (N, C), those of the softmax.
    """

    names: list[str]
    class_names: list[str]
    logits: npt.NDArray[np.float32]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64 (N,), the most probable class of each image."""
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)

    @property
    def classes(self) -> list[str]:
        """Its name."""
        return [self.class_names[label] for label in self.labels]

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """float32 (N, C), summing to 1."""
        return torch.from_numpy(self.logits).softmax(dim=1).numpy()

    def rows(self, every_class: bool = False) -> list[dict[str, Any]]:
        """A row an image: image, label, class, probability; with `every_class` the probability of each, by its name."""
        rows = []
        for name, label, probabilities in zip(self.names, self.labels, self.probabilities, strict=True):
            row = {"image": name, "label": int(label), "class": self.class_names[label]}
            row["probability"] = round(float(probabilities[label]), 6)
            if every_class:
                named = zip(self.class_names, probabilities, strict=True)
                row |= {f"p({of})": round(float(value), 6) for of, value in named}
            rows.append(row)
        return rows

    def csv(self, every_class: bool = False) -> str:
        """`rows` as the text of a CSV file."""
        rows, text = self.rows(every_class), io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


@dataclass(eq=False)
class Predictor:
    """A trained model and how images get into it.

    Attributes:
        model: on its device, in eval mode; `model(transform.batch(images))` gives a `ModelOutput`, whose logits times
            `model.logit_scale` are those of the softmax.
        transform: of single images and of batches.
        class_names: C names, in label order; numbers of a stage that learned labels of its own, such as a rotation's.
        stage: whose model it is.
        config: the run's.
        record: the run's record.
    """

    model: Model
    transform: ImageTransform
    class_names: list[str]
    stage: str
    config: Config
    record: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    def predict(self, images: Any) -> Prediction:
        """What the model says of images, in float32.

        Args:
            images: the path of a folder (all image files below it, by path) or of an image; an image of Pillow's; a
                uint8 array or tensor of several, (N, H, W, 3), (N, 3, H, W) or, grey, (N, H, W), or of one, (H, W, 3)
                or (H, W); or a list of single ones, where (3, H, W) is one, too.

        Raises:
            DataError: for what is not an image, or where there is none; for an array (3, H, W), which may be one image
                in colour or three grey ones: `[images]` is the one, `list(images)` the others.
        """
        single, names = listed(images)
        parts = []
        with evaluating(self.model):
            for start in range(0, len(single), BATCH):
                inputs = self.transform.batch(single[start : start + BATCH]).to(self.device)
                output = self.model(inputs)
                parts.append((self.model.logit_scale * output.logits.float()).cpu().numpy())
        return Prediction(names, self.class_names, np.concatenate(parts))


def load_predictor(folder: Path, stage: str | None, accelerator: str, max_pixels: int | None = None) -> Predictor:
    """See `ltexp.load`."""
    require(max_pixels is None or is_whole(max_pixels, 1), "max_pixels", max_pixels, "a whole number of 1 or more")
    with own_keys({"trainer.accelerator": "accelerator"}):
        predictor = _load(folder, stage, accelerator)
    reading = predictor.transform.reading
    predictor.transform.reading = reading._replace(key="max_pixels", max_pixels=max_pixels or reading.max_pixels)
    return predictor


def _load(folder: Path, stage: str | None, accelerator: str) -> Predictor:
    options = {"accelerator": accelerator} | ({} if stage is None else {"stage": stage})
    config, stage = chosen(folder, options, [])
    record = read_record(folder)
    path = folder / stage / CHECKPOINT
    source = checkpoint.read(path)
    with within("backbone"):
        reads = getattr(locate(source.backbone_config["_target_"]), "reads", "images")
    if reads != "images":
        raise ConfigError(
            f"{folder}: its network reads {reads}, and only those of images can be loaded apart from data"
        )
    model = model_of(source, path, {}).to(pick_device(accelerator, 0)).eval()
    names = _class_names(record, stage, source.num_classes)
    return Predictor(model, transform_of(config.dataset, record), names, stage, config, record)


def _class_names(record: Mapping[str, Any], stage: str, classes: int) -> list[str]:
    """C names in label order: the dataset's, or numbers where the stage learned labels of its own."""
    names = record.get("class_names") or []
    made = any(each["name"] == stage and "num_classes" in each for each in record.get("stages") or [])
    return [str(name) for name in (range(classes) if made or len(names) != classes else names)]


def transform_of(dataset: Mapping[str, Any], record: Mapping[str, Any]) -> ImageTransform:
    """How the evaluation of a run prepared its images.

    Args:
        dataset: the run's config of it.
        record: the run's; it knows the size of images that lay in memory.

    Raises:
        ConfigError: for a dataset whose config does not say what its channels are normalised by.
    """
    missing = [key for key in ("channel_mean", "channel_std") if key not in dataset]
    if missing:
        raise ConfigError(f"dataset.{missing[0]}: the run's config has none, so its images cannot be prepared")
    size = dataset.get("image_size") or (record.get("data") or {}).get("image_size")
    source = dataset.get("source") or {}
    reading = Reading(**{key: source[key] for key in ("exif_orientation", "max_pixels") if key in source})
    return ImageTransform(size, dataset.get("resize"), dataset["channel_mean"], dataset["channel_std"], reading)
