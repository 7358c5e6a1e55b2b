"""Evaluate a finished run again, or with a classifier that needs no training.

    ltexp evaluate RUN                                        # the run's own model, from its checkpoint
    ltexp evaluate RUN classifier=tau_normalized tau=0.7      # over the stage-1 model of the run
    ltexp evaluate RUN classifier=nearest_class_mean stage=stage2
    ltexp evaluate RUN features=true                          # also writes RUN/features.npz, for figure=tsne
    ltexp evaluate RUN gradients=true                         # for figure=negative_gradients
    ltexp evaluate RUN batch_norm=true                        # for figure=batch_norm
    ltexp evaluate RUN temperature=true                       # temperature scaling on the held-out images
    ltexp evaluate RUN crops=24                               # means over five crops of images of 24 pixels more
    ltexp evaluate RUN shift=forward50                        # on a long-tailed test set, its prior unknown and known
    ltexp evaluate RUN shift=backward50 adapt=true            # experts weighed on its unlabelled images: transductive
    ltexp evaluate RUN ood=cifar100_lt                        # tells its test images from those of other classes
    ltexp evaluate RUN data=/new/root dataset.source.folder=birds     # its data lies elsewhere now
    ltexp evaluate RUN dataset.source.test=other.txt          # on another test list of the same classes
    ltexp evaluate RUN dataset=birds                          # ... on the test images of another dataset

Prints accuracy by shot and calibration, and keeps them in RUN/evaluations/. The run's record is not changed;
`ltexp report RUN posthoc=true` has a row for each evaluation.

keys: shift (uniform, or forward or backward with a ratio, such as forward50; several with commas; all: eleven of them;
see docs/shifted_tests.md), adapt (true | false: of a network of experts), ood (a file of conf/dataset/: a dataset of
other classes) and ood.KEY (of that dataset), classifier (a file of conf/classifier/, and that file's own keys), stage
(its name, as stage1), features (true | false: the backbone's features of the training and the test images), gradients
(true | false: what the stage's loss does to the logits of each class over the training images), batch_norm (true |
false: the running statistics after each stage), temperature (true | false: divides the logits by the temperature that
suits the run's held-out images best, dataset.validation.fraction; they are as long-tailed as the training images),
crops (pixels: means over five crops, the corners and the middle, of test images that are so much larger than what the
network reads),
accelerator (auto | cpu | gpu), precision (as trained; 32-true | bf16-mixed | 16-mixed), data (data root), dataset (a
file of conf/dataset/: its test samples in place of the run's own; its classes must be the run's), dataset.KEY (of that
dataset, or of the run's own); and, where they have moved, the places of the run's own dataset of files:
dataset.source.folder, .train, .validation, .test and .classes, dataset.cache, dataset.leave_out.
"""

import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from ltexp.config import Config, check_keywords, check_values, load
from ltexp.config.identity import digest
from ltexp.config.own_code import changed_since
from ltexp.config.path import choices_with, group_files, readable, take_config_dirs
from ltexp.config.places import OF_A_DATASET
from ltexp.config.words import own_keys, parse_value, read_flag, run_command, split_words
from ltexp.errors import ConfigError, LtexpError
from ltexp.evaluation.record import read_record
from ltexp.evaluation.shifted import SHIFTS, Shift
from ltexp.files import write_text
from ltexp.names import unknown_name
from ltexp.report.table import cost_text
from ltexp.run_folder import CHECKPOINT, CONFIG, EVALUATIONS

if TYPE_CHECKING:
    from ltexp.analysis.restored import LoadedStage

MOVED = ("source.folder", "source.train", "cache", "leave_out")  # of a dataset that lies elsewhere as a whole
OF_TRAINING = tuple(
    f"dataset.{key}" for key in ("imbalance", "imbalance_ratio", "max_per_class", "subset.", "validation.")
)  # of the run's own dataset, they leave its test images as they are
OWN = {"trainer.accelerator": "accelerator", "trainer.precision": "precision", "classifier.": ""}
LONGEST = 120  # characters of a file's name, where paths were typed
KEPT = ("features", "gradients", "batch_norm")  # what is kept for figures
KEYS = (
    *("classifier", "stage", "temperature", "crops", "shift", "adapt", "ood"),
    *(*KEPT, "accelerator", "precision", "data", "dataset"),
)


