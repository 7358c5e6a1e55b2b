"""What a loss may know of the batch that its output and labels are of, beside the two themselves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ltexp.distributed import rank, world_size
from ltexp.outputs import ModelOutput


@dataclass(frozen=True)
class StreamBatch:
    """A stage's further batch as a loss may read it.

    Attributes:
        output: the model's, of the rows of the current call.
        labels: int64, of the same rows.
    """

    output: ModelOutput
    labels: Tensor


@dataclass(frozen=True)
class BatchContext:
    """The batch of one call of a loss. The defaults mean: one process, the whole batch, nothing weighted.

    Attributes:
        seed: the stage's, for keyed draws.
        epoch: from 0.
        max_epochs: epochs of the stage.
        step: from 0 within the epoch.
        call: number of the call on this batch, from 0: a mixed batch has a call for each of its two labels.
        share: what this process's rows count for, their number over the mean number a process (`Batch.share`). None:
            every row that the loss is given counts.
        part: which of this process's rows the call holds; all of them unless gradients accumulate.
        labels: int64 (n,), the labels of all of this process's rows, of which the call's are that part. None: the
            call's are all.
        size: rows of the global batch. None: this process's are all.
        index: int64 (n,), the rows of the training split, or of what a stream shows, that all of this process's rows
            are; of a mixed batch its own images. None: not known.
        class_weights: (C,) weights that the stage gives its loss (deferred re-weighting), summing to C.
        divides_by_weights: whether a sum weighted by class is divided by the weights of the batch, or by its size.
        sample_weights: weights of the call's rows (B,), which multiply their losses before the mean. They may carry a
            gradient.
        again: whether the same step has seen this batch before, as the second pass of a sharpness-aware step; what
            counts samples over an epoch leaves it out.
        streams: the further batches of the stage that have gone through the model, by name.
    """

    seed: int = 0
    epoch: int = 0
    max_epochs: int = 1
    step: int = 0
    call: int = 0
    share: float | None = None
    part: slice = field(default_factory=partial(slice, None))
    labels: Tensor | None = None
    size: int | None = None
    index: Tensor | None = None
    class_weights: Tensor | None = None
    divides_by_weights: bool = True
    sample_weights: Tensor | None = None
    again: bool = False
    streams: Mapping[str, StreamBatch] = field(default_factory=dict)

    def drawn_size(self, rows: int) -> int:
        """How many rows a draw for the global batch has, of which the call holds `rows`."""
        own = rows if self.labels is None else len(self.labels)
        # share = own * processes / size; it is 0 for a stand-in row, whose draws do not matter
        return round(own * world_size() / self.share) if self.share else own * world_size()

    def drawn_here(self, drawn: Tensor) -> Tensor:
        """Of what was drawn for the global batch (`drawn_size`, ...) the rows that the call holds."""
        return drawn[rank() :: world_size()][self.part]

    def weighted(self, per_sample: Tensor) -> Tensor:
        """(B,) losses times the sample weights, where there are some."""
        return per_sample if self.sample_weights is None else per_sample * self.sample_weights

    @property
    def mean_sample_weight(self) -> Tensor | float:
        """What a summand counts for that is no sum over samples: the mean of the sample weights, or 1."""
        return 1.0 if self.sample_weights is None else torch.mean(self.sample_weights)


WHOLE_BATCH = BatchContext()


class Survey(Protocol):
    """Asks a model about every sample of one of the stage's splits."""

    def __call__(
        self, split: str, value: Callable[[ModelOutput, Tensor], Tensor], teacher: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """(values (N,), int64 labels (N,)) in the split's order, on the CPU and the same on every process.

        Args:
            split: `train`, not augmented, or `validation`.
            value: of an output in float32 and its labels (B,), one number for each sample, (B,).
            teacher: the one of the stage's `teachers` that answers. None: the stage's own model, in eval mode.
        """
