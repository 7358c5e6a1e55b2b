"""Networks of several last blocks over one trunk, as BBN's of two (Zhou et al., CVPR 2020)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ltexp.config.require import is_whole, require


def require_branches(branches: int, experts: int | None) -> None:
    """Refuses a number of branches that is none, or branches of experts.

    Raises:
        ConfigError: saying what is expected.
    """
    require(is_whole(branches, 1), "branches", branches, "a whole number of 1 or more")
    require(branches == 1 or experts is None, "branches", branches, "1 for a network of experts")


def last_blocks(branches: int, block: Callable[[], nn.Module]) -> nn.ModuleList:
    """The last block of each branch, which `block` makes anew for each."""
    return nn.ModuleList(block() for _ in range(branches))


def run_last_blocks(trunk: Tensor, blocks: nn.ModuleList, branch: int | None = None) -> tuple[Tensor, Tensor]:
    """Features (B, K D) and the map (B, K c, h, w) of K last blocks over the trunk's map, those of each after another.

    Of one branch alone the features are K times its own, and 0 in the places of the others. So a linear map of the
    features of all is the mean of what it gives for each branch: BBN's factor 2 in training and none at test.

    Args:
        trunk: (B, c', h', w').
        blocks: K of them.
        branch: the number of the only one that runs, from 0; None: all.
    """
    if branch is None:
        found = torch.cat([block(trunk) for block in blocks], dim=1)
        return found.mean((2, 3)), found
    own = blocks[branch](trunk)
    before, after = branch * own.shape[1], (len(blocks) - 1 - branch) * own.shape[1]
    features = nn.functional.pad(len(blocks) * own.mean((2, 3)), (before, after))
    return features, nn.functional.pad(own, (0, 0, 0, 0, before, after))
