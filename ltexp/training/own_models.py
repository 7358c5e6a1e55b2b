"""Checks that a user's own backbone and classifier are what others take them for, on the run's own data."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltexp.errors import ConfigError
from ltexp.models.classifier import Classifier
from ltexp.models.model import Model
from ltexp.training.session import Session


def check_model(model: Model, session: Session, own: Iterable[str], name: str) -> None:
    """The backbone's features and the classifier's logits have the widths that others rely on."""
    backbone, classifier, width = model.backbone, model.classifier, model.backbone.feature_dim
    experts = () if classifier.experts is None else (classifier.experts,)
    with torch.no_grad():
        copied = copy.deepcopy(model).eval()
        if "backbone" in own:
            features, maps = copied.backbone(session.sample_inputs()), getattr(backbone, "map_channels", None)
            _expect("backbone", backbone, features, (1, *experts, width), "features, feature_dim wide,")
            if maps:
                found = copied.backbone.forward_maps(session.sample_inputs())
                if not isinstance(found, tuple) or [each.shape[1] for each in found[1]] != list(maps):
                    raise ConfigError(
                        f"backbone: {called(type(backbone))}.forward_maps gave other maps than map_channels={maps}"
                    )
        if f"{name}.classifier" in own and not classifier.needs_source and classifier.reads_text is None:
            rows = torch.zeros(2, *experts, width, device=session.device)
            if classifier.needs_features:
                labels = torch.arange(session.num_classes, device=session.device).repeat(2)
                copied.classifier.fit(torch.randn(len(labels), width, device=session.device), labels)
            logits = copied.classifier(rows)
            if not experts:
                _expect(f"{name}.classifier", classifier, logits, (2, session.num_classes), "logits")
                _check_linear_form(f"{name}.classifier", copied.classifier, width, session.device)
            output = copied.classifier.output(rows)
            if missing := [each for each in classifier.gives if output.read(each) is None]:
                who = f"{name}.classifier: {called(type(classifier))}"
                raise ConfigError(f"{who}.gives names {', '.join(missing)}, and its output has none")


def _check_linear_form(path: str, classifier: Classifier, width: int, device: torch.device) -> None:
    """Refuses a linear form, which later classifiers start from, that leaves out what a subclass has added."""
    if classifier.kind not in ("linear", "cosine"):
        return
    for parameter in classifier.parameters():
        parameter.add_(torch.rand_like(parameter))  # a factor that starts as 1 cannot be told from none
    features = torch.rand(4, width, device=device)
    logits = classifier(features)
    try:
        weight, bias = classifier.linear_form()
    except NotImplementedError:
        return
    own = F.linear(features if classifier.kind == "linear" else F.normalize(features), weight, bias)
    if not torch.allclose(own, logits, rtol=1e-3, atol=1e-3, equal_nan=True):
        who = called(type(classifier))
        raise ConfigError(f"{path}: {who}.linear_form is not its forward: later stages would start from another map")


def _expect(path: str, part: object, given: object, shape: tuple[int, ...], what: str) -> None:
    if not isinstance(given, Tensor) or tuple(given.shape) != shape:
        raise ConfigError(f"{path}: {called(type(part))} gave {shown(given)}: expected {what} of shape {shape}")


def called(chosen: Any) -> str:
    """The name of a class with its module."""
    return f"{chosen.__module__}.{chosen.__qualname__}"


def shown(given: object) -> str:
    """What a part gave, in a few words."""
    if not isinstance(given, Tensor):
        return f"a {type(given).__name__}"
    shape = f"{str(given.dtype).removeprefix('torch.')} {tuple(given.shape)}"
    return f"{shape} from {given.min():g} to {given.max():g}" if given.ndim == 1 and len(given) else shape
