"""Copies of records to keep beside a table: small, and without the paths of the machine that made them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ltexp.config import load_plain
from ltexp.files import write_text
from ltexp.report.records import Run
from ltexp.run_folder import CONFIG, RECORD


def keep_records(runs: Iterable[Run], folder: Path) -> list[Path]:
    """Writes record.json and config.yaml of each run below `folder`, and returns where.

    Left out are predictions, checkpoints and the confusion matrix (most of a record's size with a hundred classes).

    Raises:
        LtexpError: if a run has no config.yaml, or the folder cannot be written.
    """
    written = []
    for run in runs:
        record = run.record
        name = f"{record['method']}-{str(record.get('config_hash'))[:8]}/seed{record['seed']}"
        place = folder / str(record["dataset"]) / name
        kept = {key: value for key, value in record.items() if key != "confusion"}
        kept["overrides"] = _portable(record.get("overrides") or ())
        write_text(place / RECORD, json.dumps(kept, allow_nan=False) + "\n")
        plain = load_plain(run.folder / CONFIG)
        write_text(place / CONFIG, OmegaConf.to_yaml(OmegaConf.create(_without_paths(plain))))
        written.append(place)
    return written


def _without_paths(plain: dict[str, Any]) -> dict[str, Any]:
    paths = {"data": "data", "outputs": "outputs"}
    cache = plain["stage_cache"] | {"dir": "outputs/stage_cache"}
    return plain | {"paths": paths, "stage_cache": cache, "overrides": _portable(plain["overrides"])}


def _portable(overrides: Iterable[str]) -> list[str]:
    return [text for text in overrides if not text.lstrip("+").startswith(("paths.", "stage_cache.dir", "hydra"))]
