"""Classes as figures show them: by frequency, in groups, or those that a user names."""

from collections.abc import Sequence

import numpy as np

from ltexp.errors import ConfigError
from ltexp.evaluation.arrays import Ints
from ltexp.names import unknown_name
from ltexp.report.drawing import literal
from ltexp.report.records import Run

MOST_CLASSES = 20  # that are shown one by one; more are put together in groups
BY_NAME = "name:"  # before a class's name that would else be a label
GROUPS = 10  # of equally many classes (Li Mengke's thesis, Figs. 3.7 and 3.8)


def by_frequency(run: Run) -> Ints:
    """(C,) labels from the class with the most training images to that with the fewest."""
    order: Ints = np.argsort(-np.asarray(run.record["class_counts"]), kind="stable")
    return order


def class_names(run: Run) -> list[str]:
    """(C,) names in label order; the labels where the record has no names."""
    names = run.record.get("class_names") or range(len(run.record["class_counts"]))
    return [str(name) for name in names]


def class_titles(run: Run) -> list[str]:
    """(C,) `class_names` as figures write them."""
    return [literal(name) for name in class_names(run)]


def check_same_classes(runs: Sequence[Run]) -> None:
    """Raises a ConfigError unless all runs have the same classes with the same training images."""
    if len({tuple(run.record["class_counts"]) for run in runs}) > 1:
        raise ConfigError("these runs differ in their class counts: choose runs of one dataset and imbalance ratio")


def frequency_groups(run: Run, groups: str | None) -> tuple[list[Ints], list[str]]:
    """(labels of each group, what it is called), from the most to the least frequent.

    Args:
        groups: the number of groups of equally many classes, or "none": each class is a group. None: each class up to
            20 classes, else ten groups.

    Raises:
        ConfigError: for another text, or more groups than classes.
    """
    order, counts = by_frequency(run), np.asarray(run.record["class_counts"])
    if groups is None:
        groups = "none" if len(order) <= MOST_CLASSES else str(GROUPS)
    if groups == "none":
        names = class_titles(run)
        return [order[i : i + 1] for i in range(len(order))], [f"{names[label]}\n{counts[label]}" for label in order]
    if not groups.isdecimal() or not 1 <= int(groups) <= len(order):
        raise ConfigError(f"invalid groups={groups}: expected none, or a number up to the {len(order)} classes")
    members = np.array_split(order, int(groups))
    spans = [f"{counts[labels[0]]}–{counts[labels[-1]]}" for labels in members]
    return list(members), [f"{number}\n{span}" for number, span in enumerate(spans, start=1)]


def chosen_classes(run: Run, classes: str | None, default: int) -> list[int]:
    """The labels that `classes` names, in its order; without it `default` of them, spread evenly over the frequencies.

    Args:
        classes: labels or class names with commas between them, `0,1,8,9`, or None. A number is always a label: a class
            that is called by a number and has another label is `name:7`.
        default: the number of classes without a choice.

    Raises:
        ConfigError: for a class that the run does not have.
    """
    names = class_names(run)
    if classes is None:
        places = np.linspace(0, len(names) - 1, min(default, len(names))).round().astype(int)
        return [int(label) for label in by_frequency(run)[places]]
    found = []
    for word in (part.strip() for part in classes.split(",")):
        called = word.removeprefix(BY_NAME)
        if word.isdecimal() and int(word) < len(names):
            found.append(int(word))
        elif not word.isdecimal() and (word in names or called in names):
            found.append(names.index(word if word in names else called))
        else:
            hint = f"; the class of this name is {BY_NAME}{word}" if word in names else ""
            raise ConfigError(
                unknown_name("class", word, set(names) - {word}) + f" (or a label from 0 to {len(names) - 1}{hint})"
            )
    return list(dict.fromkeys(found))
