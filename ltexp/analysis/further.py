"""What `ltexp evaluate` measures beside the accuracies: shifted tests and other data's scores."""

from collections.abc import Callable, Sequence
from typing import Any

from ltexp.analysis.out_of_distribution import out_of_distribution, session_of_others
from ltexp.analysis.restored import LoadedStage
from ltexp.analysis.shifted import check_shifts, evaluate_shifts
from ltexp.config.identity import digest
from ltexp.config.words import read_flag
from ltexp.evaluation.shifted import Shift
from ltexp.training.predict import Predictions


def further(
    restored: LoadedStage, shifts: Sequence[Shift], options: dict[str, str]
) -> Callable[[Predictions], dict[str, dict[str, Any]]]:
    """What else is asked for, checked: of the model's predictions, by the end of the name of the file that keeps it."""
    adapts = read_flag(options, "adapt") or False
    words = [f"{key}={text}" for key, text in options.items() if key == "ood" or key.startswith("ood.")]
    if shifts:
        check_shifts(restored, adapts)
    others = session_of_others(restored, words) if words else None

    def measure(predictions: Predictions) -> dict[str, dict[str, Any]]:
        found = evaluate_shifts(restored, predictions, shifts, adapts) if shifts else {}
        if others is not None:
            ending = f"ood={options['ood']}" + (f"_{digest(words)[:8]}" if len(words) > 1 else "")
            found[ending] = {"ood_words": words, "ood": out_of_distribution(restored, predictions, others)}
        return found

    return measure


def said_of(found: dict[str, Any]) -> list[str]:
    """Lines about what is kept beside the metrics."""
    if "expert_weights" in found:
        weights = ", ".join(f"{weight:.2f}" for weight in found["expert_weights"])
        return [f"{found['shift']} adapted: {found['transductive']} (transductive): {weights}"]
    if "ood" not in found:
        return []
    inside, outside = found["ood"]["samples"]
    lines = [f"{inside:,} test samples of the run (positive) against {outside:,} others, in %"]
    lines.append(f"{'':<40}" + "".join(f"{name:>9}" for name in ("AUROC", "AUPR", "FPR95")))
    for name, measures in found["ood"]["scores"].items():
        lines.append(f"{name:<40}" + "".join(f"{value:>9.2f}" for value in measures.values()))
    return lines
