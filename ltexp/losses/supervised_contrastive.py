"""Supervised contrastive learning (Khosla et al., NeurIPS 2020), and its balanced form (Zhu et al., CVPR 2022)."""

from typing import ClassVar

import torch
from torch import Tensor

from ltexp.config.require import is_whole, require
from ltexp.counts import count_labels
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.losses.contrast import Contrast
from ltexp.outputs import ModelOutput


class SupervisedContrastive(Loss):
    """L_out of Eq. 2: each view of an image is to be nearer to those of its class than to all others of the batch.

    The batch is that of all processes together.

    Args:
        class_counts: int64 (C,).
        temperature: τ, which divides the cosines. Default 0.1 (the paper).
        first_view: the first view that is contrasted, from 0. Default 0: all of them.

    Raises:
        ConfigError: a temperature that is not positive, or no whole number of views.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"projections"})
    compares_rows = True

    def __init__(self, class_counts: Tensor, temperature: float = 0.1, first_view: int = 0) -> None:
        super().__init__(class_counts)
        require(temperature > 0, "temperature", temperature, "a number above 0")
        require(is_whole(first_view, 0), "first_view", first_view, "a whole number of 0 or more")
        self.temperature, self.first_view, self.fewest_views = temperature, first_view, first_view + 1

    def contrast(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Contrast:
        """The views that are contrasted."""
        return Contrast.of(output.extra["projections"][self.first_view :], target, context)

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses, of images whose class has no other view in the batch 0."""
        found = self.contrast(output, target, context)
        logits = found.without_itself(found.similarities(found.others, self.temperature))
        positive = found.same_class(found.other_labels).scatter(1, found.place[:, None], False)
        of_positives = logits.log_softmax(1).masked_fill(~positive, 0.0).sum(1)
        return found.by_image(-of_positives / positive.sum(1).clamp_min(1))


class BalancedContrastive(SupervisedContrastive):
    """BCL (Zhu et al., CVPR 2022): the classes of the denominator count alike, and each has a prototype in every batch.

    An anchor i faces the set A of the other views and the C prototypes, of which m_c are of class c:

        l_i = log Σ_{j≠i} exp(f_i·a_j / τ) / w_ij  -  mean over j≠i with y_j = y_i of f_i·a_j / τ,

    where w_ij is the number of members of a_j's class, i itself not counted.

    Args:
        class_counts: int64 (C,).
        temperature: τ. Default 0.1 (CIFAR; the authors have 0.07 on large sets).
        first_view: see `SupervisedContrastive`. Default 1: the first view is the classifier's.

    Raises:
        ConfigError: as `SupervisedContrastive`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"projections", "prototypes"})

    def __init__(self, class_counts: Tensor, temperature: float = 0.1, first_view: int = 1) -> None:
        super().__init__(class_counts, temperature, first_view)

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses."""
        found, prototypes = self.contrast(output, target, context), output.extra["prototypes"].float()
        labels = torch.cat([found.other_labels, torch.arange(self.num_classes, device=target.device)])
        logits = found.similarities(torch.cat([found.others, prototypes]), self.temperature)
        same = found.same_class(labels)
        members = count_labels(labels, self.num_classes)[labels] - same.long()
        denominator = found.without_itself(logits - members.clamp_min(1).log()).logsumexp(1)
        positive = same.scatter(1, found.place[:, None], False)
        return found.by_image(denominator - logits.masked_fill(~positive, 0.0).sum(1) / positive.sum(1))
