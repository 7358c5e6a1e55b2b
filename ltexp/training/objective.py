"""A stage's objective: its loss and the weighted terms beside it."""

from typing import Any

from torch import Tensor, nn

from ltexp.config import StageConfig
from ltexp.config.build import build
from ltexp.losses.base import Loss
from ltexp.losses.reweighting import Reweighted
from ltexp.outputs import ModelOutput
from ltexp.training.mixing import Mixture


class Objective(nn.Module):
    """loss_weight * loss + sum of weight * term, each a `Loss`; the stage's re-weighting is the loss's alone.

    Args:
        stage: whose `loss`, `reweighting` and `terms` to build.
        class_counts: int64 (C,), the training images of each class.

    Raises:
        ConfigError: settings out of range, or a re-weighting of a loss that has or takes no further class weights.
    """

    def __init__(self, stage: StageConfig, class_counts: Tensor) -> None:
        super().__init__()
        self.loss: Loss = build(stage.loss, class_counts=class_counts, path="loss")
        self.reweighting = Reweighted(self.loss, build(stage.reweighting, path="reweighting"))
        self.terms = nn.ModuleDict(
            {k: build(v.loss, class_counts=class_counts, path=f"terms.{k}.loss") for k, v in stage.terms.items()}
        )
        self.loss_weight = stage.loss_weight
        self.rows = slice(None)
        self.weights = {name: term.weight for name, term in stage.terms.items()}

    @property
    def _parts(self) -> list[Any]:
        return [self.loss, *self.terms.values()]

    @property
    def logit_scale(self) -> float:
        """What evaluation multiplies logits by before the softmax (the scale of a cosine loss)."""
        return float(self.loss.logit_scale)

    @property
    def needs(self) -> frozenset[str]:
        """The fields of `ModelOutput` that some part reads beside logits and features."""
        return frozenset().union(*(part.needs for part in self._parts))

    def set_progress(self, epoch: int, max_epochs: int, step: int = 0) -> None:
        """Tells every part how far training is; epoch and step count from 0."""
        for part in self._parts:
            part.set_progress(epoch, max_epochs, step)
        self.reweighting.set_progress(self.loss, epoch, max_epochs)

    def end_epoch(self) -> None:
        """Tells every part that an epoch has ended."""
        for part in self._parts:
            part.end_epoch()

    def set_seed(self, seed: int) -> None:
        """Tells every part the seed of its random draws."""
        for part in self._parts:
            part.seed = seed

    def set_share(self, share: float | None) -> None:
        """Tells every part what this process's rows of the batch count for (`Batch.share`)."""
        for part in self._parts:
            part.share = share

    def set_part(self, rows: slice) -> None:
        """Tells every part which of this process's rows of the batch the outputs that follow are of."""
        self.rows = rows
        for part in self._parts:
            part.part = rows

    def forward(self, output: ModelOutput, target: Tensor) -> Tensor:
        """The scalar objective of a batch with the labels `target` (B,); `output` is of the rows of `set_part`."""
        return self.of_mixture(output, Mixture(target, target, 1.0))

    def of_mixture(self, output: ModelOutput, targets: Mixture) -> Tensor:
        """The scalar objective of a batch that may be mixed; a term that reads no labels is computed once."""
        total = targets.objective(self._of_labels, output)
        for name, term in self.terms.items():
            if not term.reads_labels:
                total = total + self.weights[name] * term(output, targets.labels[self.rows])
        return total

    def _of_labels(self, output: ModelOutput, target: Tensor) -> Tensor:
        for part in self._parts:
            part.batch_labels = target
        target = target[self.rows]
        total: Tensor = self.loss(output, target)
        if self.loss_weight != 1.0:
            total = self.loss_weight * total
        for name, term in self.terms.items():
            if term.reads_labels:
                total = total + self.weights[name] * term(output, target)
        return total


def flat_factors(factors: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """{classifier: {shift: 0.2}} as {classifier.shift: 0.2}."""
    flat: dict[str, float] = {}
    for name, value in factors.items():
        flat |= (
            flat_factors(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": float(value)}
        )
    return flat


def parameter_groups(model: nn.Module, lr: float, factors: dict[str, float]) -> list[dict[str, Any]]:
    """Optimizer groups of the learnable parameters, one for each factor on the learning rate.

    Args:
        model: its parameters that require a gradient are grouped.
        lr: base learning rate.
        factors: by prefix of a parameter's dotted name; the longest prefix that fits counts.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            fitting = [prefix for prefix in factors if name == prefix or name.startswith(prefix + ".")]
            factor = factors[max(fitting, key=len)] if fitting else 1.0
            groups.setdefault(factor, []).append(parameter)
    return [{"params": params, "lr": lr * factor, "base_lr": lr * factor} for factor, params in groups.items()]
