"""Chooses among classifiers that need no training, such as one for each tau, on images that nothing was trained on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ltexp.analysis.restored import LoadedStage
from ltexp.errors import ConfigError
from ltexp.evaluation.further import of_recalls
from ltexp.evaluation.metrics import class_accuracies
from ltexp.training.predict import autocast, evaluating, extract_features

CHUNK = 8192  # samples whose logits are held at a time


def choose(restored: LoadedStage, nodes: Sequence[dict[str, Any]]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Gives `restored` the classifier with the highest balanced accuracy on the held-out images.

    They are the dataset's validation split or, as long-tailed as the training set, `dataset.validation.fraction` of it:
    so each class counts the same, as in a balanced test set. Of equal ones the first is taken.

    Args:
        restored: the stage, with the classifier of the first node.
        nodes: of classifiers, equal but for the keys that are chosen; none for the stage's own.

    Returns:
        The node that is chosen, and, where there are several, `images` held out, `classes` among them, and of all that
        were `tried` their values and their `balanced` accuracy in percent.

    Raises:
        ConfigError: if there are several and the run holds no images out.
    """
    if len(nodes) < 2:
        return next(iter(nodes), None), {}
    keys = [key for key in nodes[0] if any(node[key] != nodes[0][key] for node in nodes)]
    held_out = restored.session.data.validation
    if held_out is None:
        raise ConfigError(
            f"several values of {' and '.join(keys)} are chosen among on held-out images, and this run has none: train "
            "with dataset.validation.fraction=0.1, or give one value"
        )
    precision = restored.session.config.trainer.precision
    _, features, labels = extract_features(restored.model, restored.session.evaluation_loader(held_out), precision)
    tried = []
    for node in nodes:
        restored.take_over(node)
        recalls = class_accuracies(predicted(restored, features, precision), labels, restored.session.data.num_classes)
        tried.append({key: node[key] for key in keys} | {"balanced": of_recalls(recalls)["balanced"]})
    best = int(np.argmax([one["balanced"] for one in tried]))
    restored.take_over(nodes[best])
    classes = len(np.unique(labels))
    chosen = {key: nodes[best][key] for key in keys}
    return nodes[best], {"chosen": chosen, "images": len(labels), "classes": classes, "tried": tried}


def predicted(restored: LoadedStage, features: npt.NDArray[np.float32], precision: str) -> npt.NDArray[np.int64]:
    """The class that the model predicts for each of the features (N, ...), by logits in float32 as everywhere."""
    device = restored.session.device
    with evaluating(restored.model), autocast(precision, device):
        chunks = [
            restored.model.classify(torch.from_numpy(features[start : start + CHUNK]).to(device)).logits.argmax(1).cpu()
            for start in range(0, len(features), CHUNK)
        ]
    return torch.cat(chunks).numpy()


def choice_text(choice: dict[str, Any]) -> str:
    """A line on what `choose` has chosen."""
    values, tried = choice["chosen"], choice["tried"]
    best = max(one["balanced"] for one in tried)
    worst = min(one["balanced"] for one in tried)
    shown = " ".join(f"{key}={value}" for key, value in values.items())
    return (
        f"{shown}: the best of {len(tried)} on {choice['images']:,} held-out images of {choice['classes']} classes "
        f"(balanced accuracy {best:.2f}, the lowest {worst:.2f})"
    )
