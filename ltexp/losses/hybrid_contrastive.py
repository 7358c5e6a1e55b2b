"""From comparing samples to classifying them (Hybrid-SC, Wang et al., CVPR 2021)."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.losses.supervised_contrastive import SupervisedContrastive
from ltexp.outputs import ModelOutput

BALANCED = "balanced"  # the stream that is classified


class HybridContrastive(Loss):
    """α contrastive + (1 - α) cross-entropy, α = 1 - (e / E)² in epoch e, from 0, of E.

    The stage's own batch, in two views, is compared; the stream `balanced` is classified.

    Args:
        class_counts: (C,) int64.
        temperature: τ of the contrastive loss. Default 0.1.

    Raises:
        ConfigError: a temperature that is not positive.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"projections"})
    streams = frozenset({BALANCED})
    takes_class_weights = False
    compares_rows = True

    def __init__(self, class_counts: Tensor, temperature: float = 0.1) -> None:
        super().__init__(class_counts)
        self.contrastive = SupervisedContrastive(class_counts, temperature)

    def forward(self, output: ModelOutput, target: Tensor, context: BatchContext | None = None) -> Tensor:
        """The scalar loss of a batch; sample weights are of the batch that is compared."""
        context = self.known(context)
        compared = self.contrastive.per_sample_in_context(output, target, context)
        stream = context.streams[BALANCED]
        classified = F.cross_entropy(self.logits(stream.output), stream.labels)
        weight = 1.0 - (context.epoch / context.max_epochs) ** 2
        return weight * context.weighted(compared).mean() + (1.0 - weight) * classified
