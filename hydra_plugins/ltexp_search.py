"""A Hydra sweeper that searches with a budget, by optuna. Hydra takes plugins from `hydra_plugins` alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from ltexp.config import in_order, names_stage
from ltexp.files import write_text
from ltexp.names import unknown_name
from ltexp.run_folder import METRICS as RUN_METRICS
from ltexp.run_folder import read_metrics

METRICS = {"all": "maximize", "many": "maximize", "medium": "maximize", "few": "maximize", "ece": "minimize"}


class SearchError(HydraException):
    """A search that cannot run: of the sweep itself, where an `LtexpError` is of one of its jobs."""


@dataclass(frozen=True)
class Trial:
    """The task of a job, followed by the job's result on the validation part.

    Attributes:
        task: the job's task function.
        metric: the metric of `Search`.
    """

    task: Any
    metric: str

    def __call__(self, job: DictConfig) -> float | None:
        """Runs the job; the metric of its last stage's last epoch, None if that was not measured."""
        self.task(job)
        folder = Path(HydraConfig.get().runtime.output_dir)
        for stage in reversed(in_order(path.name for path in folder.iterdir() if names_stage(path.name))):
            if (folder / stage / RUN_METRICS).exists():
                rows = read_metrics(folder / stage / RUN_METRICS)
                value = rows[-1].get(f"validation_{self.metric}") if rows else None
                return float(value) if value not in (None, "") else None
        return None


class Search(Sweeper):
    """Asks optuna's tree-structured Parzen estimator for values, runs them, and tells it what came of them.

    Args:
        trials: the budget, trials of an earlier search in the same folder included.
        parallel: trials that the launcher gets at a time.
        metric: the metric of the validation part at the end of the run.
        seed: the search's seed.
    """

    def __init__(self, trials: int, parallel: int, metric: str, seed: int) -> None:
        if trials < 1 or parallel < 1:
            raise SearchError("hydra.sweeper.trials and hydra.sweeper.parallel are at least 1")
        if metric not in METRICS:
            raise SearchError(unknown_name("hydra.sweeper.metric", metric, METRICS))
        self.trials, self.parallel, self.metric, self.seed = trials, parallel, metric, seed
        self.launcher: Launcher | None = None
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra calls this first."""
        self.folder = Path(config.hydra.sweep.dir)

        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=Trial(task_function, self.metric), config=config
        )
        self.config = config

    def sweep(self, arguments: list[str]) -> Any:
        """Runs trials until the budget is spent, and writes the best values to `search.yaml`.

        Raises:
            SearchError: without optuna, a key to search, or a validation part to judge by.
        """
        assert self.launcher is not None
        parsed = OverridesParser.create().parse_overrides(arguments)
        searched = {part.get_key_element(): part for part in parsed if part.is_sweep_override()}
        fixed = [part.input_line or "" for part in parsed if not part.is_sweep_override()]
        study = self._study(searched)
        while (done := len(study.trials)) < self.trials:
            batch = [study.ask(self._space(searched)) for _ in range(min(self.parallel, self.trials - done))]
            jobs = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in batch]
            results = self.launcher.launch(jobs, initial_job_idx=done)
            for trial, result in zip(batch, results, strict=True):
                value = result._return_value if result.status.name == "COMPLETED" else None
                study.tell(trial, value, state=None if isinstance(value, float) else _failed())
        return self._finish(study)

    def _study(self, searched: dict[str, Override]) -> Any:
        if not searched:
            raise SearchError("nothing to search: give a key a range, such as 'stage2.optimizer.lr=interval(0.01,1)'")
        try:
            import optuna
        except ModuleNotFoundError:
            raise SearchError("hydra/sweeper=search needs optuna: pip install optuna") from None
        assert self.config is not None
        validation = OmegaConf.select(self.config, "dataset.validation.fraction", default=0)
        if not validation:
            raise SearchError("a search judges by held-out training images: add dataset.validation.fraction=0.1")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder.mkdir(parents=True, exist_ok=True)
        backend = optuna.storages.journal.JournalFileBackend(str(self.folder / "search.log"))
        study = optuna.create_study(
            study_name="search",
            storage=optuna.storages.JournalStorage(backend),
            direction=METRICS[self.metric],
            load_if_exists=True,
        )
        # a search that goes on draws on, instead of what its first trials drew
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials))
        for trial in study.trials:
            if trial.state.name == "RUNNING":  # of a search that was killed
                study.tell(trial.number, state=_failed())
        return study

    def _space(self, searched: dict[str, Override]) -> dict[str, Any]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        space: dict[str, Any] = {}
        for key, part in searched.items():
            value = part.value()
            if isinstance(value, IntervalSweep):
                whole = isinstance(value.start, int) and isinstance(value.end, int)
                kind = IntDistribution if whole else FloatDistribution
                space[key] = kind(value.start, value.end, log="log" in value.tags)
            else:
                space[key] = CategoricalDistribution(list(part.sweep_string_iterator()))
        return space

    def _finish(self, study: Any) -> Any:
        finished = [trial for trial in study.trials if trial.value is not None]
        if not finished:
            raise SearchError(
                f"no trial of the search in {self.folder} was measured on the validation part after its last epoch: "
                "evaluation.every has to divide the epochs of the last stage"
            )
        best = {"metric": f"validation {self.metric}", "value": study.best_value, "overrides": study.best_params}
        write_text(self.folder / "search.yaml", OmegaConf.to_yaml(OmegaConf.create(best | {"trials": len(finished)})))
        typed = " ".join(f"{key}={value}" for key, value in study.best_params.items())
        print(
            f"best of {len(finished)} trials: validation {self.metric} {study.best_value:.2f} with {typed}", flush=True
        )
        return best


def _failed() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL
