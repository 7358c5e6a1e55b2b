"""The line that a run says at once, before torch is imported."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltexp.config import Config
from ltexp.config.build import build
from ltexp.data.types import LongTailedData
from ltexp.report.table import ratio_text


@dataclass(frozen=True)
class Facts:
    """What a run's first line says of its data.

    Attributes:
        name: of the dataset.
        images: for training, or texts.
        classes: the number of them.
        ratio: of the largest class to the smallest, as `ratio 60`.
        kind: what a sample is, `images` or `text`.
    """

    name: str
    images: int
    classes: int
    ratio: str
    kind: str


_known: dict[str, Facts] = {}  # by what a dataset was opened with: a sweep opens it once


def remember(plain: dict[str, Any], data: LongTailedData) -> None:
    """Keeps the facts of a job's dataset, which is open just now."""
    counts = data.class_counts
    ratio = ratio_text({"imbalance": data.imbalance, "imbalance_ratio": data.imbalance_ratio})
    _known[_key(plain)] = Facts(data.name, int(counts.sum()), len(counts), ratio, data.kind)


def header(plain: dict[str, Any], config: Config, folder: Path) -> str:
    """Method, dataset with its images, classes and ratio, backbone, seed and folder of a run.

    Raises:
        LtexpError: if the dataset cannot be opened.
    """
    if _key(plain) not in _known:
        remember(plain, build(plain["dataset"], root=plain["paths"]["data"], path="dataset"))
    facts, choices = _known[_key(plain)], config.choices
    samples = "images" if facts.kind == "images" else "samples"
    data = f"{facts.name}, {facts.images:,} {samples} of {facts.classes:,} classes, {facts.ratio}"
    return f"{choices.get('method')}: {data}; {choices.get('backbone')}, seed {config.seed}; {_shown(folder)}"


def _shown(folder: Path) -> Path:
    """As it would be typed here."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _key(plain: dict[str, Any]) -> str:
    return json.dumps([plain["dataset"], plain["paths"]["data"]], sort_keys=True, default=str)
