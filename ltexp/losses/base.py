"""What every loss has in common: class counts, progress of training, scale, and the reduction over a batch.

A new loss is usually one method, `per_sample`, or `per_sample_in_context` where it depends on the progress of training.
A loss with a term that is not a sum over samples overrides `forward`.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ltexp.config.require import require
from ltexp.counts import checked_class_counts
from ltexp.distributed import active, sum_over_ranks
from ltexp.errors import ConfigError
from ltexp.losses.context import BatchContext, Survey
from ltexp.outputs import FIELDS, ModelOutput

INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})  # what labels may be
# what of an output has rows and columns as its logits have, (..., B, C)
OF_CLASSES = frozenset(
    {"expert_logits", "teacher_logits", "auxiliary_logits", "view_logits", "balanced_logits", "logit_spread"}
)


class Loss(nn.Module):
    """Base of the losses: `loss(output, target)` is a scalar, computed in float32 whatever comes in.

    `output` is a `ModelOutput`, or logits (B, C) alone where the loss reads no more. What else a loss may know of its
    batch is a third argument, a `BatchContext`. Without it a loss takes what it is given for the whole batch, at the
    progress that `set_progress` told last.

    Args:
        class_counts: (C,) int64, training images of each class, in any order of size.
        scale: multiplies the logits before anything else. 1 for linear classifiers; for cosine classifiers, whose
            logits lie in [-1, 1], the temperature that the field calls s (often 30 on CIFAR). None: that of the
            model's output (`ModelOutput.logit_scale`), for a term beside a loss that has one.

    Attributes:
        classifier: the kind of classifier the loss is defined for, "any" or "cosine" (plain cosines as logits).
        needs: what the loss reads of the model's output beside logits and features: fields of `ModelOutput` such as
            "teacher_logits", or names in its `extra`; and "features" if the loss takes one a sample, which experts do
            not have. A stage that cannot fill them is refused before any data is read.
        teachers: the names of those of the stage's `teachers` whose logits it reads (`ModelOutput.teachers_logits`).
        surveys: the splits, `train` or `validation`, that it surveys before an epoch (`before_epoch`).
        streams: the stage's further batches that the loss reads (`BatchContext.streams`).
        branches: the one of the network's branches that a batch takes in training: the stage's own (None), and each of
            `streams` by name. Empty: every batch takes all.
        fewest_views: the views of each image that it needs.
        compares_rows: whether it compares the images of a batch with each other, so that it needs all at once.
        reads_labels: whether the loss depends on the labels; False for a term that a mixed batch, whose loss is of two
            labels, need not compute twice.
        takes_class_weights: whether a stage may weight it by class (deferred re-weighting); False for a loss whose
            `forward` has no use for that.
        class_weights: (C,) float32 summing to C when the loss weights its samples by class, else None.

    Raises:
        ConfigError: unusable class counts, or a scale that is not positive.
    """

    classifier: ClassVar[str] = "any"
    needs: ClassVar[frozenset[str]] = frozenset()
    teachers: Collection[str] = ()
    surveys: Collection[str] = ()
    streams: ClassVar[frozenset[str]] = frozenset()
    branches: ClassVar[Mapping[str | None, int]] = {}
    fewest_views: int = 1
    compares_rows: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = True
    takes_class_weights: ClassVar[bool] = True

    class_counts: Tensor
    class_weights: Tensor | None

    def __init__(self, class_counts: Tensor, scale: float | None = 1.0) -> None:
        super().__init__()
        require(scale is None or scale > 0, "scale", scale, "a number above 0")
        # Not persistent: they follow from the data, so a checkpoint does not carry a second truth.
        self.register_buffer("class_counts", checked_class_counts(class_counts), persistent=False)
        self.register_buffer("class_weights", None, persistent=False)
        self._classes = len(class_counts)  # a module's own search for a buffer takes as long as all of a call's checks
        self.scale, self.takes_scale_of_output = 1.0 if scale is None else scale, scale is None
        self._progress = BatchContext()

    @property
    def num_classes(self) -> int:
        """C."""
        return self._classes

    @property
    def logit_scale(self) -> float:
        """Factor that turns the classifier's logits into those whose softmax is the prediction."""
        return self.scale

    def check_epochs(self, epochs: int) -> None:
        """Refuses settings that name a point of time which a stage of `epochs` epochs, 1 or more, does not reach.

        Raises:
            ConfigError: naming the setting.
        """

    def check_data(self, validation: Tensor | None) -> None:
        """Refuses the data of a stage, whose class counts it was built with, before anything is trained.

        Args:
            validation: int64 (C,), the validation samples of each class. None: there are none.

        Raises:
            ConfigError: saying what to change.
        """

    def before_epoch(self, epoch: int, max_epochs: int, survey: Survey) -> None:
        """Called before the first step of every epoch, on every process, where it `surveys` a split.

        A resumed stage calls it with its weights of that moment: what is learned of a survey is in no checkpoint.

        Args:
            epoch: from 0.
            max_epochs: epochs of the stage.
            survey: of the model as it is then, and of its teachers.
        """

    def set_progress(self, epoch: int, max_epochs: int, step: int = 0) -> None:
        """Tell where training is, for curricula, deferred schedules and keyed draws of calls without a context.

        Args:
            epoch: the current epoch, from 0.
            max_epochs: epochs of the stage.
            step: the current step within the epoch, from 0.
        """
        self._progress = BatchContext(epoch=epoch, max_epochs=max_epochs, step=step)

    def learned_prior(self, shares: Tensor) -> Tensor:
        """The class shares (C,) that a softmax over the trained logits is for; they sum to 1.

        Training that shows class c with the share p_c, weighs it by w_c and adds a_c to its logit leaves logits for
        shares proportional to p_c w_c exp(-a_c). A loss that adds something overrides this.

        Args:
            shares: (C,) float64 p.
        """
        weights = self.class_weights
        return normalized_shares(shares if weights is None else shares * weights.to(shares))

    def end_epoch(self) -> None:
        """Called after the last step of every epoch, on every process, for a loss that learns from one to the next."""

    def logits(self, output: ModelOutput) -> Tensor:
        """(B, C) float32 logits of `output`, scaled."""
        logits = output.logits.float()
        scale = output.logit_scale if self.takes_scale_of_output else self.scale
        return logits if scale == 1.0 else scale * logits

    def expert_logits(self, output: ModelOutput) -> Tensor:
        """(E, B, C) float32 logits of the experts of `output`, scaled; of a loss that names them in its `needs`."""
        assert output.expert_logits is not None
        return self.scale * output.expert_logits.float()

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        """(B,) float32 loss of each sample, without weights; `target` is (B,) int64."""
        raise ConfigError(f"{type(self).__name__} says no loss: write per_sample, per_sample_in_context or forward")

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        """`per_sample` of a loss that also depends on the progress of training, or makes draws."""
        return self.per_sample(output, target)

    def __call__(self, output: ModelOutput | Tensor, target: Tensor, context: BatchContext | None = None) -> Tensor:
        """The scalar loss of a model's output, or of its logits (B, C) alone; see `forward`.

        Args:
            output: its logits are of any floating-point type.
            target: (B,) labels from 0 to C - 1, of any integer type.
            context: see `BatchContext`.

        Raises:
            ConfigError: an output or a context without what else the loss reads; logits or labels of another kind or
                shape. What the labels are is not looked at: on a GPU the host would wait for it.
        """
        if missing := self.streams.difference(() if context is None else context.streams):
            own = f"{type(self).__name__} reads more than logits"
            raise ConfigError(f"{own}: the streams {', '.join(sorted(missing))}, which a stage of ltexp makes")
        if isinstance(output, Tensor):
            output = ModelOutput(output)
        target = self._checked(output, target)
        loss: Tensor = super().__call__(output, target, context)
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            raise self._other_shape("forward", loss, "a scalar tensor")
        return loss

    def _checked(self, output: ModelOutput, target: Tensor) -> Tensor:
        """`target` as int64, once logits and labels are sure to be of kinds and shapes that go together."""
        if not isinstance(output, ModelOutput):
            raise self._not_taken("output", output, "logits, a float tensor (B, C), or ltexp.ModelOutput(logits, ...)")
        logits, classes = output.logits, self._classes
        if not (isinstance(logits, Tensor) and logits.is_floating_point() and logits.shape[1:] == (classes,)):
            raise self._not_taken("logits", logits, f"a float tensor (B, {classes}), a column for each of class_counts")
        for name in self.needs:
            value = output.read(name)
            if value is None and name != "class_biases":  # None of a classifier without them
                raise self._reads_more()
            if name in OF_CLASSES and isinstance(value, Tensor) and value.shape[-2:] != logits.shape:
                raise self._not_taken(name, value, f"the last two dimensions to be {tuple(logits.shape)}, as of logits")
        if not (isinstance(target, Tensor) and target.dtype in INTEGERS and target.shape == logits.shape[:1]):
            raise self._not_taken("labels", target, f"an integer tensor ({len(logits)},), one for each row of logits")
        return target.long()  # itself, if it is int64

    def _reads_more(self) -> ConfigError:
        fields = [f"{name}=..." for name in sorted(self.needs & FIELDS)]
        extra = ", ".join(f"'{name}': ..." for name in sorted(self.needs - FIELDS))
        fields += [f"extra={{{extra}}}"] if extra else []
        own = f"{type(self).__name__} reads more than logits"
        return ConfigError(f"{own}: give it ltexp.ModelOutput(logits, {', '.join(fields)})")

    def _not_taken(self, what: str, given: object, expected: str) -> ConfigError:
        shape = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        return ConfigError(f"{type(self).__name__}: {what} of {shape}: expected {expected}")

    def forward(self, output: ModelOutput, target: Tensor, context: BatchContext | None = None) -> Tensor:
        """The scalar loss of a batch: the mean over samples, weighted if there are weights of classes or samples."""
        context = self.known(context)
        return self.reduce(self.per_sample_in_context(output, target, context), target, context)

    def known(self, context: BatchContext | None) -> BatchContext:
        """The context of a call: the one given, or one of the last progress told, calls since then counted."""
        if context is None:
            context = self._progress
            self._progress = replace(context, call=context.call + 1)
        return context

    def weights_by_class(self, context: BatchContext) -> Tensor | None:
        """(C,) weights that hold: the stage's, or the loss's own, or None."""
        return self.class_weights if context.class_weights is None else context.class_weights

    def reduce(self, losses: Tensor, target: Tensor, context: BatchContext) -> Tensor:
        """The mean of (B,) losses times sample weights, weighted by class over the mean weight of the global batch.

        Where the context does not divide by weights, it is the mean of the weighted losses.
        """
        if not isinstance(losses, Tensor) or losses.shape != target.shape[:1]:
            raise self._other_shape("per_sample", losses, f"a loss for each of the {len(target)} samples")
        weights = self.weights_by_class(context)
        if weights is not None and not context.divides_by_weights:
            return (losses * context.weighted(weights[target])).mean()
        losses = context.weighted(losses)
        if weights is None:
            return losses.mean()
        whole = None if context.labels is None else weights[context.labels]
        return weighted_mean(losses, weights[target], context.share, whole)

    def _other_shape(self, method: str, given: object, expected: str) -> ConfigError:
        shape = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
        return ConfigError(f"{type(self).__name__}.{method} gave {shape}: expected {expected}")


