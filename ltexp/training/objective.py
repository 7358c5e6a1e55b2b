"""A stage's objective: its loss and the weighted terms beside it."""

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from ltexp.config import StageConfig
from ltexp.config.build import build
from ltexp.config.require import require_names, within
from ltexp.errors import ConfigError
from ltexp.losses.base import Loss
from ltexp.losses.context import WHOLE_BATCH, BatchContext, Survey
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
        self.weights = {name: term.weight for name, term in stage.terms.items()}
        self.stream_of = {name: term.stream for name, term in stage.terms.items()}
        for path, part in self.by_key.items():
            with within(path):
                _check(part)
        of_terms = {stream for stream in self.stream_of.values() if stream is not None}
        self.streams = sorted(of_terms.union(*(part.streams for part in self._parts)))

    @property
    def _parts(self) -> list[Loss]:
        return [self.loss, *cast(Iterable[Loss], self.terms.values())]

    @property
    def by_key(self) -> dict[str, Loss]:
        """The loss and its terms by their keys in the stage's config."""
        terms = {f"terms.{name}.loss": cast(Loss, term) for name, term in self.terms.items()}
        return {"loss": self.loss, **terms}

    @property
    def logit_scale(self) -> float:
        """What turns the model's logits into those of its softmax (the scale of a cosine loss)."""
        return float(self.loss.logit_scale)

    @property
    def needs(self) -> frozenset[str]:
        """What some part reads of the model's output beside logits and features."""
        return frozenset().union(*(part.needs for part in self._parts))

    def needs_of(self, stream: str | None) -> frozenset[str]:
        """The same of one stream alone, or of the stage's own batch (None)."""
        terms = [cast(Loss, term) for name, term in self.terms.items() if self.stream_of[name] == stream]
        readers = [part for part in self._parts if stream in part.streams] if stream else [self.loss]
        return frozenset().union(*(part.needs for part in (*terms, *readers)))

    def branch_of(self, stream: str | None) -> int | None:
        """The branch of the network that the batches of a stream take, or the stage's own (None); None: all."""
        return self.loss.branches.get(stream)

    def check_epochs(self, epochs: int) -> None:
        """Refuses settings of losses that a stage of `epochs` epochs has no use for; see `Loss.check_epochs`.

        Raises:
            ConfigError: naming the setting.
        """
        for path, part in self.by_key.items():
            with within(path):
                part.check_epochs(epochs)

    def before_epoch(self, epoch: int, max_epochs: int, survey: Survey) -> None:
        """Lets those parts survey a split that do so before an epoch; see `Loss.before_epoch`."""
        for part in self._parts:
            if part.surveys:
                part.before_epoch(epoch, max_epochs, survey)

    def end_epoch(self) -> None:
        """Tells every part that an epoch has ended."""
        for part in self._parts:
            part.end_epoch()

    def forward(self, output: ModelOutput, target: Tensor, context: BatchContext = WHOLE_BATCH) -> Tensor:
        """The scalar objective of a batch with the labels `target` (n,); `output` is of the rows `context.part`."""
        return self.of_mixture(output, Mixture(target, target, 1.0), context)

    def of_mixture(self, output: ModelOutput, targets: Mixture, context: BatchContext = WHOLE_BATCH) -> Tensor:
        """The scalar objective of a batch that may be mixed; a term that reads no labels is computed once."""
        class_weights = self.reweighting.weights_in(context.epoch, context.max_epochs)

        def of_labels(output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
            total: Tensor = self.loss(output, target, self.reweighting.weighted(context, class_weights))
            if self.loss_weight != 1.0:
                total = self.loss_weight * total
            for name, term in self.terms.items():
                if term.reads_labels and self.stream_of[name] is None:
                    total = total + self.weights[name] * term(output, target, context)
            return total

        total = targets.objective(of_labels, output, context)
        if targets.sample_weights is not None:
            context = replace(context, sample_weights=context.weighted(targets.sample_weights[context.part]))
        for name, term in self.terms.items():
            if not term.reads_labels and self.stream_of[name] is None:
                total = total + self.weights[name] * term(output, targets.labels[context.part], context)
        return total

    def of_stream(self, stream: str, context: BatchContext) -> Tensor | None:
        """The weighted sum of the terms of a stream, a scalar; None if it has none.

        Args:
            context: of the stream's batch, with that in its `streams`.
        """
        batch, total = context.streams[stream], None
        for name, term in self.terms.items():
            if self.stream_of[name] == stream:
                value = self.weights[name] * term(batch.output, batch.labels, context)
                total = value if total is None else total + value
        return total


def _check(part: Loss) -> None:
    """Refuses what no stage would train, and names that are not in a collection of names."""
    if learned := [name for name, _ in part.named_parameters()]:
        raise ConfigError(
            f"{type(part).__name__} has parameters ({', '.join(learned)}), and no optimizer trains those of a loss: "
            "keep them in a module of the stage, whose output the loss reads, or in buffers"
        )
    require_names(part, "needs", "teachers", "surveys", "streams")
