"""The images of one group of classes alone: many-, medium- or few-shot."""

import torch
from torch import Tensor

from ltexp.config.require import require_choice
from ltexp.data.samplers import Sampler
from ltexp.errors import ConfigError
from ltexp.evaluation.shots import GROUPS, ShotRule
from ltexp.randomness import generator


class ShotGroup(Sampler):
    """Ordinary shuffling of the images whose classes are of one group by their training images; no other is shown.

    Args:
        labels: (N,) int64.
        class_counts: (C,) int64.
        group: many, medium or few.
        many_above: many-shot classes have more images than this. Default 100 (Liu et al., CVPR 2019).
        few_below: few-shot classes have fewer; the others are medium-shot. Default 20.
        epoch_length: null (default): the group's images.

    Raises:
        ConfigError: another group, bounds that overlap, and as `Sampler`.
    """

    def __init__(
        self,
        labels: Tensor,
        class_counts: Tensor,
        group: str = "medium",
        many_above: int = 100,
        few_below: int = 20,
        epoch_length: int | None = None,
    ) -> None:
        super().__init__(labels, class_counts, epoch_length)
        require_choice("group", group, GROUPS)
        self.group, self.rule = group, ShotRule.checked(many_above, few_below)
        self.members = torch.from_numpy(self.rule.groups(self.class_counts)[group])
        self.images = self.members[labels.cpu()].nonzero().flatten()
        self.epoch_length = len(self.images) if epoch_length is None else epoch_length

    def check_data(self) -> None:
        """Refuses a group without classes."""
        if not self.members.any():
            raise ConfigError(self.rule.empty(self.group))

    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        """(C,) n over the group's images, 0 for classes outside it."""
        return self.class_counts.double() * self.members / max(len(self.images), 1)

    def indices(self, seed: int, epoch: int, max_epochs: int) -> Tensor:
        """A permutation of the group's images; a longer epoch goes through further permutations."""
        draws, size = generator("order", seed, epoch), len(self.images)
        rounds = -(-self.epoch_length // max(size, 1))
        order = [torch.randperm(size, generator=draws) for _ in range(rounds)]
        return self.images[torch.cat([*order, self.images[:0]])][: self.epoch_length]
