"""A run: its data, its stages one after the other, its record, predictions and figures."""

import datetime
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from rich.console import Console

from ltexp.config import Config, StageConfig
from ltexp.config.build import build
from ltexp.config.identity import config_hash
from ltexp.config.lightning import check_monitored, partial_settings
from ltexp.config.require import within
from ltexp.data.types import LongTailedData
from ltexp.distributed import rank, world_size
from ltexp.errors import ConfigError
from ltexp.evaluation import record as records
from ltexp.models.backbone import Backbone
from ltexp.models.module import present
from ltexp.report.figures import draw_run_figures
from ltexp.report.table import networks_text, run_table
from ltexp.run_folder import PREDICTIONS
from ltexp.training.composition import check_composition, without_idle_epochs
from ltexp.training.feature_stage import check_features
from ltexp.training.loggers import close_loggers, log_media, make_loggers
from ltexp.training.mixing import blends
from ltexp.training.notices import settings_without_effect
from ltexp.training.run_stage import StageResult, run_stage
from ltexp.training.session import Session
from ltexp.training.start import load_teacher


def run(config: Config, folder: Path, device: torch.device) -> None:
    """Carries out the run of `config` in `folder`, on this process's `device`.

    Raises:
        LtexpError: for whatever the user can mend; the record then says `failed` and why.
    """
    started = now()
    config = without_idle_epochs(config)
    check_composition(config)
    data = build(config.dataset, root=config.paths.data, path="dataset")
    session = Session(config, folder, data, device)
    check_against_data(session)
    if rank() == 0:
        for line in settings_without_effect(session):
            print(f"note: {line}", flush=True)
    identifier = records.run_id(folder)
    session.loggers = loggers = make_loggers(session, identifier)
    base = describe(session, started) | {"run_id": identifier}
    if rank() == 0:
        records.write_record(folder, base | {"status": "running"})
    status = "failed"
    try:
        outcomes: list[StageResult] = []
        for name, stage in config.stages.items():
            previous = outcomes[-1] if outcomes else None
            outcomes.append(run_stage(session.for_stage(stage), name, stage, previous))
        if rank() == 0:
            finish(session, base, outcomes)
        status = "success"
    finally:
        close_loggers(loggers, status)


def check_against_data(session: Session) -> None:
    """Refuses, before anything is trained, what the data shows to be wrong.

    Raises:
        LtexpError: a backbone, mixing or augmentation for another kind of data, a cache of other images, a teacher of
            other classes, or a module that finds nothing it can read.
    """
    config, data = session.config, session.data
    _check_backbone(session)
    for split in (data.validation, data.test):
        if split is not None:
            session.evaluation_loader(split)  # refuses a cache of other images
    trained = {name: stage.epochs for name, stage in config.stages.items() if stage.epochs and not stage.checkpoint}
    check_monitored(config.callbacks, data.validation is not None, config.evaluation.every, trained)
    for name, stage in config.stages.items():
        own = session.for_stage(stage)
        _check_modules(own, name, stage)
        _check_mixing(config, name, stage, data.kind)
        _check_augmentation(config, name, stage, own.data)
        check_features(own, stage)
        if stage.teacher != "stage1":
            load_teacher(own, stage)


def _check_backbone(session: Session) -> None:
    """The backbone is for this kind of data, and can read a sample of it."""
    config, data = session.config, session.data
    chosen = get_class(config.backbone["_target_"])
    reads = getattr(chosen, "reads", "images")
    if reads != data.kind:
        name = config.choices.get("backbone")
        raise ConfigError(f"backbone {name} reads {reads} and dataset {data.name} holds {data.kind}: choose another")
    if getattr(chosen, "check", Backbone.check) is not Backbone.check:  # building a backbone takes time
        backbone = session.fresh_model("stage1", config.stage1, loads=True).backbone
        with within("backbone"):
            backbone.check(session.sample_inputs())


