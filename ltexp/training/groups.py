"""The optimizer's parameter groups: factors on learning rate and weight decay by part, by name and by kind."""

from collections.abc import Callable, Collection, Mapping
from inspect import signature
from typing import Any

from hydra.utils import get_class
from torch import nn

from ltexp.config import StageConfig
from ltexp.config.require import is_number, require
from ltexp.errors import ConfigError
from ltexp.models.classifier import Classifier
from ltexp.models.model import Model
from ltexp.models.module import present
from ltexp.names import unknown_name

ONE_DIMENSIONAL = "one_dimensional"  # biases, and scales and shifts of norms
DECAYED = "weight_decay"
KEYS = ("lr_factors", "weight_decay_factors")
INNER = ("backbone.", "modules.")  # beginnings of names that a model alone knows


def flat_factors(factors: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{classifier: {shift: 0.2}} as {classifier.shift: 0.2}."""
    flat: dict[str, Any] = {}
    for name, value in factors.items():
        flat |= flat_factors(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def check_factors(name: str, stage: StageConfig, classifier: Classifier) -> None:
    """Refuses factors that are no numbers of 0 or more, and names that the parts of no model have.

    Args:
        name: of the stage.
        stage: its config.
        classifier: of the stage.

    Raises:
        ConfigError: with the key.
    """
    modules = [f"modules.{module}" for module in present(stage.modules)]
    known = {"backbone", "classifier", ONE_DIMENSIONAL, *modules}
    known |= {f"classifier.{parameter}" for parameter in ("weight", "bias", "scale", "shift")}
    known |= {f"classifier.{parameter}" for parameter, _ in classifier.named_parameters()}
    within = ("backbone.", *(f"{module}." for module in modules))  # see `check_names`
    for key in KEYS:
        for prefix, factor in flat_factors(getattr(stage, key)).items():
            if prefix not in known and not prefix.startswith(within):
                raise ConfigError(unknown_name(f"parameter in {name}.{key}", prefix, known))
            require(is_number(factor, 0), f"{name}.{key}.{prefix}", factor, "a number of 0 or more")
    if stage.weight_decay_factors and DECAYED not in signature(get_class(stage.optimizer["_target_"])).parameters:
        own = stage.optimizer["_target_"]
        raise ConfigError(f"{name}.weight_decay_factors: {own} has no weight decay: choose another optimizer")


def check_names(name: str, stage: StageConfig, build_model: Callable[[], Model]) -> None:
    """Refuses names of the backbone's and the modules' parts that these have not, not even as None.

    Args:
        name: of the stage.
        stage: its config.
        build_model: makes the stage's model, which takes time; called where something in a part is named.

    Raises:
        ConfigError: with the key.
    """
    parts = {"backbone", *(f"modules.{module}" for module in present(stage.modules))}
    factors = [(key, prefix) for key in KEYS for prefix in flat_factors(getattr(stage, key))]
    inner = [(key, prefix) for key, prefix in factors if prefix.startswith(INNER) and prefix not in parts]
    if not inner:
        return
    places: set[str] = set()
    for part, module in build_model().parts().items():
        found = dict((*module.named_modules(), *module.named_parameters()))
        for place, each in module.named_modules():  # a part that its settings leave out is an attribute that is None
            found |= dict.fromkeys(f"{place}.{own}".lstrip(".") for own, value in vars(each).items() if value is None)
        places |= {part, *(f"{part}.{place}" for place in found if place)}
    for key, prefix in inner:
        if prefix not in places:
            raise ConfigError(unknown_name(f"parameter in {name}.{key}", prefix, places))


def parameter_groups(model: Model, stage: StageConfig) -> list[dict[str, Any]]:
    """Optimizer groups of the learnable parameters, one for each pair of factors on learning rate and weight decay.

    Args:
        model: its parameters that require a gradient are grouped.
        stage: its `optimizer`, `lr_factors` and `weight_decay_factors` count. A factor is that of the longest prefix
            of the parameter's dotted name, which begins with its part's (`Model.parts`), times that of
            `one_dimensional`, where the parameter is so.
    """
    lr, decay = float(stage.optimizer["lr"]), None
    if stage.weight_decay_factors:
        usual = signature(get_class(stage.optimizer["_target_"])).parameters[DECAYED].default
        decay = float(stage.optimizer.get(DECAYED, usual))
    factors = [flat_factors(getattr(stage, key)) for key in KEYS]
    groups: dict[tuple[float, ...], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()  # one that two parts share learns once
    for part, module in model.parts().items():
        for own, parameter in module.named_parameters():
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            key = tuple(_factor(f"{part}.{own}", parameter, each) for each in factors)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": params, "lr": lr * rate, "base_lr": lr * rate}
        | ({} if decay is None else {DECAYED: decay * decay_factor})
        for (rate, decay_factor), params in groups.items()
    ]


def _factor(name: str, parameter: nn.Parameter, factors: Mapping[str, float]) -> float:
    fitting: Collection[str] = [prefix for prefix in factors if name == prefix or name.startswith(prefix + ".")]
    factor = float(factors[max(fitting, key=len)]) if fitting else 1.0
    return factor * float(factors.get(ONE_DIMENSIONAL, 1.0)) if parameter.ndim <= 1 else factor