def parse(words: Sequence[str]) -> tuple[Path, dict[str, str], dict[str, Any] | None]:
    """(run folder, options, classifier node or None) of a command line.

    Raises:
        ConfigError: for an unknown key or classifier, or without a run.
    """
    node = _classifier(words)
    _refuse_keys_of_classifiers(words, node)
    own = [key for key in node or {} if key != "_target_"]
    of_dataset = [word.partition("=")[0] for word in words if word.startswith(("dataset.", "ood."))]
    folders, typed = split_words(words, [*KEYS, *own, *of_dataset])
    if len(folders) != 1:
        raise ConfigError("name one run's folder: ltexp evaluate RUN [key=value ...]")
    options = {key: text for key, text in typed.items() if key in (*KEYS, *of_dataset)}
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
    if read_flag(options, "gradients") and node is not None:
        raise ConfigError("gradients=true is of the stage's own classifier and loss: leave out classifier=")
    if _of_dataset(options) and any(read_flag(options, key) for key in KEPT):
        raise ConfigError("features=true and gradients=true are of the run's own data: leave out dataset=")
    if node is not None:
        node |= {key: parse_value(key, typed[key]) for key in own if key in typed}
        check_keywords(node, "classifier")
    return Path(folders[0]), options, node


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
    return {str(key): value for key, value in loaded.items()}


def chosen(folder: Path, options: dict[str, str], node: dict[str, Any] | None) -> tuple[Config, str]:
    """The run's config with the options applied, and the stage to evaluate.

    Raises:
        ConfigError: if the folder is no run's or has no such stage.
    """
    config = load(folder / CONFIG)
    trained = [name for name in config.stages if (folder / name / CHECKPOINT).is_file()]
    if not trained:
        raise ConfigError(f"{folder} has no trained stage: is its run unfinished?")
    stage = options.get("stage", "stage1" if node else trained[-1])
    if stage not in trained:
        raise ConfigError(unknown_name("stage", stage, trained))
    trainer = replace(
        config.trainer,
        accelerator=options.get("accelerator", config.trainer.accelerator),
        precision=options.get("precision", config.trainer.precision),
    )
    paths = replace(config.paths, data=options.get("data", config.paths.data))
    replaced = replace(config, trainer=trainer, paths=paths, dataset=_elsewhere(config.dataset, options))
    check_values(replaced)
    return replaced, stage


def _elsewhere(dataset: dict[str, Any], options: dict[str, str]) -> dict[str, Any]:
    """The dataset's config with the places that are given.

    Raises:
        ConfigError: for a place that this dataset does not have.
    """
    moved = copy.deepcopy(dataset)
    for key in OF_A_DATASET:
        if key not in options or not _has_moved(options):
            continue
        *sections, last = key.split(".")[1:]
        node = moved
        for section in sections:
            node = node.get(section) or {}
        if last not in node:
            raise ConfigError(f"{key}={options[key]}: the run's dataset has no such key")
        node[last] = str(Path(options[key]).expanduser())
    return moved


def main() -> int:
    """The exit status: 0; 1 where something failed; 2 for a wrong command line."""
    return run_command("ltexp evaluate", __doc__, run, None)


def run(words: Sequence[str]) -> int:
    """The command; answers its exit status.

    Raises:
        LtexpError: for what cannot be, with the keys of this command.
    """
    with own_keys(OWN):
        return evaluate(*parse(take_config_dirs(words)))


