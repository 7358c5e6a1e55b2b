"""Finished runs on test sets with other class shares: forward and backward long tails, and equal shares."""

import warnings
from collections.abc import Sequence

import numpy as np

from ltexp.errors import LtexpError
from ltexp.evaluation.shifted import PRIORS, SHIFTS, Predicted, shifted_accuracy, shifted_recalls
from ltexp.report.columns import COLUMNS, IDENTITY, METRICS, Cell, Column, Row, default_columns
from ltexp.report.drawing import load_predictions
from ltexp.report.groups import Group, statistic
from ltexp.report.predicted import counts_of_test
from ltexp.report.records import Run
from ltexp.report.results import Table, best_cells, seeds_note, shared_title, with_own_overrides

PRIOR = "test_prior"  # the name of the column that says what a model is told of the test set
_HEADS = [*(shift.short for shift in SHIFTS), "mean", "worst"]
_NOTES = (
    "expected accuracy in % on test sets whose class shares fall exponentially, by the ratio of the largest share to "
    "the smallest: F, forward, classes frequent in training are frequent; B, backward, they are rare; U, uniform",
    "test prior known: the logits are corrected for these shares; estimated: for those that EM finds without labels",
)


def shifted_accuracies(run: Run) -> dict[str, list[float]]:
    """For each of `PRIORS` that can be told the accuracy in percent on each of `SHIFTS`.

    The unknown prior needs the run's record alone; the others need its predictions and its config as well.
    """
    counts, recalls = run.record["class_counts"], run.record["metrics"]["per_class"]
    tested = counts_of_test(run)
    there = np.asarray([recall is not None for recall in recalls]).astype(np.int64)
    shares = [shift.shares(counts, there if tested is None else tested) for shift in SHIFTS]
    found = {"unknown": [shifted_accuracy(recalls, q) for q in shares]}
    if (predicted := _predicted(run)) is None:
        return found
    for prior, by_shift in shifted_recalls(predicted, counts).items():
        found[prior] = [shifted_accuracy(own, q) for own, q in zip(by_shift, shares, strict=True)]
    return found


def _predicted(run: Run) -> Predicted | None:
    # imports torch: the losses and samplers of a run say what it learned
    from ltexp.analysis.learned_prior import learned_prior_of

    try:
        with warnings.catch_warnings(action="ignore"):
            return Predicted(*load_predictions(run), learned_prior_of(run))
    except LtexpError:
        return None


def shifted_table(groups: Sequence[Group], full: bool = False) -> Table:
    """The table of some runs over `SHIFTS`: for each of `PRIORS` a block with a row for each group.

    Args:
        groups: at least one.
        full: every column that says what was run, for machines.
    """
    found = {id(run): shifted_accuracies(run) for group in groups for run in group.runs}
    own = [Row(group) for group in groups]
    usual = [column for column in default_columns(own, stages=False) if column.name not in METRICS]
    identity, common = [COLUMNS[name] for name in (*IDENTITY, "seeds")], set[str]()
    if not full:
        identity, common = with_own_overrides(usual, groups)
    told = Column(PRIOR, "test prior", lambda row: None)  # its cells are made below
    figures = [Column(head, head, lambda row: None, numeric=True, better=1) for head in _HEADS]
    order = list(dict.fromkeys(group.section for group in groups))
    rows = [(row, prior) for section in order for prior in PRIORS for row in own if row.group.section == section]
    cells = [[*(column.value(row) for column in identity), prior, *_cells(row, prior, found)] for row, prior in rows]
    blocks = [(row.group.section, prior) for row, prior in rows]
    columns = [*identity, told, *figures]
    notes = [*_NOTES, seeds_note(own)]
    if common and ("overrides" not in {column.name for column in identity} or len(groups) > 1):
        notes.append("every run with " + " ".join(sorted(common)))
    if any(cell is None for row in cells for cell in row[-len(_HEADS) :]):
        notes.append("–: not known without the run's predictions.npz and config.yaml")
    return Table(
        columns=columns,
        rows=cells,
        notes=notes,
        breaks=frozenset(n for n in range(1, len(rows)) if blocks[n] != blocks[n - 1]),
        title="" if full else shared_title(own, {column.name for column in identity}),
        best=best_cells(cells, columns, blocks),
        runs=[row.group.runs for row, _ in rows],
    )


def _cells(row: Row, prior: str, found: dict[int, dict[str, list[float]]]) -> list[Cell]:
    """A figure for each of the table's numeric columns."""
    values = [found[id(run)].get(prior) for run in row.group.runs]
    known = [own for own in values if own is not None]
    if len(known) < len(values):
        return [None] * len(_HEADS)
    each = [statistic(list(column)) for column in zip(*known, strict=True)]
    return [*each, statistic([float(np.mean(own)) for own in known]), statistic([min(own) for own in known])]
