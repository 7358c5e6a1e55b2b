"""Visual prompt tuning (Jia et al., ECCV 2022): a frozen vision transformer and a few learnable tokens."""

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from ltexp.config.require import require
from ltexp.models.backbone import Backbone


class PromptedTransformer(Backbone):
    """torchvision's vision transformer, frozen, with learnable prompts among the first layer's tokens (VPT-shallow).

    Args:
        image_size, patch_size: pixels of a side.
        layers, heads, hidden_dim, mlp_dim: of the transformer.
        prompts: how many. Default 8.
        weights: file of the transformer's state; null: random.

    Raises:
        ConfigError: a side that is no multiple of the patch's, or fewer than one prompt.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        layers: int = 12,
        heads: int = 12,
        hidden_dim: int = 768,
        mlp_dim: int = 3072,
        prompts: int = 8,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        require(image_size % patch_size == 0, "image_size", image_size, f"a multiple of patch_size={patch_size}")
        require(prompts >= 1, "prompts", prompts, "1 or more")
        self.transformer = VisionTransformer(image_size, patch_size, layers, heads, hidden_dim, mlp_dim)
        self.transformer.heads = nn.Identity()
        if weights is not None:
            self.transformer.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        bound = (6 / (3 * patch_size**2 + hidden_dim)) ** 0.5  # the authors' code
        self.prompts = nn.Parameter(torch.empty(prompts, hidden_dim).uniform_(-bound, bound))
        self.feature_dim, self.map_channels = hidden_dim, [hidden_dim]
        self.image_size, self.side = image_size, image_size // patch_size

    def forward_maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The class token (B, D) after the last layer, and the patches' tokens (B, D, h, w)."""
        encoder = self.transformer.encoder
        patches, first = self.transformer._process_input(images), self.transformer.class_token
        tokens = torch.cat([first.expand(len(images), -1, -1), patches], 1) + encoder.pos_embedding
        tokens = torch.cat([tokens, self.prompts.expand(len(images), -1, -1)], 1)
        tokens = encoder.ln(encoder.layers(tokens))
        maps = tokens[:, 1 : 1 + self.side**2].transpose(1, 2).unflatten(2, (self.side, self.side))
        return tokens[:, 0], [maps]

    def check(self, inputs: Tensor) -> None:
        """Refuses images of another size than the transformer's positions are for."""
        for side in inputs.shape[2:]:
            require(side == self.image_size, "image_size", self.image_size, f"{side}, as the images have it")

    def frozen_parts(self) -> list[nn.Module]:
        return [self.transformer]
