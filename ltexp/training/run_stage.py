"""Runs one stage: starts its model, takes it from the cache or trains it, and evaluates the result."""

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy

from ltexp.config import StageConfig
from ltexp.data.loader import Loader
from ltexp.data.types import Split
from ltexp.distributed import broadcast_object, rank, wait_for_all, world_size
from ltexp.errors import CheckpointError, TrainingError
from ltexp.models.cost import cost_of
from ltexp.models.model import Model
from ltexp.run_folder import CHECKPOINT, FEATURE_NORMS, METRICS, RESUME, read_metrics, write_metrics
from ltexp.training import checkpoint
from ltexp.training.batch_norm import AgreeOnStatistics
from ltexp.training.cache import StageCache
from ltexp.training.feature_stage import describe_features, write_history
from ltexp.training.fingerprint import fingerprint_of
from ltexp.training.monitor import Monitor, ResumeCheckpoint
from ltexp.training.norms import append_norms, weight_norms
from ltexp.training.predict import Predictions, predict
from ltexp.training.session import Session
from ltexp.training.stage import Stage
from ltexp.training.start import load_model, load_teacher, make_trainable, start_model


@dataclass
class StageResult:
    """A finished stage.

    Attributes:
        model: trained, on the run's device, in eval mode.
        fingerprint: of everything that determined it.
        record: the stage's entry of the run's record, its metrics included.
        details: the reliability bins and the confusion matrix behind them.
        predictions: on the test split.
    """

    model: Model
    fingerprint: str
    record: dict[str, Any]
    details: dict[str, Any]
    predictions: Predictions


def run_stage(session: Session, name: str, stage: StageConfig, previous: StageResult | None) -> StageResult:
    """Trains, fetches or loads the stage `name`, which may start from `previous`, and evaluates it."""
    folder = session.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = fingerprint_of(session, name, stage, previous.fingerprint if previous else None)
    model = session.place(start_model(session, name, stage))
    make_trainable(model, stage)
    cached = _obtain(session, name, stage, model, fingerprint)
    loader = session.evaluation_loader(session.data.test)
    predictions = predict(model, loader, session.config.trainer.precision)
    metrics, details = session.measure(predictions.logits, predictions.labels, model.logit_scale)
    record = {
        "name": name,
        "classifier": session.config.choices.get(f"classifier@{name}.classifier", ""),
        "metrics": metrics,
        "weight_norms": weight_norms(model.classifier),
        "epochs": stage.epochs,
        "cached": cached,
        "fingerprint": fingerprint,
        "networks": cost_of(model, session.sample_inputs()),
        **describe_features(session, stage),
        **_training_summary(read_metrics(folder / METRICS)),
    }
    return StageResult(model.eval(), fingerprint, record, details, predictions)


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
    evaluation = asdict(config.evaluation) | {"validation": session.data.validation is not None}
    with cache.reserve(fingerprint):
        # rank 0 decides for all: another process may look after rank 0 has begun to write
        finished = broadcast_object((folder / CHECKPOINT).exists())  # by this run, before it was killed
        if not finished and cache.fetch(fingerprint, folder, evaluation):
            return True
        if not finished:
            train(session, name, stage, model, folder)
            _save(session, stage, model, folder)
        cache.store(fingerprint, folder, evaluation)
    return False


