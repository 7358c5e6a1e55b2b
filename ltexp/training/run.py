"""A run: its data, its stages one after the other, its record, predictions and figures."""

import datetime
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from pytorch_lightning.loggers import Logger
from rich.console import Console

from ltexp.build import build
from ltexp.config import Config, StageConfig
from ltexp.data.samplers import Sampler
from ltexp.distributed import rank, world_size
from ltexp.errors import ConfigError
from ltexp.evaluation import record as records
from ltexp.identity import config_hash
from ltexp.models.classifier import Classifier
from ltexp.names import unknown_name
from ltexp.randomness import default_generator
from ltexp.report.figures import draw_run_figures
from ltexp.report.table import run_table
from ltexp.run_folder import PREDICTIONS
from ltexp.training import checkpoint
from ltexp.training.objective import Objective, flat_factors
from ltexp.training.run_stage import Outcome, run_stage
from ltexp.training.session import Session


def run(config: Config, folder: Path, device: torch.device) -> None:
    """Does all that `config` says in `folder`, on this process's `device`.

    Raises:
        LtexpError: for whatever the user can mend; the record then says `failed` and why.
    """
    started = now()
    check_composition(config)
    data = build(config.dataset, root=config.paths.data)
    identifier = records.run_id(folder)
    logger = make_logger(config, folder, identifier)
    session = Session(config, folder, data, device, logger)
    base = describe(session, started) | {"run_id": identifier}
    if rank() == 0:
        records.write_record(folder, base | {"status": "running"})
    status = "failed"
    try:
        outcomes: list[Outcome] = []
        for name, stage in config.stages.items():
            outcomes.append(run_stage(session, name, stage, outcomes[-1] if outcomes else None))
        if rank() == 0:
            finish(session, base, outcomes)
        status = "success"
    finally:
        close_logger(logger, status)


def check_composition(config: Config) -> None:
    """Refuses what cannot work together, before any data is read.

    Raises:
        ConfigError: if a loss needs another classifier, a setting of a loss, re-weighting or sampler is out of range,
            or a stage's classifier cannot start as `init` says.
    """
    previous: Classifier | None = None
    for name, stage in config.stages.items():
        # of a size of no matter: only how the parts fit is tried
        with default_generator("check"):
            classifier: Classifier = build(stage.classifier, feature_dim=4, num_classes=3)
        for node in [stage.loss, *(term.loss for term in stage.terms.values())]:
            needed = get_class(node["_target_"]).classifier  # type: ignore[attr-defined]
            if needed not in ("any", classifier.kind):
                loss = node["_target_"].rpartition(".")[2]
                raise ConfigError(
                    f"{name}: {loss} needs a {needed} classifier and this one is {classifier.kind}: "
                    f"add classifier@{name}.classifier={needed}"
                )
        _check_settings(stage)
        _check_factors(name, stage, classifier)
        _check_start(name, stage, classifier)
        if stage.init.classifier == "stage1" and previous is not None:
            classifier.start_from(previous)
        previous = classifier


def _check_settings(stage: StageConfig) -> None:
    """Builds the stage's losses and sampler over a few made-up images: settings out of range raise here."""
    counts = torch.tensor([3, 2, 1])
    objective = Objective(stage, counts)
    sampler: Sampler = build(stage.sampler, labels=torch.arange(3).repeat_interleave(counts), class_counts=counts)
    if stage.epochs > 0:  # a schedule may refuse the number of epochs
        objective.set_progress(0, stage.epochs)
        sampler.class_probabilities(0, stage.epochs)


def _check_factors(name: str, stage: StageConfig, classifier: Classifier) -> None:
    own = {f"classifier.{parameter}" for parameter in ("weight", "bias", "scale", "shift")}
    known = {"backbone", "classifier", *own, *(f"classifier.{key}" for key, _ in classifier.named_parameters())}
    for prefix in flat_factors(stage.lr_factors):
        if prefix not in known and not prefix.startswith("backbone."):
            raise ConfigError(unknown_name(f"parameter in {name}.lr_factors", prefix, known))