def weighted_mean(
    per_sample: Tensor, weight: Tensor, share: float | None = None, whole: Tensor | None = None
) -> Tensor:
    """mean(weight * loss) over the mean weight of the global batch: a weighted mean that two processes share.

    On one process this is sum(w * l) / sum(w), the weighted mean of the field's code. On several, the numerator is
    this process's and the denominator everybody's, so the mean over processes, each counted by its share of the rows,
    is again sum(w * l) / sum(w) of the whole batch. An unweighted mean needs no exchange.

    Args:
        per_sample: (n,) losses of this process's rows.
        weight: (n,) non-negative weights of the same rows.
        share: as `BatchContext.share`; it must be given where a process without rows holds a stand-in row (share 0).
        whole: the weights of all of this process's rows, of which the rows here are a part. None: they are all.
    """
    whole = weight if whole is None else whole
    total = whole.detach().mean()
    if active():
        rows = float(len(whole)) if share is None else share
        both = sum_over_ranks(torch.stack([total * rows, torch.full_like(total, rows)]))
        total = both[0] / both[1]
    # A batch whose weights are all zero has loss 0, not 0 / 0.
    return (weight * per_sample).mean() / total.clamp_min(torch.finfo(total.dtype).tiny)


def normalized_weights(weights: Tensor) -> Tensor:
    """(C,) positive `weights` rescaled to sum to C, as float32."""
    return (weights * (len(weights) / weights.sum())).float()


def normalized_shares(weights: Tensor) -> Tensor:
    """(C,) float64: weights (C,) of 0 or more as shares that sum to 1."""
    return weights.double() / weights.double().sum()
