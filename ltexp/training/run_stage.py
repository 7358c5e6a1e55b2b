"""Runs one stage: starts its model, takes it from the cache or trains it, and evaluates the result."""

import copy
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException

from ltexp.config import StageConfig
from ltexp.config.lightning import is_timed, may_stop, test_limit
from ltexp.distributed import broadcast_object, rank, wait_for_all, world_size
from ltexp.errors import CheckpointError, ConfigError, TrainingError
from ltexp.evaluation.further import further_metrics
from ltexp.files import write_text
from ltexp.models.cost import cost_of
from ltexp.models.model import Model
from ltexp.report.table import stopped_text
from ltexp.run_folder import (
    BEST_BY,
    CHECKPOINT,
    EVALUATIONS,
    LAST_WEIGHTS,
    METRICS,
    RESUME,
    STEPS_LEFT,
    read_metrics,
    write_metrics,
)
from ltexp.training import checkpoint
from ltexp.training.agreement import note_unequal_state
from ltexp.training.batches import train_loader
from ltexp.training.cache import StageCache
from ltexp.training.curriculum import write_levels
from ltexp.training.datamodule import StageData
from ltexp.training.feature_stage import describe_features, evaluate_on_kept, open_store, write_history
from ltexp.training.fingerprint import fingerprint_of, of_content
from ltexp.training.hardware import WORTH_MEASURING, half_against_single, within_memory
from ltexp.training.loggers import log_epoch
from ltexp.training.norms import weight_norms
from ltexp.training.predict import Collector, batches_of, collect
from ltexp.training.session import Session
from ltexp.training.stage import Stage
from ltexp.training.start import load_model, load_teachers, make_trainable, show_training_set, start_model
from ltexp.training.survey import SplitSurvey
from ltexp.training.trainer import make_trainer, one_line


@dataclass
class StageResult:
    """A finished stage.

    Attributes:
        model: trained, on the run's device, in eval mode.
        fingerprint: of everything that determined it.
        record: the stage's entry of the run's record, its metrics included.
        details: the reliability bins and the confusion matrix behind them.
        predicted: on the test split, each process's share with itself.
    """

    model: Model
    fingerprint: str
    record: dict[str, Any]
    details: dict[str, Any]
    predicted: Collector


def run_stage(session: Session, name: str, stage: StageConfig, earlier: Mapping[str, str]) -> StageResult:
    """Trains, fetches or loads the stage `name`, and evaluates it.

    Args:
        session: of the stage (`Session.for_stage`).
        earlier: the fingerprints of the run's stages before it, which it may start from, by name.
    """
    with within_memory(name, stage):
        return _run_stage(session, name, stage, earlier)


def _run_stage(session: Session, name: str, stage: StageConfig, earlier: Mapping[str, str]) -> StageResult:
    folder = session.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = fingerprint_of(session, name, stage, earlier)
    model = session.place(start_model(session, name, stage))
    make_trainable(model, stage)
    session.store, session.features = open_store(session, name, stage, model), {}
    if test_limit(session.config.trainer) is None:
        evaluate_on_kept(session, model)
    cached = _obtain(session, name, stage, model, fingerprint)
    if _ended_by_the_clock(session, stage, folder):
        fingerprint = of_content(fingerprint, folder / CHECKPOINT)
    if cached and stage.checkpoint is None:
        for row in read_metrics(folder / METRICS):
            log_epoch(session.loggers, name, row)
    loader = session.evaluation_loader(session.data.test)
    limit = batches_of(loader, test_limit(session.config.trainer))
    predicted = collect(model, loader, session.config.trainer.precision, limit, session.examined)
    metrics, details = session.metrics.of_top1(predicted.top1(model.logit_scale))
    record = {
        "name": name,
        "classifier": session.config.choices.get(f"classifier@{name}.classifier", ""),
        "metrics": metrics,
        "weight_norms": weight_norms(model.classifier),
        "epochs": stage.epochs,
        "cached": cached,
        "fingerprint": fingerprint,
        **({} if session.pretext is None else {"num_classes": session.num_classes}),  # of labels of its own
        "networks": cost_of(model, session.sample_inputs()),
        **describe_features(session, stage),
        **_training_summary(rows := read_metrics(folder / METRICS)),
        **({} if stage.checkpoint else _early_end(rows, stage.epochs, may_stop(session.config))),
        **_last_weights(session, model, folder, limit),
    }
    if (stopped := stopped_text(record)) and rank() == 0:
        print(stopped, flush=True)
    return StageResult(model.eval(), fingerprint, record, details, predicted)


