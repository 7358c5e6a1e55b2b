"""What of a finished run is evaluated: its config as it is now, one of its stages, and on which test samples."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ltexp.config import Config, check_values, load
from ltexp.config.places import OF_A_DATASET
from ltexp.errors import ConfigError
from ltexp.names import unknown_name
from ltexp.run_folder import CHECKPOINT, CONFIG

MOVED = ("source.folder", "source.train", "cache", "leave_out")  # of a dataset that lies elsewhere as a whole


def chosen(folder: Path, options: dict[str, str], nodes: Sequence[dict[str, Any]]) -> tuple[Config, str]:
    """The run's config with the options applied, and the stage to evaluate.

    Raises:
        ConfigError: if the folder is no run's or has no such stage.
    """
    config = load(folder / CONFIG)
    trained = [name for name in config.stages if (folder / name / CHECKPOINT).is_file()]
    if not trained:
        raise ConfigError(f"{folder} has no trained stage: is its run unfinished?")
    stage = options.get("stage", "stage1" if nodes else trained[-1])
    if stage not in trained:
        raise ConfigError(unknown_name("stage", stage, trained))
    trainer = replace(
        config.trainer,
        accelerator=options.get("accelerator", config.trainer.accelerator),
        precision=options.get("precision", config.trainer.precision),
    )
    paths = replace(config.paths, data=options.get("data", config.paths.data))
    replaced = replace(config, trainer=trainer, paths=paths, dataset=_elsewhere(config.dataset, options))
    check_values(replaced)
    return replaced, stage


def _elsewhere(dataset: dict[str, Any], options: dict[str, str]) -> dict[str, Any]:
    """The dataset's config with the places that are given.

    Raises:
        ConfigError: for a place that this dataset does not have.
    """
    moved = copy.deepcopy(dataset)
    for key in OF_A_DATASET:
        if key not in options or not _has_moved(options):
            continue
        *sections, last = key.split(".")[1:]
        node = moved
        for section in sections:
            node = node.get(section) or {}
        if last not in node:
            raise ConfigError(f"{key}={options[key]}: the run's dataset has no such key")
        node[last] = None if options[key].lower() == "null" else str(Path(options[key]).expanduser())
    return moved


def _has_moved(options: dict[str, str]) -> bool:
    """Whether the places typed are those of the run's own dataset: its training set is among them."""
    return "dataset" not in options and any(f"dataset.{key}" in options for key in MOVED)


def of_dataset(options: dict[str, str]) -> list[str]:
    """What was typed of another dataset, or of another test list, as the words that it was typed in."""
    places = OF_A_DATASET if _has_moved(options) else ()
    own = [key for key in options if key == "dataset" or (key.startswith("dataset.") and key not in places)]
    return [f"{key}={options[key]}" for key in own]
