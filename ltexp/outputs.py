"""What a model hands to a loss: one small dataclass, filled as far as the stage needs it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
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
        teachers_logits: (B, C) of each of the stage's `teachers` by its name; likewise.
        auxiliary_logits: (B, C) of an auxiliary network.
        auxiliary_maps: the auxiliary network's maps, one for each of `feature_maps`.
        logit_scale: what turns the classifier's logits into those of its softmax (the scale of a cosine loss).
        extra: what else the stage's modules gave, by name; "view_features" (V, B, D) and "view_logits" (V, B, C) of a
            batch of several views, "class_vectors" (C, D) and "class_biases" (C,) of a linear classifier, and
            "classify", the classifier as a function of features.
    """

    logits: Tensor
    features: Tensor | None = None
    feature_maps: list[Tensor] | None = None
    expert_logits: Tensor | None = None
    teacher_logits: Tensor | None = None
    teacher_features: Tensor | None = None
    teachers_logits: dict[str, Tensor] | None = None
    auxiliary_logits: Tensor | None = None
    auxiliary_maps: list[Tensor] | None = None
    logit_scale: float = 1.0
    extra: dict[str, Any] = field(default_factory=dict)

    def give(self, name: str, value: Any) -> None:
        """Puts a value into the field of that name, or into `extra` where there is no such field."""
        if name in FIELDS:
            setattr(self, name, value)
        else:
            self.extra[name] = value

    def read(self, name: str) -> Any:
        """The value of a field or of an entry of `extra`; None where nothing gave it."""
        return getattr(self, name) if name in FIELDS else self.extra.get(name)


FIELDS = frozenset(
    {
        "logits",
        "features",
        "feature_maps",
        "expert_logits",
        "teacher_logits",
        "teacher_features",
        "teachers_logits",
        "auxiliary_logits",
        "auxiliary_maps",
    }
)


def in_float32(output: ModelOutput) -> ModelOutput:
    """The output with its tensors in float32: under autocast the network runs in half precision, losses do not.

    Lists of maps stay as they are: a loss sums them up in float32 without a copy of them.
    """

    def lifted(values: Mapping[str, Any]) -> dict[str, Any]:
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return {k: v.float() for k, v in tensors.items() if v.is_floating_point() and v.dtype != torch.float32}

    fields, extra = lifted({name: getattr(output, name) for name in FIELDS}), lifted(output.extra)
    return replace(output, extra=output.extra | extra, **fields) if fields or extra else output