def _last_weights(session: Session, model: Model, folder: Path, limit: int | None) -> dict[str, Any]:
    """Metrics of the stage's last weights where its model is an average of weights; nothing where it is not."""
    if not broadcast_object((folder / LAST_WEIGHTS).exists()):
        return {}
    last = copy.deepcopy(model)
    last.load_state_dict(torch.load(folder / LAST_WEIGHTS, map_location="cpu", weights_only=True))
    loader = session.evaluation_loader(session.data.test)
    predicted = collect(last, loader, session.config.trainer.precision, limit, session.examined)
    metrics, _ = session.metrics.of_top1(predicted.top1(model.logit_scale))
    predictions = predicted.predictions()
    if rank() == 0:
        bins = session.config.evaluation.calibration_bins
        further = further_metrics(predictions.logits * model.logit_scale, predictions.labels, bins)
        content = {"stage": folder.name, "weights": "last", "metrics": metrics | further}
        write_text(session.folder / EVALUATIONS / f"{folder.name}_last_weights.json", json.dumps(content, indent=1))
    return {"last_weights": metrics}


def _obtain(session: Session, name: str, stage: StageConfig, model: Model, fingerprint: str) -> bool:
    """Brings `model` to the stage's end; whether it was trained elsewhere."""
    folder = session.folder / name
    if stage.checkpoint is not None:
        load_model(model, checkpoint.locate(stage.checkpoint, name))
        _save(session, stage, model, folder)
        elsewhere = True
    elif stage.epochs == 0:
        session.fit_classifier(model)
        _save(session, stage, model, folder)
        elsewhere = False
    else:
        elsewhere = _train_or_fetch(session, name, stage, model, fingerprint)
    # What is evaluated is what was written; processes whose batch norms saw other shares agree again, and Lightning
    # leaves a model that it trained on the CPU.
    wait_for_all()
    load_model(model, folder / CHECKPOINT)
    session.place(model)
    return elsewhere


def _train_or_fetch(session: Session, name: str, stage: StageConfig, model: Model, fingerprint: str) -> bool:
    """Leaves the trained stage in the run's folder; whether it came from the cache."""
    folder, config = session.folder / name, session.config
    cache = StageCache(Path(config.stage_cache.dir) if config.stage_cache.enabled else None)
    evaluation = _evaluation_of(session)
    with cache.reserve(fingerprint):
        # rank 0 decides for all: another process may look after rank 0 has begun to write
        finished = broadcast_object((folder / CHECKPOINT).exists())  # by this run, before it was killed
        if not finished and cache.fetch(fingerprint, folder, evaluation):
            if rank() == 0:
                print(f"{name}  was trained before: taken from {cache.folder}", flush=True)
            return True
        if not finished:
            train(session, name, stage, model, folder)
            _save(session, stage, model, folder)
        if rank() == 0 and not _ended_by_the_clock(session, stage, folder):
            cache.store(fingerprint, folder, evaluation)
    return False


def _evaluation_of(session: Session) -> dict[str, Any]:
    """What the measurements of a stage while it trains are by, and of."""
    data, shots = session.data, session.shot_counts
    rules = {key: value for key, value in asdict(session.config.evaluation).items() if key != "figures"}
    shown = {"validation": data.validation_hash, "test": data.test_hash}
    return rules | shown | {"shots": None if shots is None else shots.tolist()}


def train(session: Session, name: str, stage: StageConfig, model: Model, folder: Path) -> None:
    """Trains `model`, started and with its trainable parts set, for the stage's epochs.

    Args:
        folder: of the stage: metrics by epoch and the checkpoint to resume from, where training goes on if it is there.

    Raises:
        ConfigError: for what Lightning refuses.
        TrainingError: if the loss is no longer finite.
        CheckpointError: if the checkpoint to resume from is damaged or cannot be written.
    """
    trainer = make_trainer(session, name, stage)
    if not broadcast_object((folder / RESUME).exists()):
        if stage.init.classifier == "fresh":
            session.fit_classifier(model, before_training=True)
        show_training_set(session, model)
    loader = train_loader(session, name, stage, model)
    settings = session.config.trainer
    if settings.precision == "bf16-mixed" and session.device.type == "cpu":
        _judge_half(session, name, stage, model, stage.epochs * len(loader))
    teachers = load_teachers(session, stage)
    module = Stage(
        model,
        stage,
        session.class_counts,
        session.stage_seed(name),
        teachers,
        loader,
        settings.accumulate,
        settings.gradient_clip_val,
        settings.lightning.get("gradient_clip_algorithm") or "norm",
        session.metrics,
        SplitSurvey(session, model, teachers),
        settings.step_graph,
    )
    if settings.compile:
        model.backbone.compile(backend=settings.compile_backend, mode=settings.compile_mode)
    if module.graph is not None and len(loader) == 1 and rank() == 0:
        print(f"note: trainer.step_graph has no effect on {name}, whose epochs have one step", flush=True)
    overfit, makes = settings.lightning.get("overfit_batches", 0), module.graph is not None and module.graph.makes
    data = StageData(loader, session.evaluated(), overfit, recipes=makes)
    module.train()
    try:
        _fit(trainer, module, data, folder)
    finally:
        loader.close()
    note_unequal_state(name, module)
    write_history(loader, folder)
    write_levels(loader, folder)
    if rank() == 0:
        (folder / RESUME).unlink(missing_ok=True)


