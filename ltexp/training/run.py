"""A run: its data, its stages one after the other, its record, predictions and figures."""

import datetime
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from rich.console import Console

from ltexp.config import FILES_OF_A_BACKBONE, Config, StageConfig, names_stage
from ltexp.config.build import build
from ltexp.config.identity import config_hash
from ltexp.config.lightning import check_monitored, partial_settings
from ltexp.config.own_code import changed_code, code_of_run
from ltexp.config.require import within
from ltexp.data.types import LongTailedData
from ltexp.distributed import rank, world_size
from ltexp.errors import CheckpointError, ConfigError
from ltexp.evaluation import record as records
from ltexp.models.backbone import Backbone
from ltexp.models.foreign import read_tensors
from ltexp.models.module import present
from ltexp.models.self_supervised import is_foreign, read_backbone
from ltexp.report.figures import draw_run_figures
from ltexp.report.table import networks_text, run_table
from ltexp.run_folder import PREDICTIONS
from ltexp.training import checkpoint
from ltexp.training.class_names import check_class_names
from ltexp.training.composition import check_composition, without_idle_epochs
from ltexp.training.cut_short import cut_short
from ltexp.training.data_checks import check_data
from ltexp.training.feature_stage import check_features
from ltexp.training.fingerprint import files_started_from
from ltexp.training.loggers import close_loggers, log_media, make_loggers
from ltexp.training.mixing import Mixing, blends
from ltexp.training.notices import settings_without_effect
from ltexp.training.own_parts import check_own_parts
from ltexp.training.predict import Predictions
from ltexp.training.run_stage import StageResult, run_stage
from ltexp.training.session import Session
from ltexp.training.small_batches import check_batch_norm
from ltexp.training.start import load_teacher

# by key of the record: what a run that is continued has to find as it was
CONTENTS = {"content_hash": "training data", "test_hash": "test data", "started_from": "files to start from"}


def run(config: Config, folder: Path, device: torch.device) -> None:
    """Carries out the run of `config` in `folder`, on this process's `device`.

    Raises:
        LtexpError: for whatever the user can mend; the record then says `failed` and why.
    """
    started = now()
    config = without_idle_epochs(config)
    tried = _composes(config)
    data = build(config.dataset, root=config.paths.data, path="dataset")
    session = Session(config, folder, data, device)
    if not tried:
        check_composition(config, session)
    check_against_data(session)
    notes = settings_without_effect(session)  # on every process, since losses that it tries may exchange
    for line in notes if rank() == 0 else ():
        print(f"note: {line}", flush=True)
    identifier = records.run_id(folder)
    session.loggers = loggers = make_loggers(session, identifier)
    base = describe(session, started) | {"run_id": identifier}
    check_same_things(folder, base)
    if rank() == 0:
        records.write_record(folder, base | {"status": "running"})
        print(where(base["environment"]), flush=True)
    status = "failed"
    try:
        outcomes: dict[str, StageResult] = {}
        for name, stage in config.stages.items():
            earlier = {before: outcome.fingerprint for before, outcome in outcomes.items()}
            outcomes[name] = run_stage(session.for_stage(stage), name, stage, earlier)
        predictions = outcomes[name].predicted.predictions()
        if rank() == 0:
            finish(session, base, list(outcomes.values()), predictions)
        status = "success"
    finally:
        close_loggers(loggers, status)


def _composes(config: Config) -> bool:
    """Whether the config holds together before data is read; False where a user's own part needs the real numbers."""
    try:
        check_composition(config)
    except ConfigError as error:
        if error.of_own_part:
            return False
        raise
    return True


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


def check_against_data(session: Session) -> None:
    """Refuses, before anything is trained, what the data shows to be wrong.

    Raises:
        LtexpError: a file to start from that is something else, a backbone, mixing or augmentation for another kind of
            data, a cache of other images, a teacher of other classes, or a module that finds nothing it can read.
    """
    config, data = session.config, session.data
    _check_backbone(session)
    _check_files(session)
    for split in (data.validation, data.test):
        if split is not None:
            session.evaluation_loader(split)  # refuses a cache of other images
    trained = {name: stage.epochs for name, stage in config.stages.items() if stage.epochs and not stage.checkpoint}
    check_monitored(config.callbacks, data.validation is not None, config.evaluation.every, trained)
    for name, stage in config.stages.items():
        own = session.for_stage(stage)
        _check_modules(own, name, stage)
        if not stage.features.get("_target_"):  # else the backbone is not trained
            check_batch_norm(own, name, stage)
        _check_mixing(own, name, stage)
        _check_augmentation(config, name, stage, own.data)
        check_features(own, stage)
        check_class_names(own, name, stage)
        check_data(own, name, stage)
        check_own_parts(own, name, stage)
        for teacher in stage.taught_by.values():
            if not names_stage(teacher):
                load_teacher(own, teacher)


