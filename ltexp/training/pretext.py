"""What a stage that makes its labels itself can be used for, found out before any data is read."""

from collections.abc import Mapping

from hydra.utils import get_class

from ltexp.config import StageConfig
from ltexp.config.build import build
from ltexp.errors import ConfigError
from ltexp.features.source import ExtractedFeatures


def makes_labels(stage: StageConfig) -> bool:
    """Whether the stage learns labels that its mixing makes of the inputs, and not the dataset's; see `Mixing`."""
    found: int | None = getattr(get_class(stage.mixing["_target_"]), "num_classes", None)
    return found is not None


def check_pretexts(stages: Mapping[str, StageConfig]) -> None:
    """Refuses a stage with labels of its own that nothing can come of, and what would read them as the dataset's.

    Args:
        stages: of a run, in order.

    Raises:
        ConfigError: saying what to change.
    """
    pretexts = {name for name, stage in stages.items() if makes_labels(stage)}
    used = {source for stage in stages.values() for source in stage.sources}
    last = list(stages)[-1]
    for name in pretexts:
        key = f"mixing@{name}.mixing"
        if name == last:
            raise ConfigError(f"{name}: the last stage learns the dataset's labels, not its own: set {key}=none")
        if name not in used:
            raise ConfigError(f"{name}: no later stage starts from it: set {_next(stages, name)}.init.backbone={name}")
        if stages[name].streams:
            raise ConfigError(f"{name}: its mixing makes its labels, and streams have the dataset's: set {key}=none")
        if stages[name].features.get("_target_"):
            raise ConfigError(f"{name}: its mixing makes labels of images, and it trains on features: set {key}=none")
    for name, stage in stages.items():
        for key, where in {"init.classifier": stage.init.classifier, **stage.taught_by}.items():
            if where in pretexts and name not in pretexts:
                what = "classifier" if key == "init.classifier" else "teacher"
                held = {"init.classifier": "=fresh", "teacher": "=null"}.get(key, " to another stage")
                raise ConfigError(
                    f"{name}: the {what} in {where} knows that stage's own labels: set {name}.{key}{held}"
                )
        if stage.init.backbone in pretexts and _compares(stage):
            raise ConfigError(
                f"{name}: {stage.init.backbone} has no classifier of the dataset's classes to compare with: set "
                f"{name}.features.beta_reference=last_epoch"
            )


def _next(stages: Mapping[str, StageConfig], name: str) -> str:
    names = list(stages)
    return names[names.index(name) + 1]


def _compares(stage: StageConfig) -> bool:
    """Whether its generated features are judged by the classifier that their backbone was trained with."""
    if not stage.features.get("_target_"):
        return False
    source: ExtractedFeatures = build(stage.features, path="features")
    return source.compares_with_stage1
