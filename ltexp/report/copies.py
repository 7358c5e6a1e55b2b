"""Copies of runs to keep beside a table or a page: small, and without the paths of the machine that made them."""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ltexp.config import load_plain
from ltexp.errors import ConfigError, LtexpError
from ltexp.files import write_text
from ltexp.report.records import COPIES, Run
from ltexp.run_folder import CONFIG, RECORD

LONGEST = 60  # characters of a folder's name


def copy_record(run: Run, place: Path) -> None:
    """Writes record.json and config.yaml of `run` to `place`.

    Left out are predictions, checkpoints and the confusion matrix (most of a record's size with a hundred classes).

    Raises:
        LtexpError: if the run has no config.yaml, or the folder cannot be written.
    """
    kept = {key: value for key, value in run.record.items() if key != "confusion"}
    kept["overrides"] = portable(run.record.get("overrides") or ())
    write_text(place / RECORD, json.dumps(kept, allow_nan=False) + "\n")
    plain = load_plain(run.folder / CONFIG)
    write_text(place / CONFIG, OmegaConf.to_yaml(OmegaConf.create(_without_paths(plain))))


def copy_with_figures(runs: Iterable[Run], folder: Path) -> list[Path]:
    """Copies the record, config and figures of each run to a folder of its own below `folder`, and returns those.

    Raises:
        ConfigError: if a run lies there itself.
        LtexpError: if the folder cannot be written.
    """
    runs = list(runs)
    if within := [run.folder for run in runs if run.folder.resolve().is_relative_to(folder.resolve())]:
        raise ConfigError(f"{within[0]} lies where the page's own copies go, in {folder}: choose another out=")
    write_text(folder / COPIES, "Copies of runs for the page beside this folder.\n")
    places = []
    for number, run in enumerate(runs):
        record = run.record
        words = (record["method"], record["dataset"], f"seed{record['seed']}")
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", "_".join(map(str, words)))[:LONGEST]
        place = folder / f"{number:03d}_{name}"
        if (run.folder / CONFIG).exists():
            copy_record(run, place)
        else:
            write_text(place / RECORD, json.dumps(record, allow_nan=False) + "\n")
        for figure in sorted(run.folder.glob("*.png")):
            try:
                shutil.copyfile(figure, place / figure.name)
            except OSError as error:
                raise LtexpError(f"{place / figure.name}: {error.strerror or error}") from None
        places.append(place)
    return places


def portable(overrides: Iterable[str]) -> list[str]:
    """The overrides without those that name places on a machine."""
    return [text for text in overrides if not text.lstrip("+").startswith(("paths.", "stage_cache.dir", "hydra"))]


def _without_paths(plain: dict[str, Any]) -> dict[str, Any]:
    paths = {"data": "data", "outputs": "outputs"}
    cache = plain["stage_cache"] | {"dir": "outputs/stage_cache"}
    return plain | {"paths": paths, "stage_cache": cache, "overrides": portable(plain["overrides"])}