def _check_backbone(session: Session) -> None:
    """The backbone is for this kind of data, and can read a sample of it."""
    config, data = session.config, session.data
    chosen = get_class(config.backbone["_target_"])
    reads = getattr(chosen, "reads", "images")
    if reads != data.kind:
        name = config.choices.get("backbone")
        raise ConfigError(f"backbone {name} reads {reads} and dataset {data.name} holds {data.kind}: choose another")
    if getattr(chosen, "check", Backbone.check) is not Backbone.check:  # building a backbone takes time
        name, stage = next(iter(config.stages.items()))
        backbone = session.fresh_model(name, stage, loads=True).backbone
        with within("backbone"):
            backbone.check(session.sample_inputs())


def _check_files(session: Session) -> None:
    """The files that the run starts from are what they have to be."""
    config = session.config
    fresh = [name for name, stage in config.stages.items() if stage.init.backbone == "fresh" and not stage.checkpoint]
    if fresh and any(config.backbone.get(key) for key in FILES_OF_A_BACKBONE):
        session.fresh_model(fresh[0], config.stages[fresh[0]])  # reads them
    for name, stage in config.stages.items():
        for part, where, of in (("", stage.checkpoint, name), *((p, w, "stage1") for p, w in stage.starts.items())):
            if where is None or where == "fresh" or names_stage(where):
                continue
            path = checkpoint.locate(where, of)
            content = read_tensors(path)
            if part == "backbone" and is_foreign(content):
                keys = session.fresh_model(name, stage, loads=True).backbone.state_dict().keys()
                read_backbone(path, keys, f"{name}.init.backbone")
            else:
                checkpoint.of_content(content, path)


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
    with torch.no_grad(), within(name):
        output = model(inputs, {field for wired in model.wiring.values() for field in wired.reads})
        for module, part in model.attached.items():
            if check := getattr(part, "check", None):
                check(*model.read_by(module, output, batch))


def _check_mixing(session: Session, name: str, stage: StageConfig) -> None:
    key, kind = f"mixing@{name}.mixing", session.data.kind
    if kind != "images" and blends(stage):
        chosen = session.config.choices.get(key, stage.mixing["_target_"])
        raise ConfigError(f"{name}: mixing {chosen} is for images and the dataset holds {kind}: set {key}=none")
    mixing: Mixing = build(stage.mixing, class_counts=session.class_counts, path=f"{name}.mixing")
    if type(mixing).check is not Mixing.check:  # reading a sample takes time
        try:
            mixing.check(session.sample_inputs())
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None


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


def finish(session: Session, base: dict[str, Any], outcomes: list[StageResult], predictions: Predictions) -> None:
    """Writes predictions, record and figures of a run whose stages are done, and prints its table."""
    folder, final = session.folder, outcomes[-1]
    index, logits, labels, norms = predictions
    records.write_predictions(folder / PREDICTIONS, logits * final.model.logit_scale, labels, index, norms)
    metrics = final.record["metrics"]
    record = base | {
        "selection": "last",
        "metrics": metrics,
        **final.details,
        "stages": [outcome.record for outcome in outcomes],
        **cut_short(session, base, [outcome.record for outcome in outcomes], tested=len(labels)),
        "finished": now(),
        "status": "running",
    }
    records.write_record(folder, record)
    for logger in session.loggers:
        logger.log_metrics({f"final/{key}": v for key, v in metrics.items() if isinstance(v, float)})
    figures = draw_run_figures(folder) if session.config.evaluation.figures else []
    # last: of a run that is killed while it draws, resume=true draws the figures
    records.write_record(folder, record | {"status": "finished"})
    by_class = zip(base["class_names"], base["class_counts"], metrics["per_class"], strict=True)
    log_media(session.loggers, figures, ["class", "training images", "accuracy (%)"], [list(row) for row in by_class])
    console = Console()
    console.print(run_table(record))
    console.print(networks_text(record), soft_wrap=True, markup=False)
    console.print(
        f"{folder}: record.json, predictions.npz" + "".join(f", {path.name}" for path in figures),
        soft_wrap=True,
        markup=False,
    )


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
