"""What is another than when a run was trained: its data, and code of one's own."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ltexp.analysis.restored import LoadedStage
from ltexp.config import Config
from ltexp.config.own_code import changed_since
from ltexp.errors import DataError


def note_changes(
    restored: LoadedStage, recorded: dict[str, Any], config: Config, words: Sequence[str], of_training: Sequence[str]
) -> bool:
    """Says what is another than when the run was trained; whether the test data is.

    Shots are those of the record.

    Args:
        restored: a stage of the run.
        recorded: the run's record; what an older one does not have counts as unchanged.
        config: as the run is evaluated.
        words: what was typed of another test set.
        of_training: what is asked for that reads the run's training images, or counts them.

    Raises:
        DataError: if the training images are others, and something is asked for that reads them.
    """
    check_training(restored, recorded, of_training)
    before, found = recorded.get("test_hash"), restored.session.data.test_hash
    other = bool(before and found and before != found)
    if other and not words:
        print(f"note: this is other test data than the run's ({found}, and the record has {before})")
    if changed := changed_since(recorded, asdict(config)):
        print(f"note: {changed} changed since the run was trained: the figures are of the code of now")
    return other


def check_training(restored: LoadedStage, recorded: dict[str, Any], of_training: Sequence[str]) -> None:
    """Says that the run's training images are others by now, and keeps the shots of the record.

    Args:
        restored, recorded, of_training: see `note_changes`.

    Raises:
        DataError: see `note_changes`.
    """
    data = restored.run_data
    hashes = {"subset_hash": data.subset_hash, "content_hash": data.content_hash}
    changed = [name for name, found in hashes.items() if (recorded.get(name) or found) != found]
    if not changed:
        return
    counts = np.array(recorded["class_counts"], dtype=np.int64)
    now, before = int(data.class_counts.sum()), int(counts.sum())
    others = f"{now:,} images where the record has {before:,}" if now != before else "of another hash than the record's"
    asked = [
        *of_training,
        *([f"the classifier of {restored.stage}"] if restored.model.classifier.needs_features else []),
    ]
    if asked and changed != ["content_hash"]:
        raise DataError(
            f"{asked[0]} is of the run's training images, and these are others ({others}): name those that it was "
            "trained on, of files by dataset.source.folder= and dataset.source.train="
        )
    restored.session.shot_counts = counts
    print(f"note: these are other training images than the run's ({others}); shots are those of the record")