def _check_start(name: str, stage: StageConfig, classifier: Classifier) -> None:
    """What the stage starts from is there, and something in it learns or needs no learning."""
    for where in (stage.init.backbone, stage.init.classifier):
        if where not in ("fresh", "stage1"):
            checkpoint.locate(where)
    if stage.checkpoint is not None:
        checkpoint.locate(stage.checkpoint, name)
        return
    learns = any(True for _ in classifier.parameters())
    if stage.init.classifier == "fresh" and classifier.needs_source:
        hint = "choose another for it" if name == "stage1" else f"set {name}.init.classifier=stage1"
        raise ConfigError(f"{name}: its classifier continues that of another stage: {hint}")
    if stage.init.classifier == "fresh" and stage.epochs == 0 and learns:
        raise ConfigError(f"{name}: its fresh classifier learns nothing in 0 epochs: raise {name}.epochs")
    idle = not stage.trainable.backbone and stage.batch_norm != "train" and not (learns and stage.trainable.classifier)
    if stage.epochs > 0 and (idle or classifier.needs_features):
        raise ConfigError(f"{name}: its classifier is not trained by epochs: set {name}.epochs=0, or choose another")


def describe(session: Session, started: str) -> dict[str, Any]:
    """The part of the record that is known before training."""
    config, data = session.config, session.data
    environment = records.environment() | {
        "device": torch.cuda.get_device_name(session.device) if session.device.type == "cuda" else "cpu",
        "precision": config.trainer.precision,
        "world_size": world_size(),
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
        "config_hash": config_hash(config),
        "choices": config.choices,
        "overrides": config.overrides,
        "environment": environment,
        "started": started,
    }


def finish(session: Session, base: dict[str, Any], outcomes: list[Outcome]) -> None:
    """Writes predictions, record and figures of a run whose stages are done, and prints its table."""
    folder, final = session.folder, outcomes[-1]
    index, logits, labels, norms = final.predictions
    records.write_predictions(folder / PREDICTIONS, logits * final.logit_scale, labels, index, norms)
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
    if session.logger is not None:
        session.logger.log_metrics({f"final/{key}": v for key, v in metrics.items() if isinstance(v, float)})
    figures = draw_run_figures(folder) if session.config.evaluation.figures else []
    # last: a run without its figures is not finished, and resume=true draws them
    records.write_record(folder, record | {"status": "finished"})
    console = Console()
    console.print(run_table(record))
    console.print(
        f"{folder}: record.json, predictions.npz" + "".join(f", {path.name}" for path in figures), soft_wrap=True
    )


def make_logger(config: Config, folder: Path, identifier: str) -> Logger | None:
    """The chosen logger, on rank 0; one for the whole run, so that stages follow each other in it."""
    settings = dict(config.logger)
    if not settings.get("_target_") or rank() != 0:
        return None
    if settings["_target_"].endswith("WandbLogger"):
        # jobs of a sweep never share a wandb run, and a resumed run continues its own
        settings |= {"id": identifier, "name": f"{config.choices.get('method')}-{identifier}", "resume": "allow"}
    elif settings["_target_"].endswith("CSVLogger"):
        # it empties a folder that it finds, and a resumed run's first half lies there
        while (folder / settings["name"] / settings["version"]).exists():
            settings["version"] += "-resumed"
    try:
        logger: Logger = build(settings, save_dir=str(folder))
    except Exception as error:
        if not isinstance(error, ModuleNotFoundError):
            if type(error).__module__.startswith("wandb"):
                raise ConfigError(f"wandb: {error}; logger.offline=true needs no account") from None
            raise
        raise ConfigError(
            f"this logger needs a package that is not installed ({error.name}): pip install {error.name}"
        ) from None
    return logger


def close_logger(logger: Logger | None, status: str) -> None:
    """Ends the logger's run: the next job starts one of its own."""
    if logger is not None:
        logger.finalize(status)
        finish_run = getattr(getattr(logger, "experiment", None), "finish", None)
        if finish_run is not None:
            finish_run()


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
