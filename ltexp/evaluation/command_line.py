"""The command line of `ltexp evaluate`: its keys, and what they ask for."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf

from ltexp.config import check_keywords
from ltexp.config.composer import products
from ltexp.config.path import choices_with, group_files, readable
from ltexp.config.words import parse_value, read_flag, split_words
from ltexp.errors import ConfigError
from ltexp.evaluation.chosen import of_dataset
from ltexp.evaluation.shifted import SHIFTS, Shift
from ltexp.names import unknown_name

OF_TRAINING = tuple(
    f"dataset.{key}" for key in ("imbalance", "imbalance_ratio", "max_per_class", "subset.", "validation.")
)  # of the run's own dataset, they leave its test images as they are
TRAINED = "this classifier is trained: use ltexp train with stage1.checkpoint=RUN"
KEPT = ("features", "gradients", "batch_norm")  # what is kept for figures
KEYS = (
    *("classifier", "stage", "temperature", "crops", "shift", "adapt", "ood"),
    *(*KEPT, "accelerator", "precision", "data", "dataset"),
)


def parse(words: Sequence[str]) -> tuple[Path, dict[str, str], list[dict[str, Any]]]:
    """(run folder, options, classifier nodes) of a command line: no node for the run's own, several to choose among.

    Raises:
        ConfigError: for an unknown key or classifier, or without a run.
    """
    node = _classifier(words)
    _refuse_keys_of_classifiers(words, node)
    own = [key for key in node or {} if key != "_target_"]
    of_datasets = [word.partition("=")[0] for word in words if word.startswith(("dataset.", "ood."))]
    folders, typed = split_words(words, [*KEYS, *own, *of_datasets])
    if len(folders) != 1:
        raise ConfigError("name one run's folder: ltexp evaluate RUN [key=value ...]")
    options = {key: text for key, text in typed.items() if key in (*KEYS, *of_datasets)}
    for flag in ("features", "batch_norm", "temperature", "adapt"):
        read_flag(options, flag)
    shifts_of(options)
    if "crops" in options and (beside := [key for key in ("temperature", "ood", "adapt") if key in options]):
        raise ConfigError(f"crops= is for accuracies of the model as it is: leave out {beside[0]}=")
    if options.get("ood", "") not in {"", *group_files("dataset")}:
        raise ConfigError(unknown_name("dataset", options["ood"], group_files("dataset")))
    if "ood" not in options and (stray := next((key for key in options if key.startswith("ood.")), None)):
        raise ConfigError(f"{stray}= is of the dataset that ood= names: add ood=NAME")
    if "dataset" not in options and (idle := next((key for key in options if key.startswith(OF_TRAINING)), None)):
        raise ConfigError(f"{idle}= is about training images alone: leave it out, the test images stay as they are")
    _refuse_trained_on(options)
    if read_flag(options, "gradients") and node is not None:
        raise ConfigError("gradients=true is of the stage's own classifier and loss: leave out classifier=")
    if of_dataset(options) and any(read_flag(options, key) for key in KEPT):
        raise ConfigError("features=true and gradients=true are of the run's own data: leave out dataset=")
    nodes = [] if node is None else _with_values(node, {key: typed[key] for key in own if key in typed})
    for each in nodes:
        check_keywords(each, "classifier")
    return Path(folders[0]), options, nodes


def _refuse_trained_on(options: dict[str, str]) -> None:
    """Refuses another part of the run's own training images as a test set: the run trained on most of it."""
    if "dataset" in options or "dataset.source.test" in options:
        return
    if held_out := next((key for key in options if key.startswith("dataset.test.")), None):
        raise ConfigError(
            f"{held_out}= would hold out images that the run was trained on: leave it out, the test images stay those "
            "that the run held out; or add dataset=NAME or dataset.source.test=LIST"
        )


def _with_values(node: dict[str, Any], typed: dict[str, str]) -> list[dict[str, Any]]:
    """The node with the values typed, once for every combination of those of which several are."""
    listed = [[(key, value) for value in _values(key, text)] for key, text in typed.items()]
    return [node | dict(values) for values in product(*listed)]


def _values(key: str, text: str) -> list[Any]:
    """What a key is given: several values as for a sweep, with commas or a range; else the one as it is typed."""
    with suppress(HydraException):
        if len(jobs := products([f"{key}={text}"])) > 1:
            found = [parse_value(key, word.partition("=")[2]) for (word,) in jobs]
            return [round(value, 10) if isinstance(value, float) else value for value in found]  # of a range
    return [parse_value(key, text)]


def _refuse_keys_of_classifiers(words: Sequence[str], named: dict[str, Any] | None) -> None:
    for key in (word.partition("=")[0] for word in words if "=" in word and named is None):
        if key.isidentifier() and key not in KEYS and (having := choices_with("classifier", key)):
            raise ConfigError(f"{key}= is a key of classifier={' or '.join(having)}, which is not named")


def shifts_of(options: dict[str, str]) -> list[Shift]:
    """The test distributions that are asked for.

    Raises:
        ConfigError: for what is none.
    """
    if "shift" not in options:
        return [Shift("uniform")] if read_flag(options, "adapt") else []
    if options["shift"] == "all":
        return list(SHIFTS)
    return [Shift.from_text(text) for text in dict.fromkeys(options["shift"].split(","))]


def _classifier(words: Sequence[str]) -> dict[str, Any] | None:
    """The node of the classifier that is asked for, as its file has it; None if none is."""
    name = dict(word.split("=", 1) for word in words if "=" in word).get("classifier")
    if name is None:
        return None
    choices = group_files("classifier")
    if name not in choices:
        raise ConfigError(unknown_name("classifier", name, choices))
    with readable(choices[name]):
        loaded = OmegaConf.to_container(OmegaConf.load(choices[name]))
    assert isinstance(loaded, dict)
    if any(isinstance(value, str) and value.startswith("${") for value in loaded.values()):  # of what training knows
        raise ConfigError(TRAINED)
    return {str(key): value for key, value in loaded.items()}
