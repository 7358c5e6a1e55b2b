"""Dropout whose draws are keyed by the step, so that a resumed run drops what the uninterrupted one would have."""

import torch
from torch import Tensor, nn

from ltexp.config.require import require
from ltexp.distributed import rank, world_size
from ltexp.randomness import generator


class KeyedDropout(nn.Module):
    """Dropout of features (b, D): in training each entry is 0 with probability `rate`, the others grow by 1/(1 - rate).

    The mask is drawn for the global batch and each process takes its rows, so it is the same on any number of them.
    Of a batch of several views each has a mask of its own, the first that which it would have alone.

    Args:
        rate: the share of features that is dropped, in [0, 1).

    Raises:
        ConfigError: for another rate.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        require(0 <= rate < 1, "dropout", rate, "a number of 0 or more and below 1")
        self.rate = rate
        self.key, self.size, self.part, self.views = (0, 0, 0), 0, slice(None), 1

    def set_step(self, seed: int, epoch: int, step: int, size: int, part: slice = slice(None), views: int = 1) -> None:
        """Says which draws come next.

        Args:
            seed, epoch, step: the key.
            size: rows of the global batch.
            part: which of this process's rows come next.
            views: how many versions of each row come, one after the other.
        """
        self.key, self.size, self.part, self.views = (seed, epoch, step), size, part, views

    def forward(self, features: Tensor) -> Tensor:
        """The features, view after view; in eval mode as they are."""
        if not self.training or self.rate == 0:
            return features
        own = len(features) // self.views
        rows = max(self.size, own)
        draws = generator("dropout", *self.key, device=features.device)
        masks = []
        for _ in range(self.views):
            kept = torch.rand(rows, features.shape[1], generator=draws, device=features.device) >= self.rate
            # a process without rows holds the batch's last row as a stand-in
            mine = kept[rank() :: world_size()] if rank() < rows else kept[-1:]
            masks.append(mine[self.part][:own])
        return features * (masks[0] if self.views == 1 else torch.cat(masks)) / (1 - self.rate)
