"""A Hydra sweeper that searches with a budget, by optuna. Hydra takes plugins from `hydra_plugins` alone."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ltexp.config import in_order, names_stage
from ltexp.config.words import key_of
from ltexp.errors import LtexpError
from ltexp.files import write_text
from ltexp.launching.explain import explain
from ltexp.launching.freeze import freeze
from ltexp.launching.outcome import DRY_RUN_VARIABLE, say
from ltexp.launching.search_space import SearchError, check_ranges, differences, identity, some_values, space
from ltexp.launching.sweep import check_data, show_config, subfolder
from ltexp.launching.trials import STUDY, STUDY_FILE, is_pruned, is_stopped, load_study
from ltexp.names import unknown_name
from ltexp.run_folder import METRICS as RUN_METRICS
from ltexp.run_folder import RECORD, TRIAL, read_metrics, read_status

METRICS: dict[str, Literal["minimize", "maximize"]] = {
    "balanced": "maximize",
    "all": "maximize",
    "many": "maximize",
    "medium": "maximize",
    "few": "maximize",
    "ece": "minimize",
}


@dataclass(frozen=True)
class Trial:
    """The task of a job, followed by the job's result on the validation part.

    Attributes:
        task: the job's task function.
        metric: the metric of `Search`.
        storage: address of the study.
        seeds: the jobs of a trial.
        prune_after: of `Search`.
    """

    task: Any
    metric: str
    storage: str
    seeds: int
    prune_after: int | None

    def __call__(self, job: DictConfig) -> float | None:
        """Runs the job; the metric of its last stage's last epoch, None if it was not measured or the trial stopped."""
        runtime = HydraConfig.get()
        folder, (number, seed) = Path(runtime.runtime.output_dir), divmod(int(runtime.job.num), self.seeds)
        if self.prune_after is not None:
            if seed > 0 and is_pruned(load_study(self.storage, self.prune_after), number):
                return None
            facts = {"storage": self.storage, "number": number, "metric": self.metric, "prune_after": self.prune_after}
            if seed == 0:  # the first seed's curve stands for the trial
                write_text(folder / TRIAL, json.dumps(facts))
        try:
            self.task(job)
        except LtexpError:
            if is_stopped(folder):
                return None
            raise
        for stage in reversed(in_order(path.name for path in folder.iterdir() if names_stage(path.name))):
            if (folder / stage / RUN_METRICS).exists():
                rows = read_metrics(folder / stage / RUN_METRICS)
                value = rows[-1].get(f"validation_{self.metric}") if rows else None
                return float(value) if value not in (None, "") else None
        return None


