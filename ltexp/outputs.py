"""What a model hands to a loss: one small dataclass, filled as far as the stage needs it."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class ModelOutput:
    """The output of one forward pass over a batch of B samples with C classes and features of width D.

    Attributes:
        logits: (B, C). Plain cosines when the classifier is a cosine classifier: the scale is the loss's.
        features: (B, D), what the classifier read.
        feature_maps: the backbone's maps, block by block, each (B, c, h, w), when a loss asked for them.
        expert_logits: (E, B, C) for a network of E experts.
        teacher_logits: (B, C) when the stage has a teacher; carries no gradient.
        teacher_features: (B, D), what the teacher's classifier read; likewise.
        auxiliary_logits: (B, C) of an auxiliary network.
        auxiliary_maps: the auxiliary network's maps, one for each of `feature_maps`.
    """

    logits: Tensor
    features: Tensor | None = None
    feature_maps: list[Tensor] | None = None
    expert_logits: Tensor | None = None
    teacher_logits: Tensor | None = None
    teacher_features: Tensor | None = None
    auxiliary_logits: Tensor | None = None
    auxiliary_maps: list[Tensor] | None = None
