"""Evaluate a finished run again, or with a classifier that needs no training.

    ltexp evaluate RUN                                        # the run's own model, from its checkpoint
    ltexp evaluate RUN classifier=tau_normalized tau=0.7      # over the stage-1 model of the run
    ltexp evaluate RUN classifier=tau_normalized 'tau=range(0,2.1,0.1)'     # the best on the run's held-out images
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

keys:
  classifier=NAME       a file of conf/classifier/, with that file's keys, as tau= above; of several values the best on
                        the run's held-out images is taken (its validation split, or dataset.validation.fraction)
  stage=NAME            whose model (default: the last stage; with classifier=, stage1)
  temperature=true      divides the logits by the temperature that suits the run's held-out images best; they are as
                        long-tailed as the training images
  crops=PIXELS          the mean over five crops, corners and middle, of test images that are so much larger than what
                        the network reads
  shift=NAME            test sets with other class shares: uniform, or forward or backward with a ratio, as forward50;
                        several with commas, or all eleven: all (docs/shifted_tests.md)
  adapt=true            weighs the experts of a network on the test images, without their labels
  ood=NAME              a file of conf/dataset/, of other classes; ood.KEY=VALUE sets its keys
  dataset=NAME          a file of conf/dataset/ with the run's classes, whose test images take the place of the run's
  dataset.KEY=VALUE     a key of that dataset, or of the run's own; where the run's files have moved these are
                        source.folder, .train, .validation, .test and .classes, cache, leave_out
  data=FOLDER           data root
  features=true         keeps the backbone's features of the training and the test images
  gradients=true        keeps what the stage's loss does to the logits of each class over the training images
  batch_norm=true       keeps the running statistics after each stage
  accelerator=NAME      auto | cpu | gpu
  precision=NAME        32-true | bf16-mixed | 16-mixed (default: as trained)
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltexp.config import load
from ltexp.config.identity import digest
from ltexp.config.path import take_config_dirs
from ltexp.config.words import own_keys, parse_value, read_flag, run_command
from ltexp.errors import LtexpError, WriteError
from ltexp.evaluation.chosen import chosen, of_dataset
from ltexp.evaluation.command_line import KEPT, parse, shifts_of
from ltexp.evaluation.record import read_record
from ltexp.files import write_text
from ltexp.report.table import cost_text
from ltexp.run_folder import CONFIG, EVALUATIONS

if TYPE_CHECKING:
    from ltexp.analysis.restored import LoadedStage

OWN = {"trainer.accelerator": "accelerator", "trainer.precision": "precision", "classifier.": ""}
CHOSEN = "chosen"  # the beginning of a value in a file's name: the best of several on held-out images
LONGEST = 120  # characters of a file's name, where paths were typed


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


def evaluate(folder: Path, options: dict[str, str], nodes: Sequence[dict[str, Any]]) -> int:
    """Does what the command line says; 0, the exit status.

    Raises:
        LtexpError: for what cannot be evaluated, or be written.
    """
    config, stage = chosen(folder, options, nodes)
    recorded = read_record(folder)

    # imports torch: only once the command line is sound
    from ltexp.analysis.changes import note_changes
    from ltexp.analysis.choice import choice_text, choose
    from ltexp.analysis.crops import predict_crops
    from ltexp.analysis.further import further, said_of
    from ltexp.analysis.restored import restore

    restored = restore(config, folder, stage, next(iter(nodes), None))
    words = of_dataset(options)
    if words:
        from ltexp.analysis.other_test import take_test

        take_test(restored, words)
    measure_further = further(restored, shifts_of(options), options)
    crops = _crops(restored, options)
    other = note_changes(restored, recorded, config, words, _of_training(options))
    node, choice = choose(restored, nodes)
    if choice:
        print(choice_text(choice))
    unwritten = _write_for_figures(restored, options)
    name = _name([stage, *([options["classifier"], *_settings(nodes)] if nodes else [])], words)
    precision = config.trainer.precision
    if "precision" in options and precision != load(folder / CONFIG).trainer.precision:
        name += f"_{precision}"
    found = restored.session.data.test_hash
    name += f"_{found[:8]}" if other and not words else ""
    content: dict[str, Any] = {"stage": stage, "classifier": node, "precision": precision}
    content |= {"choice": choice} if choice else {}
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
    if unwritten:
        raise LtexpError("; ".join(unwritten))
    return 0


def _of_training(options: dict[str, str]) -> list[str]:
    """What is asked for that reads the run's training images, or counts them, as typed."""
    typed = [f"{key}={options[key]}" for key in ("classifier", "shift") if key in options]
    return typed + [f"{key}=true" for key in ("temperature", "adapt", *KEPT) if read_flag(options, key)]


def _write_for_figures(restored: "LoadedStage", options: dict[str, str]) -> list[str]:
    """Writes what is asked for of `KEPT`, before a temperature scales the logits; what could not be written."""
    unwritten = []
    for what in KEPT:
        if read_flag(options, what):
            try:
                print(f"{what} kept in {_write(restored, what)}")
            except WriteError as error:
                unwritten.append(f"{what} not kept: {error}")
    return unwritten


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


def keep(folder: Path, what: str) -> Path:
    """Measures `what`, one of `KEPT`, of the last stage of the run in `folder`; the path of what is kept.

    Raises:
        LtexpError: if the run has no checkpoint, its data is not there, or it has no such thing.
    """
    from ltexp.analysis.changes import check_training
    from ltexp.analysis.restored import restore

    config, stage = chosen(folder, {}, [])
    restored = restore(config, folder, stage, None)
    check_training(restored, read_record(folder), [f"{what}=true"])
    return _write(restored, what)


def _write(restored: "LoadedStage", what: str) -> Path:
    from ltexp.analysis.batch_norm import write_batch_norm
    from ltexp.analysis.gradients import write_gradients
    from ltexp.analysis.restored import write_features

    writers = {"features": write_features, "gradients": write_gradients, "batch_norm": write_batch_norm}
    return writers[what](restored)


def _settings(nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Such as `tau=0.7`; where the nodes differ in it `tau=chosen-` with a hash of the values."""
    keys = [key for key in nodes[0] if key != "_target_"]
    values = {key: [node[key] for node in nodes] for key in keys}
    return [
        f"{key}={of_key[0] if all(value == of_key[0] for value in of_key) else f'{CHOSEN}-{digest(of_key)[:6]}'}"
        for key, of_key in values.items()
    ]


def show(evaluated: dict[str, dict[str, Any]], record: dict[str, Any]) -> None:
    """Prints metrics by their name, and those of the run's record below them."""
    rows = evaluated | {"recorded": record.get("metrics") or {}}
    keys = ("all", "many", "medium", "few", "ece")
    width = max(40, *map(len, rows))
    print(" " * width + "".join(f"{key:>9}" for key in keys))
    for label, row in rows.items():
        cells = ("–" if row.get(key) is None else f"{row[key]:.2f}" for key in keys)
        print(f"{label:<{width}}" + "".join(f"{cell:>9}" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
