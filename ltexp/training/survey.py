"""What losses and samplers ask of whole splits before an epoch, and which stages can answer."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from ltexp.config import StageConfig
from ltexp.config.build import build
from ltexp.config.require import require_names, within
from ltexp.data.samplers import Sampler
from ltexp.errors import ConfigError
from ltexp.losses.base import Loss
from ltexp.losses.context import Survey
from ltexp.models.model import Model
from ltexp.outputs import ModelOutput
from ltexp.training.mixing import blends
from ltexp.training.objective import Objective
from ltexp.training.predict import values_of_samples
from ltexp.training.pretext import makes_labels
from ltexp.training.session import Session
from ltexp.training.teacher import Teachers


class SplitSurvey:
    """Asks a stage's model or one of its teachers about every sample of a split; see `Survey`.

    Args:
        session: of the stage.
        model: in training.
        teachers: the stage's.
    """

    def __init__(self, session: Session, model: Model, teachers: Teachers) -> None:
        self._session, self._model, self._teachers = session, model, teachers

    def __call__(
        self, split: str, value: Callable[[ModelOutput, Tensor], Tensor], teacher: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """(values (N, ...), labels (N,)) in the split's order; see `Survey`."""
        model = self._model if teacher is None else self._teachers.named[teacher].model
        loader = self._session.evaluation_loader(self._session.data.splits[split])
        _, values, labels = values_of_samples(model, loader, self._session.config.trainer.precision, value)
        return torch.from_numpy(values), torch.from_numpy(labels)


class SurveyingSampler:
    """Lets a sampler survey splits before each epoch; see `Sampler.before_epoch`.

    What it learns follows from the weights of that moment, so a checkpoint holds none of it.

    Args:
        sampler: that `surveys`.
        max_epochs: epochs of the stage.
        survey: of the stage's model.
    """

    def __init__(self, sampler: Sampler, max_epochs: int, survey: Survey) -> None:
        self._sampler, self._max_epochs, self._survey = sampler, max_epochs, survey

    def before_epoch(self, epoch: int) -> None:
        """Lets it survey."""
        self._sampler.before_epoch(epoch, self._max_epochs, self._survey)

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Does nothing."""


def surveyed_by(stage: StageConfig, objective: Objective) -> dict[str, Collection[str]]:
    """The splits that each loss and sampler of a stage surveys, by its key."""
    counts = objective.loss.class_counts.cpu()
    given = {"labels": torch.arange(len(counts)).repeat_interleave(counts), "class_counts": counts}
    nodes = {"sampler": stage.sampler}
    nodes |= {f"streams.{name}.sampler": stream.sampler for name, stream in stage.streams.items()}
    parts: dict[str, Loss | Sampler] = {**objective.by_key}
    parts |= {key: build(node, path=key, **given) for key, node in nodes.items()}
    for part in parts.values():
        require_names(part, "surveys")
    return {key: part.surveys for key, part in parts.items() if part.surveys}


def check_surveys(name: str, stage: StageConfig, objective: Objective) -> None:
    """Refuses a stage whose images are not those that its parts survey, before any data is read.

    Args:
        name: of the stage.
        stage: its config.
        objective: of the stage, on made-up class counts.

    Raises:
        ConfigError: saying what to change.
    """
    with within(name):
        surveys = surveyed_by(stage, objective)
    for key, splits in surveys.items():
        if unknown := set(splits) - {"train", "validation"}:
            raise ConfigError(f"{name}.{key}: its surveys names {min(unknown)!r}: expected train or validation")
        term = key.split(".")[1] if key.startswith("terms.") else ""
        if term and objective.stream_of[term] is not None:
            raise ConfigError(
                f"{name}: its term {term} surveys the stage's own images: set {name}.terms.{term}.stream=null"
            )
        if stage.features.get("_target_"):
            raise ConfigError(f"{name}: its {key} surveys images: set features@{name}.features=none")
        mixed = key in objective.by_key and "train" in splits and blends(stage)  # a sampler's rows are not mixed
        if makes_labels(stage) or mixed:
            raise ConfigError(f"{name}: its {key} surveys images as they are: set mixing@{name}.mixing=none")
