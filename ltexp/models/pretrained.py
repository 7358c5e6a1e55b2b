"""Weights that a torchvision network starts from: torchvision's own, or a file, also of self-supervised training."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torchvision

from ltexp.errors import CheckpointError
from ltexp.models.foreign import read_tensors, state_below_prefix

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
    elif Path(weights).expanduser().is_file():
        what = f"backbone.weights '{weights}'"
        try:
            content = read_tensors(Path(weights).expanduser())
        except CheckpointError as error:
            raise CheckpointError(f"backbone.weights {error}") from None
        state = state_below_prefix(content, names, what)
    else:
        known = ", ".join(named) or f"torchvision has none for {architecture}"
        raise CheckpointError(f"backbone.weights '{weights}' is no file and no torchvision weights ({known})")
    return _without_classifier(state)


def _without_classifier(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.startswith(CLASSIFIER)}


def _torchvision_weights(architecture: str) -> Mapping[str, Any]:
    if architecture not in torchvision.models.list_models(module=torchvision.models):
        return {}
    return cast(Mapping[str, Any], torchvision.models.get_model_weights(architecture).__members__)
