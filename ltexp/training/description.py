"""What is known of a run before training: the first part of its record, and whether it is continued as it began."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ltexp.config import Config
from ltexp.config.identity import config_hash
from ltexp.config.lightning import partial_settings
from ltexp.config.own_code import changed_code, code_of_run
from ltexp.distributed import world_size
from ltexp.errors import CheckpointError
from ltexp.evaluation import record as records
from ltexp.training.fingerprint import files_started_from
from ltexp.training.session import Session

# by key of the record: what a run that is continued has to find as it was
CONTENTS = {
    "content_hash": "training data",
    "validation_hash": "validation data",
    "test_hash": "test data",
    "started_from": "files to start from",
}


def describe(session: Session, started: str) -> dict[str, Any]:
    """The part of the record that is known before training."""
    config, data = session.config, session.data
    environment = records.environment() | {
        "device": torch.cuda.get_device_name(session.device) if session.device.type == "cuda" else "cpu",
        "precision": config.trainer.precision,
        "world_size": world_size(),
        "nodes": config.trainer.num_nodes,
        "threads": torch.get_num_threads(),
    }
    return {
        "schema": records.SCHEMA,
        "method": config.choices.get("method"),
        "dataset": data.name,
        "imbalance": data.imbalance,
        "imbalance_ratio": data.imbalance_ratio,
        "backbone": config.choices.get("backbone"),
        "seed": config.seed,
        "class_counts": data.class_counts.tolist(),
        "class_names": list(data.class_names),
        "shot_rule": session.shot_rule.text,
        "subset_hash": data.subset_hash,
        "content_hash": data.content_hash,
        "validation_hash": data.validation_hash,
        "test_hash": data.test_hash,
        "data": data.facts,
        **({"code": code} if (code := code_of_run(asdict(config))) else {}),
        **({"started_from": files} if (files := _started_from(config)) else {}),
        "config_hash": config_hash(config),
        **({"partial": partial} if (partial := partial_settings(config.trainer)) else {}),
        **({"held_out": held} if (held := held_out(config)) else {}),
        "choices": config.choices,
        "overrides": config.overrides,
        "environment": environment,
        "started": started,
    }


def where(environment: dict[str, Any]) -> str:
    """The devices and the precision of a run, such as `on cpu, 2 threads, 32-true`."""
    processes, threads = environment["world_size"], environment["threads"]
    several = f"{processes} x " if processes > 1 else ""
    used = f", {threads} {'thread' if threads == 1 else 'threads'}" if environment["device"] == "cpu" else ""
    return f"on {several}{environment['device']}{used}, {environment['precision']}"


def held_out(config: Config) -> dict[str, dict[str, Any]]:
    """By stream, such as `stage1.meta`, the images of each class that it alone shows, and what they are of."""
    streams = {
        f"{name}.{own}": stream for name, stage in config.stages.items() for own, stream in stage.streams.items()
    }
    return {name: asdict(stream.held_out) for name, stream in streams.items() if stream.held_out}


def _started_from(config: Config) -> dict[str, list[str]]:
    """Checksums of the files that each stage starts from or learns from, by stage; only of those that have any."""
    found = {name: files_started_from(stage, name, config.backbone) for name, stage in config.stages.items()}
    return {name: files for name, files in found.items() if files}


def check_same_things(folder: Path, base: dict[str, Any]) -> None:
    """Refuses to continue a run on other data, from other files or with other code than it began with.

    Args:
        folder: the run's.
        base: what `describe` says now.

    Raises:
        CheckpointError: if the run's record says otherwise.
    """
    try:
        began = records.read_record(folder)
    except records.RecordError:  # it begins, or is of before these were kept
        return
    if changed := changed_code(began.get("code", {}), base.get("code", {})):
        raise CheckpointError(
            f"{folder} began with other code ({', '.join(changed)} changed since): change it back, or give another "
            "hydra.run.dir"
        )
    for key, what in CONTENTS.items() if began.get("test_hash") else ():  # before it was kept, hashes were others
        if key in began and began[key] != base.get(key):
            raise CheckpointError(
                f"{folder} began with other {what} ({key} {began[key]}, now {base.get(key)}): give the place where the "
                "same lies, or another hydra.run.dir"
            )
