"""TextCNN: one layer of convolutions over word vectors (Kim, EMNLP 2014)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config.require import require
from ltexp.models.backbone import Backbone
from ltexp.models.dropout import KeyedDropout
from ltexp.models.vectors import read_vectors

PADDING = 0  # the number that a text dataset fills its rows with
INITIAL_RANGE = 0.25  # words without a given vector start uniform in (-0.25, 0.25), as in Kim's code


class TextCNN(Backbone):
    """Words to features: convolutions over a few words each, ReLU, the largest value over the text, dropout.

    With experts, each of E has convolutions of its own over shared word vectors; features are (B, E, D).

    Every word vector is learned, the given ones too. Padding is a vector of zeros and stays so.

    Args:
        vocabulary: words by number, from the dataset; number 0 is padding.
        dim: the width of the word vectors. Default 300 (Kim; GloVe's common width).
        widths: the widths of the convolutions, in words. Default 3, 4, 5 (Kim).
        filters: the number of filters of each width. Default 100 (Kim); features are `len(widths) * filters` wide.
        dropout: rate on the features. Default 0.5 (Kim).
        vectors: path of a GloVe text file; null: all vectors start at random.
        experts: E, or None for an ordinary network.

    Raises:
        ConfigError: a setting out of range.
        DataError: a file of vectors that is missing, damaged or of another width.
    """

    reads: ClassVar[str] = "text"

    def __init__(
        self,
        vocabulary: Sequence[str],
        dim: int = 300,
        widths: Sequence[int] = (3, 4, 5),
        filters: int = 100,
        dropout: float = 0.5,
        vectors: str | None = None,
        experts: int | None = None,
    ) -> None:
        super().__init__()
        require(widths and min(widths) >= 1, "widths", list(widths), "whole numbers of 1 or more")
        require(filters >= 1, "filters", filters, "a whole number of 1 or more")
        require(dim >= 1, "dim", dim, "a whole number of 1 or more")
        require(experts is None or experts >= 1, "experts", experts, "a whole number of 1 or more, or null")
        self.feature_dim = len(widths) * filters
        self.map_channels = [filters * (experts or 1)] * len(widths)
        self.widths, self.experts = tuple(widths), experts
        self.embedding = nn.Embedding(len(vocabulary), dim, padding_idx=PADDING)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(dim, filters, width) for _ in range(experts or 1) for width in widths
        )
        self.dropout = KeyedDropout(dropout)
        with torch.no_grad():
            self.embedding.weight.uniform_(-INITIAL_RANGE, INITIAL_RANGE)
            self.embedding.weight[PADDING] = 0
            if vectors is not None:
                for number, vector in read_vectors(vectors, vocabulary, dim).items():
                    self.embedding.weight[number] = vector

    def forward_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (B, D), or (B, E, D), of word numbers (B, L), and each width's map (B, E filters, L', 1)."""
        short = max(self.widths) - images.shape[1]
        tokens = F.pad(images, (0, short), value=PADDING) if short > 0 else images
        words = self.embedding(tokens).transpose(1, 2)
        maps = [F.relu(convolution(words)) for convolution in self.convolutions]
        features = torch.cat([found.amax(2) for found in maps], dim=1)
        by_width = [torch.cat(maps[place :: len(self.widths)], dim=1) for place in range(len(self.widths))]
        features = self.dropout(features)
        if self.experts is not None:
            features = features.unflatten(1, (self.experts, self.feature_dim))
        return features, [found.unsqueeze(3) for found in by_width]
