"""DisAlign's second-stage classifier (Zhang et al., "Distribution Alignment", CVPR 2021)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config.require import require_choice
from ltexp.models.classifier import Classifier, Kind, copy_map

FORMS = ("classification", "segmentation")


class DistributionAlignment(Classifier):
    """Logits (1 + σ s_c) z_c + σ t_c with z = W f + b of the previous stage, fixed, and σ = sigmoid(u · f + v).

    s, t, u and v are learned. s starts at 1 and t at 0, so that the logits start (1 + σ) times as large as z; u starts
    at 0.1 in all places and v as torch's layers do.

    Args:
        feature_dim: D.
        num_classes: C.
        bias: whether there is a b.
        form: "classification" (default; the authors' code for classifiers), or "segmentation", their other head and
            the paper's text: σ (s_c z_c + t_c) + (1 - σ) z_c, which starts at z.

    Raises:
        ConfigError: for an unknown form.
    """

    kind: Kind = "aligned"
    weight: Tensor
    bias: Tensor | None

    def __init__(self, feature_dim: int, num_classes: int, bias: bool = True, form: str = "classification") -> None:
        super().__init__(feature_dim, num_classes)
        require_choice("form", form, FORMS)
        self.form = form
        self.register_buffer("weight", torch.zeros(num_classes, feature_dim))
        self.register_buffer("bias", torch.zeros(num_classes) if bias else None)
        self.scale, self.shift = nn.Parameter(torch.ones(num_classes)), nn.Parameter(torch.zeros(num_classes))
        self.confidence = nn.Linear(feature_dim, 1)
        nn.init.constant_(self.confidence.weight, 0.1)

    @property
    def needs_source(self) -> bool:
        """True: W and b are the previous stage's."""
        return True

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        logits = F.linear(features, self.weight, self.bias)
        confidence = torch.sigmoid(self.confidence(features))
        kept = logits if self.form == "classification" else (1 - confidence) * logits
        return kept + confidence * (self.scale * logits + self.shift)

    @torch.no_grad()
    def start_from(self, source: Classifier) -> None:
        """Takes W and b of a linear `source`; see `Classifier.start_from`."""
        weight, bias = self._linear_source(source, bias=self.bias is not None)
        copy_map(self.weight, self.bias, weight, bias)
