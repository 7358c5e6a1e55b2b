"""LFME (Xiang, Ding and Han, ECCV 2020): a student of an expert for each group of classes, paced by what it can."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import is_number, require
from ltexp.errors import ConfigError
from ltexp.evaluation.shots import GROUPS, ShotRule
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext, Survey
from ltexp.losses.distillation import divergence
from ltexp.losses.shot_group import columns_of
from ltexp.outputs import ModelOutput


class MultipleExperts(Loss):
    """v_i (cross-entropy + Σ_g a_g KL_g) of each sample i, over the groups many, medium and few.

    KL_g is KL(expert || student) at temperature T of the softmax over the group's classes alone, without T² (the
    authors' code). The stage's `teachers` many, medium and few are the experts.

    a_g = 1 in the first epoch and while the student's accuracy on the group's validation images is below `full_below`
    of the expert's; from there it falls in proportion to what is missing, to 0 once the expert is reached. The student
    chooses among all classes, the expert among its own. Accuracies are means over the group's classes, taken before
    each epoch.

    v_i = p_i + (1 - p_i) t, t = min(1, (e + 1) / (E / 2)) in epoch e (from 0) of E. p_i is the confidence of the
    group's expert in the true class of the image, not augmented, scaled within each class to [floor_g, 1]; where all
    images of a class are equal, p_i = 1. It weighs the loss, as in the paper; the authors' code multiplies the logits,
    and goes on above 1.

    Args:
        class_counts: (C,) int64.
        temperature: T > 0. Default 2 (the authors' code).
        full_below: share of the expert's accuracy, 0 or more and below 1. Default 0.3 (the authors' code).
        self_paced: false: a_g = 1 throughout.
        curriculum: false: v_i = 1.
        floors: of many, medium and few, above 0 and at most 1. Default null: the mean class count of few over the
            group's own, as the authors have it.
        many_above: many-shot classes have more training images than this. Default 100 (Liu et al., CVPR 2019).
        few_below: few-shot classes have fewer; the others are medium-shot. Default 20.
        scale: see `Loss`.

    Attributes:
        paces: a_g by group.
        start: (N,) p_i of the training images. None: not surveyed.

    Raises:
        ConfigError: settings out of range, and as `Loss`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"teachers_logits"})
    teachers = GROUPS

    def __init__(
        self,
        class_counts: Tensor,
        temperature: float = 2.0,
        full_below: float = 0.3,
        self_paced: bool = True,
        curriculum: bool = True,
        floors: Sequence[float] | None = None,
        many_above: int = 100,
        few_below: int = 20,
        scale: float = 1.0,
    ) -> None:
        super().__init__(class_counts, scale)
        require(temperature > 0, "temperature", temperature, "a number above 0")
        require(0 <= full_below < 1, "full_below", full_below, "a number of 0 or more and below 1")
        in_range = floors is None or (len(floors) == len(GROUPS) and all(is_number(f, 0, 1) and f > 0 for f in floors))
        require(in_range, "floors", floors, "null, or three numbers above 0, at most 1: of many, medium and few")
        self.temperature, self.full_below = temperature, full_below
        self.self_paced, self.curriculum = self_paced, curriculum
        self.surveys = ("validation",) * self_paced + ("train",) * curriculum
        self.rule = ShotRule.checked(many_above, few_below)
        for group, columns in columns_of(self.rule, class_counts).items():
            self.register_buffer(f"columns_{group}", columns, persistent=False)
        self.floors = dict(zip(GROUPS, floors or self._floors(), strict=True))
        self.paces = dict.fromkeys(GROUPS, 1.0)
        self.start: Tensor | None = None
        self._experts: dict[str, float] | None = None  # their accuracies

    @property
    def columns(self) -> dict[str, Tensor]:
        """int64, the classes of each group."""
        return {group: self.get_buffer(f"columns_{group}") for group in GROUPS}

    def _floors(self) -> list[float]:
        """1 for the few-shot classes, and the less the more images a class of the group has on average."""
        means = [float(self.class_counts[self.columns[group]].double().mean()) for group in GROUPS]
        return [means[-1] / mean for mean in means]

    def check_data(self, validation: Tensor | None) -> None:
        """Refuses a group without classes, and, for accuracies, without validation images."""
        for group, columns in self.columns.items():
            if not len(columns):
                raise ConfigError(self.rule.empty(group))
            if self.self_paced and validation is not None and not validation[columns.cpu()].any():
                raise ConfigError(
                    f"experts are weighted by validation images, and no class of {self.rule.of_group(group)} training "
                    "images has any: add some, or set self_paced=false"
                )
        if self.self_paced and validation is None:
            raise ConfigError(
                "experts are weighted by validation images, and there are none: set dataset.validation.fraction=0.1, "
                "or self_paced=false"
            )

    def before_epoch(self, epoch: int, max_epochs: int, survey: Survey) -> None:
        """Weighs the experts by the student's accuracy, and at the stage's start the training images by the experts."""
        if self.self_paced and epoch > 0:
            if self._experts is None:
                self._experts = {
                    group: self._accuracy(group, *survey("validation", self._right_within(group), group))
                    for group in GROUPS
                }
            answers = survey("validation", lambda output, labels: (output.logits.argmax(1) == labels).float())
            self.paces = {
                group: self.pace(self._accuracy(group, *answers), expert) for group, expert in self._experts.items()
            }
        if self.curriculum and self.start is None and _progress(epoch, max_epochs) < 1:
            self.start = self._confidences(survey).to(self.class_counts.device)

    def pace(self, student: float, expert: float) -> float:
        """a_g of the accuracies of student and expert; 0 of an expert that is never right."""
        if student < self.full_below * expert:
            return 1.0
        return max(0.0, (expert - student) / (expert * (1 - self.full_below))) if expert > 0 else 0.0

    def _right_within(self, group: str) -> Callable[[ModelOutput, Tensor], Tensor]:
        def right(output: ModelOutput, labels: Tensor) -> Tensor:
            columns = self.columns[group]
            return (columns[output.logits[:, columns].argmax(1)] == labels).float()

        return right

    def _accuracy(self, group: str, right: Tensor, labels: Tensor) -> float:
        """The mean over the group's classes that have samples of the share that is right."""
        columns = self.columns[group].cpu()
        hits = torch.bincount(labels, weights=right.double(), minlength=self.num_classes)[columns]
        samples = torch.bincount(labels, minlength=self.num_classes)[columns]
        return float((hits / samples)[samples > 0].mean())

    def _confidences(self, survey: Survey) -> Tensor:
        """(N,) p_i of every training image."""
        start = torch.zeros(int(self.class_counts.sum()))
        for group, columns in self.columns.items():
            confidence, labels = survey("train", self._confidence_within(group), group)
            for label in columns.tolist():
                rows = labels == label
                start[rows] = scaled(confidence[rows], self.floors[group])
        return start

    def _confidence_within(self, group: str) -> Callable[[ModelOutput, Tensor], Tensor]:
        def confidence(output: ModelOutput, labels: Tensor) -> Tensor:
            columns = self.columns[group]
            shares = torch.zeros_like(output.logits)
            shares[:, columns] = (output.logit_scale * output.logits[:, columns]).softmax(1)
            return shares.gather(1, labels[:, None]).squeeze(1)

        return confidence

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """(B,) losses."""
        assert output.teachers_logits is not None
        logits = self.logits(output)
        losses = F.cross_entropy(logits, target, reduction="none")
        for group, columns in self.columns.items():
            if self.paces[group] > 0 and len(columns):
                own, theirs = (
                    F.log_softmax(z[:, columns] / self.temperature, dim=1)
                    for z in (logits, output.teachers_logits[group].detach().float())
                )
                losses = losses + self.paces[group] * divergence(theirs, own)
        progress = _progress(context.epoch, context.max_epochs)
        if self.start is None or context.index is None or progress >= 1:
            return losses
        start = self.start[context.index[context.part]]
        return (start + (1 - start) * progress) * losses


def scaled(confidence: Tensor, floor: float) -> Tensor:
    """(n,) confidences in the images of one class, moved to [floor, 1]; all 1 where they are equal."""
    lowest, highest = confidence.min(), confidence.max()
    if highest <= lowest:
        return torch.ones_like(confidence)
    return (confidence - lowest) / (highest - lowest) * (1 - floor) + floor


def _progress(epoch: int, max_epochs: int) -> float:
    """How far the images' weights are on their way to 1, which they reach in the middle of the stage."""
    return min(1.0, (epoch + 1) / (max_epochs / 2))
