"""Where the features of a stage come from that trains its classifier on features: the choices of conf/features/."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ltexp.features.bank import FeatureBank
from ltexp.features.generation import Generation


class ExtractedFeatures:
    """The features of the training samples, extracted once an epoch, and no others; base of the other sources.

    The loader asks in this order: `check`, `held_out` and `start` before training, `plan` once an epoch, `end_epoch`
    after it where the source `keeps_score`.
    """

    keeps_score: bool = False
    generates: bool = False  # whether it makes features beside the extracted ones
    compares_with_stage1: bool = False  # whether `set_reference` is called before the first `end_epoch`

    def check(self, class_counts: Tensor, class_names: Sequence[str], separate: bool) -> None:
        """Refuses a training set that the source cannot work with; see `held_out`.

        Raises:
            ConfigError: naming the class.
        """

    def held_out(self, class_counts: Tensor, separate: bool) -> Tensor:
        """(C,) how many training samples of each class are not trained on, but keep the score.

        Args:
            class_counts: (C,) on the CPU.
            separate: whether there is a validation split to keep the score on.
        """
        return torch.zeros_like(class_counts)

    def start(self, class_counts: Tensor, kept: Tensor, epochs: int) -> Tensor:
        """(G,) int64, the classes of the features that the source makes beside the extracted ones, sorted.

        Args:
            class_counts: (C,), all training samples of each class, on the CPU.
            kept: (C,), those of them that are trained on.
            epochs: of the stage.
        """
        return torch.empty(0, dtype=torch.int64)

    def plan(self, bank: FeatureBank, epoch: int, seed: int) -> Generation | None:
        """How the further features of an epoch come about."""
        return None

    def set_reference(self, score: Tensor) -> None:
        """Takes the score (C,) of the classifier that was trained with the backbone, on the same samples."""

    def end_epoch(self, epoch: int, score: Tensor) -> None:
        """Takes the score (C,) of every class after an epoch: its mean probability of the true class, or NaN."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed stage needs."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Goes on from `state`."""

    def history(self) -> list[dict[str, Any]]:
        """Rows for a file beside the stage's metrics; none: no file."""
        return []
