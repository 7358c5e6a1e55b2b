"""A finished run on test sets with other class shares; see `ltexp.evaluation.shifted`."""

from collections.abc import Sequence
from typing import Any

from ltexp.analysis.adaptation import adapt, views_of
from ltexp.analysis.learned_prior import learned_prior
from ltexp.analysis.restored import LoadedStage
from ltexp.errors import ConfigError
from ltexp.evaluation.arrays import Floats, Ints
from ltexp.evaluation.metrics import group_means
from ltexp.evaluation.shifted import Predicted, Shift, shifted_accuracy, shifted_recalls
from ltexp.training.predict import Predictions


def check_shifts(restored: LoadedStage, adapts: bool) -> None:
    """Refuses what `evaluate_shifts` cannot do, before anything is computed.

    Raises:
        ConfigError: for a stage that learned labels of its own, or without experts to adapt.
    """
    if restored.session.pretext is not None:
        raise ConfigError(f"shift= is about the dataset's classes, and {restored.stage} learned labels of its own")
    if adapts:
        views_of(restored)
    if not _prior(restored).all():
        raise ConfigError(f"shift= is about all classes, and {restored.stage} learned some of them alone")


def evaluate_shifts(
    restored: LoadedStage, predictions: Predictions, shifts: Sequence[Shift], adapts: bool
) -> dict[str, dict[str, Any]]:
    """For each shift and prior, and for experts whose weights adapt, what `ltexp evaluate` keeps, by name.

    Args:
        restored: the stage.
        predictions: its predictions on the test split.
        shifts: the test distributions.
        adapts: whether the experts' weights are learned on the unlabelled images of each of them.
    """
    session, model = restored.session, restored.model
    predicted = Predicted(predictions.logits * model.logit_scale, predictions.labels, _prior(restored))
    found: dict[str, dict[str, Any]] = {}
    for name, by_shift in shifted_recalls(predicted, session.metrics.class_counts, shifts).items():
        for shift, recalls in zip(shifts, by_shift, strict=True):
            metrics = _metrics(restored, shift, recalls, predicted.test_counts)
            found[f"{shift.name}_{name}"] = {"shift": shift.name, "prior": name, "metrics": metrics}
    for shift in shifts if adapts else ():
        adapted = adapt(restored, shift)
        found[f"{shift.name}_adapted"] = {
            "shift": shift.name,
            "expert_weights": adapted.weights,
            "transductive": f"weights learned on {adapted.images} unlabelled test images",
            "metrics": _metrics(restored, shift, adapted.recalls, predicted.test_counts),
        }
    return found


def _prior(restored: LoadedStage) -> Floats:
    """(C,) the class shares that the stage's logits are for."""
    session, stage = restored.session, restored.stage
    untrained = restored.taken_over or session.config.stages[stage].epochs == 0
    classifier = restored.model.classifier if untrained else None
    return learned_prior(session.config, stage, session.class_counts.cpu(), classifier)


def _metrics(restored: LoadedStage, shift: Shift, recalls: Sequence[float | None], test_counts: Ints) -> dict[str, Any]:
    rules = restored.session.metrics
    accuracy = shifted_accuracy(recalls, shift.shares(rules.class_counts, test_counts))
    return {"all": accuracy, **group_means(recalls, rules.class_counts, rules.rule), "per_class": list(recalls)}