def train(session: Session, name: str, stage: StageConfig, model: Model, folder: Path) -> None:
    """Trains `model`, started and with its trainable parts set, for the stage's epochs.

    Args:
        folder: of the stage: metrics by epoch and the checkpoint to resume from, where training goes on if it is there.

    Raises:
        TrainingError: if the loss is no longer finite.
        CheckpointError: if the checkpoint to resume from is damaged or cannot be written.
    """
    loader = session.train_loader(name, stage, model)
    seed, teacher = session.stage_seed(name), load_teacher(session, stage)
    settings = session.config.trainer
    module = Stage(
        model, stage, session.class_counts, seed, teacher, loader, settings.accumulate, settings.gradient_clip_val
    )
    if settings.compile:
        model.compile_backbone(settings.compile_backend)
    monitor = Monitor(
        folder,
        name,
        images_per_epoch=loader.rows,
        steps_per_epoch=len(loader),
        evaluate=lambda epoch: _evaluate_splits(session, model, folder, epoch),
        evaluate_every=session.config.evaluation.every,
        check_every=settings.log_every,
        shown=settings.progress and rank() == 0,
    )
    callbacks = [AgreeOnStatistics(), monitor, ResumeCheckpoint(folder, settings.checkpoint_every)]
    resume = folder / RESUME if broadcast_object((folder / RESUME).exists()) else None
    module.train()
    try:
        _trainer(session, stage, callbacks).fit(module, loader, ckpt_path=resume, weights_only=True)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        if resume is not None and ("PytorchStreamReader" in str(error) or not isinstance(error, RuntimeError)):
            raise CheckpointError(f"{resume} is damaged: delete it to train {name} from its start") from None
        raise
    finally:
        loader.close()
    write_history(loader, folder)
    if rank() == 0:
        (folder / RESUME).unlink(missing_ok=True)


def _trainer(session: Session, stage: StageConfig, callbacks: list[pl.Callback]) -> pl.Trainer:
    settings = session.config.trainer
    return pl.Trainer(
        accelerator="gpu" if session.device.type == "cuda" else "cpu",
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        # said outright: inside a job of SLURM, Lightning would take that for the launcher
        plugins=[TorchElasticEnvironment() if world_size() > 1 else LightningEnvironment()],
        strategy=_strategy(session) if world_size() > 1 else "auto",
        precision=settings.precision,  # type: ignore[arg-type]
        max_epochs=stage.epochs,
        sync_batchnorm=settings.sync_batch_norm,
        callbacks=callbacks,
        logger=session.logger or False,
        log_every_n_steps=1,
        default_root_dir=session.folder,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _strategy(session: Session) -> DDPStrategy:
    backend = "nccl" if session.device.type == "cuda" else "gloo"
    # each process's batch norms keep the statistics of its own shares, until `AgreeOnStatistics` takes their mean
    return DDPStrategy(process_group_backend=backend, broadcast_buffers=False, gradient_as_bucket_view=True)


def _save(session: Session, stage: StageConfig, model: Model, folder: Path) -> None:
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise TrainingError(f"{folder.name}: its last step left weights that are not finite: lower the learning rate")
    if rank() == 0:
        if not (folder / METRICS).exists():
            write_metrics(folder / METRICS, [])
        counts = session.data.class_counts.tolist()
        checkpoint.save(folder / CHECKPOINT, model, session.config.backbone, stage, counts)


def _evaluate_splits(session: Session, model: Model, folder: Path, epoch: int) -> Mapping[str, float | None]:
    """Columns such as `test_all` and `validation_few`, in percent; the test features' norms go to a file beside."""
    columns: dict[str, float | None] = {}
    splits: dict[str, Split | None] = {"validation": session.data.validation, "test": session.data.test}
    for split_name, split in splits.items():
        if split is not None:
            loader: Loader[Any] = session.evaluation_loader(split)
            predictions = predict(model, loader, session.config.trainer.precision)
            metrics, _ = session.measure(predictions.logits, predictions.labels, model.logit_scale)
            columns |= {f"{split_name}_{key}": metrics[key] for key in ("all", "many", "medium", "few", "ece")}
            if split_name == "test" and rank() == 0:
                append_norms(folder / FEATURE_NORMS, epoch, predictions, session.data.num_classes)
    return columns


def _training_summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds, throughput and the best evaluated epochs, from a stage's metrics by epoch."""
    seconds = sum(float(row["seconds"]) for row in rows)
    images = sum(float(row["images_per_second"]) * float(row["seconds"]) for row in rows)
    summary: dict[str, Any] = {
        "seconds": seconds,
        "images_per_second": images / seconds if seconds else None,
        "train_loss": float(rows[-1]["train_loss"]) if rows else None,
    }
    for split in ("test", "validation"):
        found = [(float(row[f"{split}_all"]), int(row["epoch"])) for row in rows if row.get(f"{split}_all")]
        best = max(found, default=None)
        summary[f"best_on_{split}"] = {"all": best[0], "epoch": best[1]} if best else None
    return summary
