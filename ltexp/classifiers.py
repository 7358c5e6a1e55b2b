"""The classifiers that `conf/classifier/` names: `ltexp.classifiers.Cosine(64, 100)` takes features (B, 64) to logits.

Each is a `ltexp.models.classifier.Classifier`, built as `Classifier(feature_dim, num_classes, **settings)`.
"""

from typing import Any

from ltexp.models.classifier import Classifier
from ltexp.parts import classes, find

__all__ = ["Classifier"]


def __getattr__(name: str) -> Any:
    return find(__name__, "classifier", name)


def __dir__() -> list[str]:
    return [*__all__, *classes("classifier")]
