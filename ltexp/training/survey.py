"""What losses ask of whole splits before an epoch, and which stages can answer."""

from collections.abc import Callable

import torch
from torch import Tensor

from ltexp.config import StageConfig
from ltexp.errors import ConfigError
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
        """(values (N,), labels (N,)) in the split's order; see `Survey`."""
        model = self._model if teacher is None else self._teachers.named[teacher].model
        loader = self._session.evaluation_loader(self._session.data.splits[split])
        _, values, labels = values_of_samples(model, loader, self._session.config.trainer.precision, value)
        return torch.from_numpy(values), torch.from_numpy(labels)


def check_surveys(name: str, stage: StageConfig, objective: Objective) -> None:
    """Refuses a stage whose images are not those that its losses survey, before any data is read.

    Args:
        name: of the stage.
        stage: its config.
        objective: of the stage, on made-up class counts.

    Raises:
        ConfigError: saying what to change.
    """
    for key, part in objective.by_key.items():
        if not part.surveys:
            continue
        term = key.split(".")[1] if key != "loss" else ""
        if term and objective.stream_of[term] is not None:
            raise ConfigError(
                f"{name}: its term {term} surveys the stage's own images: set {name}.terms.{term}.stream=null"
            )
        if stage.features.get("_target_"):
            raise ConfigError(f"{name}: its {key} surveys images: set features@{name}.features=none")
        if makes_labels(stage) or ("train" in part.surveys and blends(stage)):
            raise ConfigError(f"{name}: its {key} surveys images as they are: set mixing@{name}.mixing=none")
