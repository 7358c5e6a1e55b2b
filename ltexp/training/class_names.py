"""Class names as text: what a classifier's prompts are, and the text features that lie beside a run."""

import json
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ltexp.config import StageConfig
from ltexp.config.require import within
from ltexp.distributed import rank
from ltexp.errors import ConfigError
from ltexp.models.backbone import Backbone
from ltexp.models.class_text import ClassText, Prompts
from ltexp.run_folder import TEXT_FEATURES
from ltexp.training.cache import checksum

if TYPE_CHECKING:
    from ltexp.training.session import Session


def prompts_of(prompts: Prompts, class_names: Sequence[str]) -> list[list[str]]:
    """The prompts of each class.

    Args:
        class_names: the dataset's.

    Raises:
        ConfigError: without a name for each class.
    """
    given = prompts.names
    if given is None and list(class_names) == [str(label) for label in range(len(class_names))]:
        raise ConfigError(
            "the dataset has no class names but their numbers: give one a class, such as [cat,dog]", "names"
        )
    if given is not None and len(given) != len(class_names):
        raise ConfigError(f"{len(given)} names for {len(class_names)} classes: give one a class", "names")
    return prompts.of(class_names if given is None else given)


def require_text(backbone: type[Backbone] | Backbone, node: Mapping[str, Any]) -> None:
    """Refuses a backbone of this config node under a classifier that reads text, if it has no text tower with weights.

    Raises:
        ConfigError: saying what to add.
    """
    if not backbone.reads_text:
        raise ConfigError(
            "the classifier reads class names, and the backbone has no text tower: add backbone=clip_vit, or choose "
            "another classifier"
        )
    if node.get("weights") is None:
        raise ConfigError("the classifier reads class names by random weights: set backbone.weights=FILE")


def fits_text(stage: StageConfig) -> bool:
    """Whether a classifier that reads text would read it in this stage: a fresh one, or one that is never trained."""
    return stage.checkpoint is None and (stage.init.classifier == "fresh" or stage.epochs == 0)


def check_class_names(session: "Session", name: str, stage: StageConfig) -> None:
    """Refuses, before anything is trained, a classifier that reads text where names are missing or too long.

    Raises:
        ConfigError: saying which.
    """
    if "templates" not in stage.classifier or not fits_text(stage):
        return
    model = session.fresh_model(name, stage, loads=True)
    if model.classifier.reads_text is None:
        return
    with within(f"{name}.classifier"):
        every = prompts_of(model.classifier.reads_text, session.data.class_names)
        model.backbone.check_prompts([prompt for own in every for prompt in own])


def kept_text(folder: Path, backbone: Backbone, node: Mapping[str, Any], prompts: Sequence[Sequence[str]]) -> ClassText:
    """The text features of a run's classes; computed once, and kept in its folder under what they are of.

    Args:
        folder: the run's.
        backbone: whose text tower reads.
        node: its config.
        prompts: of each class.
    """
    own = {"weights": checksum(Path(node["weights"]).expanduser()), "name": node["name"], "options": node["options"]}
    identity = sha256(json.dumps([own, prompts], sort_keys=True).encode()).hexdigest()
    path = folder / TEXT_FEATURES
    kept = torch.load(path, weights_only=True) if path.exists() else {}
    if kept.get("identity") != identity:
        text = backbone.class_text(prompts)
        kept = {"identity": identity, "directions": text.directions, "projection": text.projection, "scale": text.scale}
        if rank() == 0:
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            torch.save(kept, temporary)
            os.replace(temporary, path)
    return ClassText(kept["directions"], kept["projection"], kept["scale"])
