"""What a search and the runs of its trials tell each other: through the study's file, and one in the run's folder."""

import json
from pathlib import Path
from typing import Any

from ltexp.run_folder import TRIAL

STUDY, STUDY_FILE = "search", "search.db"
_PRUNED = "pruned"  # attribute of a trial: the epoch, counted over the stages, that it was stopped after


def load_study(storage: str, prune_after: int) -> Any:
    """The study of a search.

    Args:
        storage: its address.
        prune_after: trials before the first that is stopped early.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=prune_after)
    return optuna.load_study(study_name=STUDY, storage=storage, pruner=pruner)


def is_pruned(study: Any, number: int) -> bool:
    """Whether the trial of that number was stopped early."""
    return _PRUNED in study.trials[number].user_attrs


def read_trial(folder: Path) -> dict[str, Any] | None:
    """What the run in `folder` is to know of its trial; None for a run of its own."""
    try:
        found = json.loads((folder / TRIAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_stopped(folder: Path) -> bool:
    """Whether the run in `folder` was stopped early with its trial."""
    facts = read_trial(folder)
    return facts is not None and is_pruned(load_study(facts["storage"], facts["prune_after"]), facts["number"])


def report_value(facts: dict[str, Any], epoch: int, value: float, may_stop: bool = True) -> bool:
    """Adds a point to the trial's curve; whether the trial is to stop.

    Args:
        facts: of the trial, see `read_trial`.
        epoch: from 1, counted over the stages.
        value: of the validation part, in percent.
        may_stop: False where the trial has ended.
    """
    import optuna

    study = load_study(facts["storage"], facts["prune_after"])
    trial = optuna.trial.Trial(study, study.trials[facts["number"]]._trial_id)
    trial.report(value, epoch)
    stops = may_stop and bool(trial.should_prune())
    if stops:
        trial.set_user_attr(_PRUNED, epoch)
    return stops
