"""Cross-entropy among the classes of one group, many-, medium- or few-shot: what an expert of that group learns."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require_choice
from ltexp.errors import ConfigError
from ltexp.evaluation.shots import GROUPS, ShotRule
from ltexp.losses.base import Loss
from ltexp.outputs import ModelOutput


def columns_of(rule: ShotRule, class_counts: Tensor) -> dict[str, Tensor]:
    """int64, the classes of each group by its name."""
    members = rule.groups(class_counts)
    return {group: torch.from_numpy(members[group]).nonzero().flatten() for group in GROUPS}


class ShotGroupCrossEntropy(Loss):
    """Softmax cross-entropy over the logits of one group's classes; samples of other classes have no loss.

    Args:
        class_counts: (C,) int64.
        group: many, medium or few.
        many_above: many-shot classes have more training images than this. Default 100 (Liu et al., CVPR 2019).
        few_below: few-shot classes have fewer; the others are medium-shot. Default 20.
        scale: see `Loss`.

    Raises:
        ConfigError: another group, bounds that overlap, and as `Loss`.
    """

    columns: Tensor
    places: Tensor

    def __init__(
        self,
        class_counts: Tensor,
        group: str = "medium",
        many_above: int = 100,
        few_below: int = 20,
        scale: float = 1.0,
    ) -> None:
        super().__init__(class_counts, scale)
        require_choice("group", group, GROUPS)
        self.group, self.rule = group, ShotRule.checked(many_above, few_below)
        columns = columns_of(self.rule, class_counts)[group]
        places = torch.full((self.num_classes,), -1)
        places[columns] = torch.arange(len(columns))
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("places", places, persistent=False)

    def check_data(self, validation: Tensor | None) -> None:
        """Refuses a group without classes."""
        if not len(self.columns):
            raise ConfigError(self.rule.empty(self.group))

    def learned_prior(self, shares: Tensor) -> Tensor:
        """Of the group's classes alone; see `Loss`."""
        return super().learned_prior(shares * (self.places >= 0).to(shares))

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) losses, 0 of samples outside the group."""
        logits = self.logits(output)[:, self.columns]
        return F.cross_entropy(logits, self.places[target], ignore_index=-1, reduction="none")
