"""Classifiers that read class names by the text tower of their backbone."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ltexp.models.class_text import TEMPLATES, ClassText, Prompts
from ltexp.models.classifier import Classifier, Cosine


class TextCosine(Cosine):
    """`Cosine` whose weight starts as each class's text feature, brought back to where the backbone's features are.

    Row c starts as t_c P^T of norm 1, for the text feature t_c and the projection P (D, E) of image features: LIFT's
    start (Shi et al., ICML 2024, its code).

    Args:
        templates, names: see `Prompts`.
        bias: a cosine has none, so only False is accepted.
    """

    def __init__(
        self,
        feature_dim: int,
        num_classes: int,
        templates: Sequence[str] = TEMPLATES,
        names: Sequence[str] | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__(feature_dim, num_classes, bias)
        self.reads_text = Prompts(templates, names)

    @torch.no_grad()
    def fit_text(self, text: ClassText) -> None:
        """Takes the rows."""
        self.weight.copy_(F.normalize(text.directions @ text.projection.T))


class ZeroShot(Classifier):
    """Logits are scaled cosines of an image's and each class's text feature: CLIP's (Radford et al., ICML 2021).

    Of a feature f and the projection P the cosine with t_c is f . (P t_c) / ||f P||, with ||f P||^2 = f P P^T f^T, so
    that nothing here has the width of the space where they meet. Until `fit_text` has run the logits are NaN.

    Args:
        templates, names: see `Prompts`.
    """

    kind = "normalized"
    weight: Tensor
    gram: Tensor
    scale: Tensor

    def __init__(
        self,
        feature_dim: int,
        num_classes: int,
        templates: Sequence[str] = TEMPLATES,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(feature_dim, num_classes)
        self.reads_text = Prompts(templates, names)
        self.register_buffer("weight", torch.full((num_classes, feature_dim), torch.nan))
        self.register_buffer("gram", torch.full((feature_dim, feature_dim), torch.nan))
        self.register_buffer("scale", torch.tensor(torch.nan))

    def learned_prior(self, shares: Tensor) -> Tensor:
        """Equal shares: a name knows nothing of its class's size."""
        return torch.full_like(shares, 1 / len(shares))

    def forward(self, features: Tensor) -> Tensor:
        """Scaled cosines (B, C), float32, of features (B, D)."""
        with torch.autocast(features.device.type, enabled=False):
            features = F.normalize(features.float())
            square = ((features @ self.gram) * features).sum(1, keepdim=True)
            return self.scale * F.linear(features, self.weight) * square.clamp_min(1e-12).rsqrt()

    @torch.no_grad()
    def linear_form(self) -> tuple[Tensor, Tensor | None]:
        """s P t_c (C, D); a sample's logits are its map of the feature, over the length of the projected feature."""
        return self.scale * self.weight, None

    def start_from(self, source: Classifier) -> None:
        """Nothing of `source` is kept, of whatever kind it is, but its shape must fit."""
        self._check_source(source, ["linear", "cosine", "distance", "normalized", "aligned"])

    @torch.no_grad()
    def fit_text(self, text: ClassText) -> None:
        """Takes the classes' text features."""
        self.weight.copy_(text.directions @ text.projection.T)
        self.gram.copy_(text.projection @ text.projection.T)
        self.scale.fill_(text.scale)
