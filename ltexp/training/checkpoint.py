"""A trained stage on disk: the states of its parts, the configs that build them, and what it was trained on."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltexp.config import StageConfig
from ltexp.config.build import build
from ltexp.errors import CheckpointError
from ltexp.files import atomic_write
from ltexp.models.checkpoint import kept_state, load_part
from ltexp.models.classifier import Classifier
from ltexp.models.foreign import read_tensors
from ltexp.models.model import Model
from ltexp.run_folder import CHECKPOINT

SCHEMA = 3
OLDER = (1, 2)  # of which 1 had neither class counts nor scale, and both knew of one module, "auxiliary"


@dataclass(frozen=True)
class Checkpoint:
    """What a stage's checkpoint file holds: plain containers and tensors only.

    Attributes:
        backbone, classifier: states by parameter name; a backbone may leave out what its file holds.
        backbone_config, classifier_config: the config nodes that build the two.
        num_classes: C.
        feature_dim: D, the width of what the classifier reads.
        class_counts: (C,) of the training set; None in an older file.
        logit_scale: what turns the classifier's logits into those of its softmax (the scale of a cosine loss); None in
            an older file.
        feature_power: what features are raised to before the classifier.
        modules: by name, `state` and the `config` node of each module of the stage.
    """

    backbone: dict[str, Tensor]
    classifier: dict[str, Tensor]
    backbone_config: dict[str, Any]
    classifier_config: dict[str, Any]
    num_classes: int
    feature_dim: int
    class_counts: list[int] | None = None
    logit_scale: float | None = None
    feature_power: float = 1.0
    modules: dict[str, dict[str, Any]] = field(default_factory=dict)

    def scale_for(self, classifier: Classifier) -> float:
        """The scale of the logits of a `classifier` that took over from this one and that no loss has trained.

        It is this one's. A classifier of another kind, such as distances to the means of cosines' features, has logits
        of its own, which no loss has scaled: 1. So has one that has taken the scale into its logits.
        """
        source = self.build_classifier()
        return source.trained_scale if classifier.kind == source.kind and not classifier.takes_scale else 1.0

    def build_classifier(self) -> Classifier:
        """The checkpoint's classifier, built and loaded."""
        classifier: Classifier = build(
            self.classifier_config, feature_dim=self.feature_dim, num_classes=self.num_classes
        )
        load_part(classifier, self.classifier, "the classifier of the stage before")
        classifier.trained_scale = 1.0 if self.logit_scale is None else self.logit_scale
        return classifier


def save(
    path: Path,
    model: Model,
    backbone_config: dict[str, Any],
    stage: StageConfig,
    class_counts: Sequence[int],
) -> None:
    """Writes the model's stage checkpoint in one step.

    Args:
        path: of the file.
        model: trained as `stage` says, on a backbone that `backbone_config` builds.
        class_counts: see `Checkpoint`.

    Raises:
        LtexpError: if the disk is full or the folder cannot be written.
    """
    content = {
        "schema": SCHEMA,
        "backbone": _on_cpu(kept_state(model.backbone)),
        "classifier": _on_cpu(model.classifier.state_dict()),
        "backbone_config": backbone_config,
        "classifier_config": stage.classifier,
        "num_classes": model.classifier.num_classes,
        "feature_dim": model.backbone.feature_dim,
        "class_counts": list(class_counts),
        "logit_scale": model.logit_scale,
        "feature_power": model.feature_power,
        "modules": {
            name: {"state": _on_cpu(module.state_dict()), "config": stage.modules[name]}
            for name, module in model.attached.items()
        },
    }
    # torch reports a full disk in words of its own; a plain write says what happened
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def read(path: Path) -> Checkpoint:
    """The stage checkpoint in the file `path`.

    Raises:
        CheckpointError: if it is missing, damaged, or not a stage's checkpoint.
    """
    return of_content(read_tensors(path), path)


def of_content(content: Any, path: Path) -> Checkpoint:
    """The stage checkpoint that the file `path` holds, given what was read from it.

    Raises:
        CheckpointError: if it is none.
    """
    if not isinstance(content, dict) or content.get("schema") not in (SCHEMA, *OLDER):
        raise CheckpointError(
            f"{path} is not a stage checkpoint of this version of ltexp (schema {SCHEMA}): give the folder of a "
            "finished run, or its stage's checkpoint.pt; weights of another program are for backbone.weights"
        )
    content.pop("schema")
    auxiliary, node = content.pop("auxiliary", None), content.pop("auxiliary_config", {})
    if auxiliary is not None:
        content["modules"] = {"auxiliary": {"state": auxiliary, "config": node}}
    known = {part.name: part.default is MISSING and part.default_factory is MISSING for part in fields(Checkpoint)}
    if content.keys() - known or {name for name, required in known.items() if required} - content.keys():
        raise CheckpointError(f"{path} lacks parts of a stage checkpoint: train the stage again")
    return Checkpoint(**content)


def locate(where: str, stage: str = "stage1") -> Path:
    """The checkpoint file that `where` means: the file itself, a stage's folder, or a run's folder (its `stage`).

    Raises:
        CheckpointError: if there is none.
    """
    path = Path(where).expanduser()
    for candidate in (path, path / CHECKPOINT, path / stage / CHECKPOINT):
        if candidate.is_file():
            return candidate
    raise CheckpointError(f"no checkpoint at {path}: give a checkpoint file, or the folder of a run that has {stage}/")


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}
