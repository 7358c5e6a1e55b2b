"""Weights that a torchvision network starts from: torchvision's own, or a file, also of self-supervised training."""

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torchvision

from ltexp.errors import CheckpointError

# What stands before the backbone's names in a file: nothing, DataParallel, the query encoder of MoCo v1 and v2 (also of
# SSP, Yang and Xu, NeurIPS 2020), the base encoder of MoCo v3, and what others call it.
PREFIXES = (
    "",
    "module.",
    "module.encoder_q.",
    "encoder_q.",
    "module.base_encoder.",
    "base_encoder.",
    "module.backbone.",
    "backbone.",
    "module.encoder.",
    "encoder.",
)
CLASSIFIER = "fc."  # torchvision's classifier, or the projection head that a pre-training put in its place


def read_weights(architecture: str, weights: str, names: Collection[str]) -> dict[str, Any]:
    """The backbone's part of the named torchvision weights, or of the file of that path.

    Args:
        architecture: torchvision's name of the network.
        weights: a torchvision name such as "IMAGENET1K_V1", or the path of a file.
        names: those of the backbone's own state.

    Raises:
        CheckpointError: if they cannot be had, or the file holds none of the backbone's names.
    """
    if weights in (named := _torchvision_weights(architecture)):
        try:
            state = named[weights].get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            url = getattr(named[weights], "url", "")
            raise CheckpointError(
                f"backbone.weights '{weights}' could not be downloaded: {error}; without a network fetch {url} "
                "elsewhere and set backbone.weights=FILE"
            ) from None
    elif Path(weights).is_file():
        return _backbone_of(_read_file(Path(weights)), names, weights)
    else:
        known = ", ".join(named) or f"torchvision has none for {architecture}"
        raise CheckpointError(f"backbone.weights '{weights}' is no file and no torchvision weights ({known})")
    return _without_classifier(state)


def _backbone_of(state: Mapping[str, Any], names: Collection[str], path: str) -> dict[str, Any]:
    """Of a file's names those under the prefix that most of the backbone's own names stand under, without it.

    Under a prefix of their own the backbone's are all that counts: a pre-training's file holds other networks as well,
    such as MoCo's key encoder and queue. The names there have to fit, which `load_part` sees to.
    """
    found = {prefix: sum(prefix + name in state for name in names) for prefix in PREFIXES}
    prefix = max(PREFIXES, key=lambda prefix: found[prefix])  # the first of equals
    if not found[prefix]:
        first = ", ".join(list(state)[:3])
        raise CheckpointError(
            f"backbone.weights '{path}' belongs to a different model: none of its {len(state)} names is a backbone's, "
            f"as they are or after {', '.join(filter(None, PREFIXES))}; its first are {first}"
        )
    return _without_classifier({name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)})


def _without_classifier(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.startswith(CLASSIFIER)}


def _torchvision_weights(architecture: str) -> Mapping[str, Any]:
    if architecture not in torchvision.models.list_models(module=torchvision.models):
        return {}
    return cast(Mapping[str, Any], torchvision.models.get_model_weights(architecture).__members__)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
        raise CheckpointError(f"backbone.weights '{path}' is damaged or no checkpoint of plain tensors") from None
    state = content
    for key in ("state_dict", "model"):  # what trainers put around it
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise CheckpointError(f"backbone.weights '{path}' holds no state_dict")
    return {str(name): value for name, value in state.items()}