def _check_modules(session: Session, name: str, stage: StageConfig) -> None:
    """What the stage's modules read is there, and is such that they can work with it."""
    if not present(stage.modules):
        return
    data = session.data
    model = session.fresh_model(name, stage, loads=True).to(session.device).eval()
    inputs = session.sample_inputs()
    batch = {"inputs": inputs, "labels": torch.zeros(1, dtype=torch.int64, device=inputs.device)}
    for module, wired in model.wiring.items():
        without = f"leave the module out with ~module@{name}.modules.{module}"
        if "feature_maps" in wired.reads and data.kind != "images":
            raise ConfigError(
                f"{name}: module {module} reads feature maps of images, and dataset {data.name} holds {data.kind}: "
                f"{without}"
            )
        if "feature_maps" in wired.reads and not getattr(model.backbone, "map_channels", None):
            backbone = session.config.choices.get("backbone")
            raise ConfigError(
                f"{name}: backbone {backbone} offers no feature maps, which module {module} reads: choose another, or "
                f"{without}"
            )
    with torch.no_grad():
        output = model(inputs, {field for wired in model.wiring.values() for field in wired.reads})
        for module, part in model.attached.items():
            if check := getattr(part, "check", None):
                check(*model.read_by(module, output, batch))


def _check_mixing(config: Config, name: str, stage: StageConfig, kind: str) -> None:
    if kind != "images" and blends(stage):
        key = f"mixing@{name}.mixing"
        chosen = config.choices.get(key, stage.mixing["_target_"])
        raise ConfigError(f"{name}: mixing {chosen} is for images and the dataset holds {kind}: set {key}=none")


def _check_augmentation(config: Config, name: str, stage: StageConfig, data: LongTailedData) -> None:
    wanted: str = build(stage.augmentation, path=f"{name}.augmentation").samples
    holds: str = get_class(data.train.loader).samples  # type: ignore[attr-defined]
    if wanted not in ("", holds):
        key = f"augmentation@{name}.augmentation"
        chosen = config.choices.get(key, stage.augmentation["_target_"])
        raise ConfigError(
            f"{name}: augmentation {chosen} is for {wanted}, and dataset {data.name} holds {holds}: "
            f"choose another, or set {key}=none"
        )


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
        "test_hash": data.test_hash,
        "data": data.facts,
        "config_hash": config_hash(config),
        **({"partial": partial} if (partial := partial_settings(config.trainer)) else {}),
        "choices": config.choices,
        "overrides": config.overrides,
        "environment": environment,
        "started": started,
    }


def finish(session: Session, base: dict[str, Any], outcomes: list[StageResult]) -> None:
    """Writes predictions, record and figures of a run whose stages are done, and prints its table."""
    folder, final = session.folder, outcomes[-1]
    index, logits, labels, norms = final.predictions
    records.write_predictions(folder / PREDICTIONS, logits * final.model.logit_scale, labels, index, norms)
    metrics = final.record["metrics"]
    record = base | {
        "selection": "last",
        "metrics": metrics,
        **final.details,
        "stages": [outcome.record for outcome in outcomes],
        "finished": now(),
        "status": "running",
    }
    records.write_record(folder, record)
    for logger in session.loggers:
        logger.log_metrics({f"final/{key}": v for key, v in metrics.items() if isinstance(v, float)})
    figures = draw_run_figures(folder) if session.config.evaluation.figures else []
    # last: a run without its figures is not finished, and resume=true draws them
    records.write_record(folder, record | {"status": "finished"})
    by_class = zip(base["class_names"], base["class_counts"], metrics["per_class"], strict=True)
    log_media(session.loggers, figures, ["class", "training images", "accuracy (%)"], [list(row) for row in by_class])
    console = Console()
    console.print(run_table(record))
    console.print(networks_text(record), soft_wrap=True)
    console.print(
        f"{folder}: record.json, predictions.npz" + "".join(f", {path.name}" for path in figures), soft_wrap=True
    )


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
