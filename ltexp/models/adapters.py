"""Small modules that learn inside a frozen vision transformer, by hooks on its parts (`ltexp.models.tuning`)."""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    """Up(ReLU(Down(LayerNorm(x)))), 0 at the start; Down is Kaiming-normal with a = sqrt 5 (LIFT's code).

    Args:
        dim: D, of the tokens.
        width: of what lies between.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)
        nn.init.kaiming_normal_(self.down.weight, a=math.sqrt(5))
        for start in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(start)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) of tokens (B, N, D)."""
        return cast(Tensor, self.up(F.relu(self.down(self.norm(tokens)))))


class Adapter(Bottleneck):
    """Adds the bottleneck of the MLP's output to it (Houlsby et al., ICML 2019).

    Args:
        block: of a vision transformer of timm.
        width: of the bottleneck.
    """

    def __init__(self, block: Any, width: int) -> None:
        super().__init__(block.norm2.normalized_shape[0], width)
        block.mlp.register_forward_hook(self._add)

    def _add(self, _: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output + cast(Tensor, self(output))


class ParallelAdapter(Bottleneck):
    """Adds s times the bottleneck of the MLP's input, before its norm, to the MLP's output (AdaptFormer).

    s is learned and starts at 1 (LIFT's code). A layer scale of the block is the MLP's alone.

    Args:
        block, width: see `Adapter`.
    """

    def __init__(self, block: Any, width: int) -> None:
        super().__init__(block.norm2.normalized_shape[0], width)
        self.scale = nn.Parameter(torch.ones(1))
        self._read: Tensor | None = None
        block.norm2.register_forward_pre_hook(self._keep)
        block.ls2.register_forward_hook(self._add)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._read = inputs[0]

    def _add(self, _: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        read, self._read = self._read, None
        assert read is not None
        return output + self.scale * cast(Tensor, self(read))


class LowRank(nn.Module):
    """Adds x A B / r to queries and to values; B is 0 at the start, A Kaiming-uniform with a = sqrt 5 (LIFT's code).

    Args:
        block: of a vision transformer of timm.
        rank: r.
    """

    def __init__(self, block: Any, rank: int) -> None:
        super().__init__()
        dim, self.rank = block.attn.qkv.in_features, rank
        self.query_down, self.value_down = (nn.Parameter(torch.empty(rank, dim)) for _ in range(2))
        self.query_up, self.value_up = (nn.Parameter(torch.zeros(dim, rank)) for _ in range(2))
        for start in (self.query_down, self.value_down):
            nn.init.kaiming_uniform_(start, a=math.sqrt(5))
        self._hook = block.attn.qkv.register_forward_hook(self._add)

    def _add(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        tokens = inputs[0]
        query = F.linear(F.linear(tokens, self.query_down), self.query_up)
        value = F.linear(F.linear(tokens, self.value_down), self.value_up)
        return output + torch.cat([query, torch.zeros_like(query), value], -1) / self.rank

    @torch.no_grad()
    def merge(self, block: Any) -> None:
        """Adds its product to the weights of `block` and goes out of its way: the same answers, at no cost."""
        weight, dim = block.attn.qkv.weight, self.query_up.shape[0]
        weight[:dim] += self.query_up @ self.query_down / self.rank
        weight[-dim:] += self.value_up @ self.value_down / self.rank
        self._hook.remove()


class Prompts(nn.Module):
    """Learnable tokens between the class token and the patches, from the input of one block to the output of another.

    They start uniform in +-sqrt(6 / (3 patch area + D)) (Jia et al., ECCV 2022, their code).

    Args:
        first, last: the blocks.
        count: how many tokens.
        dim: D.
        patch_area: pixels of a patch.
        prefix: how many tokens of the network stand before the patches.
    """

    def __init__(self, first: nn.Module, last: nn.Module, count: int, dim: int, patch_area: int, prefix: int) -> None:
        super().__init__()
        bound, self.prefix = math.sqrt(6 / (3 * patch_area + dim)), prefix
        self.tokens = nn.Parameter(torch.empty(count, dim).uniform_(-bound, bound))
        first.register_forward_pre_hook(self._insert)
        last.register_forward_hook(self._drop)

    def _insert(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens, *rest = inputs
        own = self.tokens.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        return torch.cat([tokens[:, : self.prefix], own, tokens[:, self.prefix :]], 1), *rest

    def _drop(self, _: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, : self.prefix], output[:, self.prefix + len(self.tokens) :]], 1)