def _judge_half(session: Session, name: str, stage: StageConfig, model: Model, steps: int) -> None:
    """Says whether bf16 pays on this CPU; what was asked for stays, since a precision is part of what a result is."""
    if steps < WORTH_MEASURING or not stage.trainable.backbone:
        return
    rows = max(1, stage.batch_size // world_size() // session.config.trainer.accumulate)
    ratio = half_against_single(model.backbone, session.sample_inputs(), rows)
    if rank() == 0:
        advice = "" if ratio < 1 else ": trainer.precision=32-true is faster here"
        print(f"{name}  a step in bf16 takes {ratio:.2f} of the time in fp32 on this processor{advice}", flush=True)


def _fit(trainer: pl.Trainer, module: Stage, data: StageData, folder: Path) -> None:
    resume = folder / RESUME if broadcast_object((folder / RESUME).exists()) else None
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    except (ConfigError, MisconfigurationException) as error:
        raise ConfigError(f"{folder.name}: {one_line(error)}") from error
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        if "find_unused_parameters" in str(error):
            raise ConfigError(
                f"{folder.name}: its loss gives some of what learns no gradient, as several devices have to know: "
                "set trainer.strategy=ddp_find_unused_parameters_true"
            ) from None
        if str(error).startswith("Early stopping conditioned on metric"):
            raise ConfigError(f"{folder.name}: {one_line(error)}") from error
        if resume is not None and ("PytorchStreamReader" in str(error) or not isinstance(error, RuntimeError)):
            raise CheckpointError(f"{resume} is damaged: delete it to train {folder.name} from its start") from None
        raise


def _save(session: Session, stage: StageConfig, model: Model, folder: Path) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise TrainingError(f"{folder.name}: its last step left weights that are not finite: lower the learning rate")
    if rank() == 0:
        if not (folder / METRICS).exists():
            write_metrics(folder / METRICS, [])
        counts = session.class_counts.tolist()
        checkpoint.save(folder / CHECKPOINT, model, session.config.backbone, stage, counts)


def _ended_by_the_clock(session: Session, stage: StageConfig, folder: Path) -> bool:
    """Whether the stage in `folder` had to end before its last epoch, and other runs may get further."""
    timed = stage.checkpoint is None and is_timed(session.config)
    return timed and bool(_early_end(read_metrics(folder / METRICS), stage.epochs, []))


def _early_end(rows: list[dict[str, Any]], epochs: int, stops: list[str]) -> dict[str, Any]:
    """After how many of its epochs a trained stage was stopped, and by what; nothing if it had all of them.

    Args:
        rows: of the stage's metrics.csv.
        epochs: of the stage.
        stops: the keys of what may have stopped it.
    """
    whole = sum(not row.get(STEPS_LEFT) for row in rows)
    return {"stopped_after": whole, "stopped_by": " or ".join(stops)} if whole < epochs else {}


def _training_summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds, throughput and the best evaluated epochs, from a stage's metrics by epoch."""
    seconds = sum(float(row["seconds"]) for row in rows)
    images = sum(float(row["images_per_second"]) * float(row["seconds"]) for row in rows)
    summary: dict[str, Any] = {
        "seconds": seconds,
        "images_per_second": images / seconds if seconds else None,
        "train_loss": float(rows[-1]["train_loss"]) if rows else None,
    }
    for split, metric in BEST_BY.items():
        key = f"{split}_{metric}"
        best = max(((float(row[key]), int(row["epoch"])) for row in rows if row.get(key)), default=None)
        summary[f"best_on_{split}"] = {metric: best[0], "epoch": best[1]} if best else None
    return summary