class Search(Sweeper):
    """Asks optuna's tree-structured Parzen estimator for values, runs them, and tells it what came of them.

    The study is a SQLite file in the sweep's folder, which optuna-dashboard reads. Where `seed` lists values, a trial
    is a run with each of them, and its result their mean.

    Args:
        trials: the budget, trials of an earlier search in the same folder included.
        parallel: trials that the launcher gets at a time.
        metric: the metric of the validation part at the end of the run.
        seed: the search's seed.
        prune_after: trials before the first that is stopped because its validation curve lies below the median of the
            others at the same epoch (optuna's MedianPruner); None: none is stopped.
    """

    def __init__(self, trials: int, parallel: int, metric: str, seed: int, prune_after: int | None = 5) -> None:
        if trials < 1 or parallel < 1:
            raise SearchError("hydra.sweeper.trials and hydra.sweeper.parallel are at least 1")
        if prune_after is not None and prune_after < 1:
            raise SearchError("hydra.sweeper.prune_after is at least 1, or null")
        if metric not in METRICS:
            raise SearchError(unknown_name("hydra.sweeper.metric", metric, METRICS))
        self.trials, self.parallel, self.metric, self.seed = trials, parallel, metric, seed
        self.prune_after = prune_after

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra calls this first."""
        self.folder, self.config = Path(config.hydra.sweep.dir), config
        self.storage = f"sqlite:///{self.folder.absolute() / STUDY_FILE}"
        self.context, self.task = hydra_context, task_function

    def sweep(self, arguments: list[str]) -> Any:
        """Runs trials until the budget is spent, and writes the best values to `search.yaml`.

        Raises:
            SearchError: without optuna, a key to search, values to choose among, or a validation part to judge by.
        """
        assert self.config is not None
        parsed = OverridesParser.create().parse_overrides(arguments)
        swept = [part for part in parsed if part.is_sweep_override()]
        listed = next((part for part in swept if key_of(part.input_line or "") == "seed"), None)
        searched = {part.get_key_element(): part for part in swept if part is not listed}
        check_ranges(searched, listed)
        seeds = list(listed.sweep_string_iterator()) if listed is not None else []
        fixed = [part.input_line or "" for part in parsed if not part.is_sweep_override()]
        each = [[f"seed={seed}"] for seed in seeds] or [[]]
        self._check(searched, [*fixed, *each[0]])
        if DRY_RUN_VARIABLE in os.environ:
            self._show(searched, [[*fixed, *seed] for seed in each])
            return None
        study = self._study(searched, seeds, fixed)
        task = Trial(self.task, self.metric, self.storage, max(1, len(seeds)), self.prune_after)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=task, config=self.config
        )
        while (done := len(study.trials)) < self.trials:
            batch = [study.ask(space(searched)) for _ in range(min(self.parallel, self.trials - done))]
            jobs = [[*fixed, *_typed(trial), *seed] for trial in batch for seed in each]
            for trial in batch:
                print(f"trial {trial.number + 1} of {self.trials}: {' '.join(_typed(trial))}", flush=True)
            results = list(launcher.launch(jobs, initial_job_idx=done * task.seeds))
            for trial in batch:
                own, results = results[: task.seeds], results[task.seeds :]
                self._tell(
                    study, trial, task.seeds, [job._return_value for job in own if job.status.name == "COMPLETED"]
                )
        return self._finish(study)

    def _show(self, searched: dict[str, Override], each: list[list[str]]) -> None:
        """The configs of the first trials, which no result is needed for; nothing is written."""
        import optuna

        assert self.config is not None
        at_once = min(self.parallel, self.trials)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=self.seed))
        trials = [_typed(study.ask(space(searched))) for _ in range(at_once)]
        for number, (trial, seed) in enumerate((trial, seed) for trial in trials for seed in each):
            composed = self.context.config_loader.load_sweep_config(self.config, [*seed, *trial])
            show_config(self.folder / subfolder(composed, number), freeze(composed))
        shown = "the first trial" if at_once == 1 else f"the first {at_once}"
        say(f"{shown} of the {self.trials} that the search would run; it chooses the others by results")

    def _tell(self, study: Any, trial: Any, seeds: int, values: list[Any]) -> None:
        """Tells the study, and the terminal, what came of a trial: the mean over its seeds."""
        from optuna.trial import TrialState

        if is_pruned(study, trial.number):
            study.tell(trial, state=TrialState.PRUNED)
            found = "stopped early"
        elif len(values) == seeds and all(isinstance(value, float) for value in values):
            study.tell(trial, fmean(values))
            found = f"validation {self.metric} {fmean(values):.2f}"
            found += f", the mean of {len(values)} seeds" if len(values) > 1 else ""
        else:
            study.tell(trial, state=TrialState.FAIL)
            found = "failed"
        complete = any(each.state == TrialState.COMPLETE for each in study.trials)
        best = f"; best so far {study.best_value:.2f}, trial {study.best_trial.number + 1}" if complete else ""
        print(f"trial {trial.number + 1} of {self.trials}: {found}{best}", flush=True)

    def _check(self, searched: dict[str, Override], words: list[str]) -> None:
        """Refuses a search that cannot be made: its first job is composed and its data opened, as a run's.

        Args:
            searched: the overrides to choose values of, by key.
            words: the first job's other overrides.
        """
        if not searched:
            raise SearchError("nothing to search: give a key a range, such as 'stage2.optimizer.lr=interval(0.01,1)'")
        try:
            import optuna
        except ModuleNotFoundError:
            raise SearchError("hydra/sweeper=search needs optuna: pip install optuna") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        assert self.config is not None
        words = [*words, *some_values(searched)]
        try:
            job = freeze(self.context.config_loader.load_sweep_config(self.config, words))
            _check_last_stage(job, searched)
            has_validation = check_data(job)
        except SearchError:
            raise
        except (LtexpError, HydraException, OmegaConfBaseException) as error:
            raise SearchError(f"{' '.join(words)}: {explain(error, words)}") from None
        if not has_validation:
            raise SearchError(
                f"a search judges by validation images, and {job['dataset']['name']} has none: hold training "
                "images out, such as dataset.validation.fraction=0.1"
            )

    def _study(self, searched: dict[str, Override], seeds: list[str], fixed: Sequence[str]) -> Any:
        import optuna

        self.folder.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            study_name=STUDY, storage=self.storage, direction=METRICS[self.metric], load_if_exists=True
        )
        asked: dict[str, Any] = {"metric": self.metric, "seeds": seeds, "keys": sorted(searched)}
        asked |= identity(searched, fixed)
        for name, value in asked.items():
            before = study.user_attrs.get(name, value)  # a search of before has no overrides and ranges, and goes on
            if before != value:
                found = differences(before, value)
                raise SearchError(
                    f"the search in {self.folder} has other {name} ({found}): choose another hydra.sweep.dir"
                )
            study.set_user_attr(name, value)
        # a search that goes on draws on, instead of what its first trials drew
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials))
        for trial in study.trials:
            if trial.state.name == "RUNNING":  # of a search that was killed
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        return study

    def _finish(self, study: Any) -> Any:
        states = [trial.state.name for trial in study.trials]
        finished = states.count("COMPLETE")
        if not finished and set(states) == {"FAIL"} and not self._unmeasured():
            raise SearchError(
                f"all {len(states)} trials of the search in {self.folder} failed; each has said why above"
            )
        if not finished:
            raise SearchError(
                f"no trial of the search in {self.folder} was measured on the validation part after its last epoch: "
                "evaluation.every has to divide the epochs of the last stage"
            )
        best = {"metric": f"validation {self.metric}", "value": study.best_value, "overrides": study.best_params}
        write_text(self.folder / "search.yaml", OmegaConf.to_yaml(OmegaConf.create(best | {"trials": finished})))
        typed = " ".join(f"{key}={value}" for key, value in study.best_params.items())
        counted = f"{finished} trials" + (
            f" ({states.count('PRUNED')} more stopped early)" if "PRUNED" in states else ""
        )
        print(f"best of {counted}: validation {self.metric} {study.best_value:.2f} with {typed}", flush=True)
        print(f"the study: {self.folder / STUDY_FILE} (optuna-dashboard {self.storage})", flush=True)
        return best

    def _unmeasured(self) -> bool:
        """Whether some run of the search finished, and yet has no result on the validation part."""
        return any(read_status(path.parent) == "finished" for path in self.folder.glob(f"*/{RECORD}"))


def _check_last_stage(job: Mapping[str, Any], searched: Mapping[str, Override]) -> None:
    """Refuses a job whose last stage trains nothing: results on validation images are those of a stage's epochs."""
    last = in_order(name for name in job if names_stage(name) and job[name])[-1]
    if job[last]["epochs"]:
        return
    part = f"{last}.classifier"
    own = [f" '{key.removeprefix(f'{part}.')}=range(...)'" for key in searched if key.startswith(f"{part}.")]
    raise SearchError(
        f"a search judges by the epochs of the last stage, and {last}.epochs is 0: values of its classifier are chosen "
        f"on a finished run, by ltexp evaluate RUN classifier={job['choices'].get(f'classifier@{part}')}{''.join(own)}"
    )


def _typed(trial: Any) -> list[str]:
    return [f"{key}={value}" for key, value in trial.params.items()]
