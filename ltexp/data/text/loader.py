"""Batches of texts."""

from typing import Any

import torch
from torch import Tensor

from ltexp.data.loader import Loader
from ltexp.data.text.dataset import TokenSplit


class TokenLoader(Loader[TokenSplit]):
    """Batches of rows of word numbers, int64 (b, L), which lie on the training device.

    Args:
        split: its tokens go to the device once, as int32.
        settings: those of `Loader`.
    """

    samples = "texts"
    replayable = True

    def __init__(self, split: TokenSplit, **settings: Any) -> None:
        super().__init__(split, **settings)
        self._tokens = torch.from_numpy(split.tokens).to(self.device)

    def _inputs(self, index: Tensor, draws: dict[str, Tensor], view: int) -> Tensor:
        return self._tokens.index_select(0, index).long()
