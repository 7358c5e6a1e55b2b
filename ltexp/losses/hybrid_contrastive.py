"""From comparing samples to classifying them (Hybrid-SC, Wang et al., CVPR 2021)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ltexp.config.require import require
from ltexp.distributed import gather_batch, gather_with_gradient, own_rows
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.outputs import ModelOutput

BALANCED = "balanced"  # the stream that is classified


def supervised_contrastive(projections: Tensor, target: Tensor, temperature: float, size: int) -> Tensor:
    """(B,) the supervised contrastive loss of each sample, the mean over its versions (Khosla et al., 2020, L_out).

    -1 / |P| sum_{j in P} log( exp(s_j / τ) / sum_{k != i} exp(s_k / τ) ), P the other rows of the anchor's class.

    Args:
        projections: (V, B, d) unit rows of this process's samples; all processes' are compared.
        target: (B,) int64.
        temperature: τ.
        size: rows of the global batch.
    """
    views = len(projections)
    rows = gather_with_gradient(projections.transpose(0, 1), size)
    everything, labels = rows.transpose(0, 1).flatten(0, 1), gather_batch(target, size).repeat(views)
    similarities = projections.flatten(0, 1) @ everything.T / temperature
    # an anchor's own place among all: view by view, each with the global batch's rows
    place = (own_rows(size).to(target.device) + size * torch.arange(views, device=target.device)[:, None]).flatten()
    similarities = similarities.scatter(1, place[:, None], float("-inf"))
    positive = (target.repeat(views)[:, None] == labels).scatter(1, place[:, None], False)
    of_positives = similarities.log_softmax(1).masked_fill(~positive, 0.0).sum(1)
    return (-of_positives / positive.sum(1).clamp_min(1)).view(views, -1).mean(0)


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

    def __init__(self, class_counts: Tensor, temperature: float = 0.1) -> None:
        super().__init__(class_counts)
        require(temperature > 0, "temperature", temperature, "a number above 0")
        self.temperature = temperature

    def forward(self, output: ModelOutput, target: Tensor, context: BatchContext | None = None) -> Tensor:
        """The scalar loss of a batch; sample weights are of the batch that is compared."""
        context = self.known(context)
        size = len(target) if context.size is None else context.size
        compared = supervised_contrastive(output.extra["projections"].float(), target, self.temperature, size)
        stream = context.streams[BALANCED]
        classified = F.cross_entropy(self.logits(stream.output), stream.labels)
        weight = 1.0 - (context.epoch / context.max_epochs) ** 2
        return weight * context.weighted(compared).mean() + (1.0 - weight) * classified