def evaluate(folder: Path, options: dict[str, str], node: dict[str, Any] | None) -> int:
    """Does what the command line says; 0, the exit status.

    Raises:
        LtexpError: for what cannot be evaluated, or be written.
    """
    config, stage = chosen(folder, options, node)
    recorded = read_record(folder)

    # imports torch: only once the command line is sound
    from ltexp.analysis.crops import predict_crops
    from ltexp.analysis.further import further, said_of
    from ltexp.analysis.restored import restore

    restored = restore(config, folder, stage, node)
    words = _of_dataset(options)
    if words:
        from ltexp.analysis.other_test import take_test

        take_test(restored.session, words)
    measure_further = further(restored, shifts_of(options), options)
    crops = _crops(restored, options)
    before, found = recorded.get("test_hash"), restored.session.data.test_hash
    other = bool(before and found and before != found)  # a record of before they were kept says nothing
    if other and not words:
        print(f"note: this is other test data than the run's ({found}, and the record has {before})")
    if changed := changed_since(recorded, asdict(config)):
        print(f"note: {changed} changed since the run was trained: the figures are of the code of now")
    for what in KEPT:
        if read_flag(options, what):
            print(f"{what} kept in {_write(restored, what)}")
    name = _name([stage] if node is None else [stage, options["classifier"], *_settings(node)], words)
    name += f"_{found[:8]}" if other and not words else ""
    content: dict[str, Any] = {"stage": stage, "classifier": node}
    content |= {"dataset": words, "test_hash": found} if words or other else {}
    if read_flag(options, "temperature"):
        content["temperature"], images = restored.scale_by_temperature()
        name += "_temperature"
        print(f"temperature {content['temperature']:.3f}, from {images} held-out images")
    content |= crops
    name += "".join(f"_{key}={value}" for key, value in crops.items())
    predictions = predict_crops(restored, **crops) if crops else restored.predictions()
    networks = restored.cost()
    beside = measure_further(predictions)
    kept = {name: content | {"networks": networks, "metrics": restored.measure(predictions)}}
    kept |= {f"{name}_{suffix}": content | own for suffix, own in beside.items()}
    show({own: evaluated["metrics"] for own, evaluated in kept.items() if "metrics" in evaluated}, recorded)
    for evaluated in beside.values():
        print("".join(f"{line}\n" for line in said_of(evaluated)), end="")
    print("evaluated: " + "; ".join(f"{part}, {cost_text(cost)}" for part, cost in networks.items()))
    _keep(folder, kept)
    more = f", {len(beside)} more beside it" if beside else ""
    print(f"kept in {folder / EVALUATIONS / f'{name}.json'}{more}")
    return 0


def _keep(folder: Path, kept: dict[str, dict[str, Any]]) -> None:
    """Writes what was evaluated, by name, beside the run.

    Raises:
        LtexpError: if the folder cannot be written; the figures have been shown by then.
    """
    try:
        for name, evaluated in kept.items():
            write_text(folder / EVALUATIONS / f"{name}.json", json.dumps(evaluated, indent=1))
    except LtexpError as error:
        raise LtexpError(f"the figures above were not kept: {error}") from None


def _name(parts: Sequence[str], words: Sequence[str]) -> str:
    """The beginning of the name of the file that keeps an evaluation."""
    name = "_".join([*parts, *words]).replace("/", "-")
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}_{digest(words)[:8]}"


def _crops(restored: "LoadedStage", options: dict[str, str]) -> dict[str, int]:
    """`crops` as typed, checked; empty where it is not."""
    from ltexp.analysis.crops import check_crops

    if "crops" not in options:
        return {}
    crops = parse_value("crops", options["crops"])
    check_crops(restored, crops)
    return {"crops": crops}


def _has_moved(options: dict[str, str]) -> bool:
    """Whether the places typed are those of the run's own dataset: its training set is among them."""
    return "dataset" not in options and any(f"dataset.{key}" in options for key in MOVED)


def _of_dataset(options: dict[str, str]) -> list[str]:
    """What was typed of another dataset, or of another test list, as the words that it was typed in."""
    places = OF_A_DATASET if _has_moved(options) else ()
    own = [key for key in options if key == "dataset" or (key.startswith("dataset.") and key not in places)]
    return [f"{key}={options[key]}" for key in own]


def keep(folder: Path, what: str) -> Path:
    """Measures `what`, one of `KEPT`, of the last stage of the run in `folder`; the path of what is kept.

    Raises:
        LtexpError: if the run has no checkpoint, its data is not there, or it has no such thing.
    """
    from ltexp.analysis.restored import restore

    config, stage = chosen(folder, {}, None)
    return _write(restore(config, folder, stage, None), what)


def _write(restored: "LoadedStage", what: str) -> Path:
    from ltexp.analysis.batch_norm import write_batch_norm
    from ltexp.analysis.gradients import write_gradients
    from ltexp.analysis.restored import write_features

    writers = {"features": write_features, "gradients": write_gradients, "batch_norm": write_batch_norm}
    return writers[what](restored)


def _settings(node: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in node.items() if key != "_target_"]


def show(evaluated: dict[str, dict[str, Any]], record: dict[str, Any]) -> None:
    """Prints metrics by their name, and those of the run's record below them."""
    rows = evaluated | {"recorded": record.get("metrics") or {}}
    keys = ("all", "many", "medium", "few", "ece")
    print(f"{'':<40}" + "".join(f"{key:>9}" for key in keys))
    for label, row in rows.items():
        cells = ("–" if row.get(key) is None else f"{row[key]:.2f}" for key in keys)
        print(f"{label:<40}" + "".join(f"{cell:>9}" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
