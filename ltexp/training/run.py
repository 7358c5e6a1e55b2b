"""A run: its data, its stages one after the other, its record, predictions and figures."""

import datetime
from dataclasses import replace
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
    config = without_idle_epochs(config)
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


def without_idle_epochs(config: Config) -> Config:
    """`config` with 0 epochs for a stage in which nothing at all could change: they would only take time.

    So a classifier without training can take the place of a trained one by its own name alone.
    """
    stages = config.stages
    for name, stage in config.stages.items():
        if stage.epochs > 0 and stage.batch_norm == "frozen" and not _learns(stage, _tried(stage.classifier)):
            stages[name] = replace(stage, epochs=0)
            if rank() == 0:
                what = config.choices.get(f"classifier@{name}.classifier", "its classifier")
                print(f"{name}: nothing learns here ({what}), so its {stage.epochs} epochs are left out", flush=True)
    return replace(config, stage1=stages["stage1"], stage2=stages.get("stage2"))


def _tried(node: dict[str, Any]) -> Classifier:
    """The classifier of `node` in a size of no matter: only how it fits is tried."""
    with default_generator("check"):
        classifier: Classifier = build(node, feature_dim=4, num_classes=3)
    return classifier


def _learns(stage: StageConfig, classifier: Classifier) -> bool:
    learnable = any(True for _ in classifier.parameters())
    return stage.trainable.backbone or stage.batch_norm == "train" or (learnable and stage.trainable.classifier)


def check_composition(config: Config) -> None:
    """Refuses what cannot work together, before any data is read.

    Raises:
        ConfigError: if a loss needs another classifier, a setting of a loss, re-weighting or sampler is out of range,
            or a stage's classifier cannot start as `init` says.
    """
    previous: Classifier | None = None
    for name, stage in config.stages.items():
        classifier = _tried(stage.classifier)
        _check_settings(stage)
        _check_factors(name, stage, classifier)
        _check_start(name, stage, classifier)
        _continue(stage, classifier, previous)
        for node in [stage.loss, *(term.loss for term in stage.terms.values())]:
            needed = get_class(node["_target_"]).classifier  # type: ignore[attr-defined]
            if needed not in ("any", classifier.kind):
                loss = node["_target_"].rpartition(".")[2]
                raise ConfigError(
                    f"{name}: {loss} needs a {needed} classifier and this one is {classifier.kind}: "
                    f"add classifier@{name}.classifier={needed}"
                )
        previous = classifier


def _continue(stage: StageConfig, classifier: Classifier, previous: Classifier | None) -> None:
    """Lets `classifier` start from that of the stage before, or of a file: only of a kind that it can continue."""
    where = stage.init.classifier
    if where == "stage1" and previous is not None:
        classifier.start_from(previous)
    elif where not in ("fresh", "stage1"):
        found = checkpoint.read(checkpoint.locate(where))
        source = _tried(found.classifier_config)
        source.kind = found.build_classifier().kind
        classifier.start_from(source)


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
    if stage.epochs > 0 and (not _learns(stage, classifier) or classifier.needs_features):
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
