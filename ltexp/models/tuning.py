"""Ways of fine-tuning a frozen network by little: what is added to it, and which of its own parameters learn.

The choices of conf/fine_tuning/ name the classes here. Each gives modules that act through hooks, so that the network
keeps its names and every file of weights fits it. At its start each but the prompts changes nothing.
"""

from collections.abc import Callable
from typing import Any, cast

from torch import nn

from ltexp.config.require import is_whole, require
from ltexp.errors import ConfigError
from ltexp.models.adapters import Adapter, LowRank, ParallelAdapter, Prompts


class Tuning:
    """Freezes the whole network, so that the classifier alone learns; base of the others.

    A tuned network is in eval mode throughout, without dropout and drop-path (LIFT, Shi et al., ICML 2024, its code).
    """

    def attach(self, trunk: nn.Module) -> nn.Module:
        """What learns beside `trunk`, at work in it from then on; a checkpoint holds its state.

        Raises:
            ConfigError: for a network that it does not fit.
        """
        return nn.ModuleList()

    def learning(self, trunk: nn.Module) -> set[str]:
        """The names of those parameters of `trunk` that learn."""
        return set()


class BiasTuning(Tuning):
    """The biases learn (BitFit, Ben Zaken et al., ACL 2022)."""

    def learning(self, trunk: nn.Module) -> set[str]:
        """All whose last name is `bias`."""
        return {name for name, _ in trunk.named_parameters() if name.rpartition(".")[2] == "bias"}


class NormTuning(Tuning):
    """The weights and biases of the layer norms learn."""

    def learning(self, trunk: nn.Module) -> set[str]:
        """Those of every `nn.LayerNorm`."""
        norms = {name: module for name, module in trunk.named_modules() if isinstance(module, nn.LayerNorm)}
        if not norms:
            raise ConfigError("norm-tuning needs a network with layer norms: choose another fine_tuning", "tuning")
        return {f"{name}.{own}" for name, module in norms.items() for own, _ in module.named_parameters()}


class LastBlocks(Tuning):
    """The last blocks of a vision transformer learn, and the norm behind them.

    Args:
        blocks: how many. Default 1.

    Raises:
        ConfigError: for none, or more than the network has.
    """

    def __init__(self, blocks: int = 1) -> None:
        require(is_whole(blocks, 1), "blocks", blocks, "a whole number of 1 or more")
        self.blocks = blocks

    def learning(self, trunk: nn.Module) -> set[str]:
        """Those of the blocks and of the norms after all blocks."""
        depth = len(blocks_of(trunk))
        require(self.blocks <= depth, "tuning.blocks", self.blocks, f"at most {depth}, the network's blocks")
        own = ("norm.", "fc_norm.", *(f"blocks.{number}." for number in range(depth - self.blocks, depth)))
        return {name for name, _ in trunk.named_parameters() if name.startswith(own)}


class OfBlocks(Tuning):
    """Base of those that add a module to each block of a vision transformer.

    Args:
        width: of the module's narrow layer, or the rank of its matrices. Default 4. LIFT's code has
            2 ** floor(log2(C / (2 L))) for C classes and L blocks, at least 1: of ViT-B/16 4 for 100 classes, 8 for
            365, 32 for 1000, 256 for 8142.

    Raises:
        ConfigError: for a width below 1.
    """

    made: Callable[..., nn.Module]

    def __init__(self, width: int = 4) -> None:
        require(is_whole(width, 1), "width", width, "a whole number of 1 or more")
        self.width = width

    def attach(self, trunk: nn.Module) -> nn.Module:
        """One module a block."""
        return nn.ModuleList(type(self).made(block, self.width) for block in blocks_of(trunk))


class Lora(OfBlocks):
    """LoRA (Hu et al., ICLR 2022): low-rank matrices added to those of queries and values."""

    made = LowRank


class AdapterTuning(OfBlocks):
    """Adapter (Houlsby et al., ICML 2019): a narrow network after the MLP of each block."""

    made = Adapter


class AdaptFormer(OfBlocks):
    """AdaptFormer (Chen et al., NeurIPS 2022): a narrow network beside the MLP of each block."""

    made = ParallelAdapter


class PromptTuning(Tuning):
    """VPT (Jia et al., ECCV 2022): learnable tokens among those of the image.

    Args:
        prompts: how many. Default 10, as in LIFT's code.
        deep: whether each block has tokens of its own, dropped after it; else those of the first block go through all.

    Raises:
        ConfigError: for less than one.
    """

    def __init__(self, prompts: int = 10, deep: bool = False) -> None:
        require(is_whole(prompts, 1), "prompts", prompts, "a whole number of 1 or more")
        self.prompts, self.deep = prompts, deep

    def attach(self, trunk: nn.Module) -> nn.Module:
        """The tokens of each block, or of the first."""
        blocks = blocks_of(trunk)
        spans = [(block, block) for block in blocks] if self.deep else [(blocks[0], blocks[-1])]
        network = cast(Any, trunk)
        area, first = network.patch_embed.patch_size[0] * network.patch_embed.patch_size[1], network.num_prefix_tokens
        return nn.ModuleList(Prompts(start, end, self.prompts, network.embed_dim, area, first) for start, end in spans)


def blocks_of(trunk: nn.Module) -> list[nn.Module]:
    """The blocks of a vision transformer of timm.

    Raises:
        ConfigError: for another network, or one with blocks of another make.
    """
    from timm.models.vision_transformer import Block, VisionTransformer

    blocks = list(cast(Any, trunk).blocks) if isinstance(trunk, VisionTransformer) else []
    if not blocks or not all(isinstance(block, Block) and hasattr(block.attn, "qkv") for block in blocks):
        raise ConfigError(
            "this fine_tuning is for vision transformers such as vit_base_patch16_224, and the network is a "
            f"{type(trunk).__name__}: choose fine_tuning=frozen, bias or whole, or another backbone.name",
            "tuning",
        )
    return blocks
