"""A run: its data, its stages one after the other, its record, predictions and figures."""

import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ltexp.config import Config
from ltexp.config.build import build
from ltexp.distributed import rank
from ltexp.errors import ConfigError
from ltexp.evaluation import record as records
from ltexp.report.figures import draw_run_figures
from ltexp.report.table import networks_text, run_table
from ltexp.run_folder import PREDICTIONS
from ltexp.training.checks import check_against_data
from ltexp.training.composition import check_composition
from ltexp.training.cut_short import cut_short
from ltexp.training.description import check_same_things, describe, where
from ltexp.training.learning import without_idle_epochs
from ltexp.training.loggers import close_loggers, log_media, make_loggers
from ltexp.training.notices import settings_without_effect
from ltexp.training.predict import Predictions
from ltexp.training.run_stage import StageResult, run_stage
from ltexp.training.session import Session


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
