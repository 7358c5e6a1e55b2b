"""Every kind of method on two and on four processes: the same images, and without batch statistics the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from runs import assert_equal_weights, run_here, tiny, weights
from test_distributed_run import run_on_rank
from test_every_method import every_method, stages_of
from torch import Tensor, nn

from ltexp.data.loader import Batch
from ltexp.data.samplers import ClassAware
from ltexp.evaluation.record import read_record
from ltexp.models import auxiliary, projection
from ltexp.training.callbacks import batch_norm
from ltexp.training.stage import Stage

QUICK = ("crt", "mislas", "dasl", "glag", "ols")


class PerRank(ClassAware):
    """What a sampler that does not know of the other processes does: each draws for itself."""

    def indices(self, seed: int, epoch: int, max_epochs: int) -> Tensor:
        return super().indices(seed + (dist.get_rank() if dist.is_initialized() else 0), epoch, max_epochs)


def run_and_note(
    folder: str, overrides: tuple[str, ...], project: Path | None = None
) -> list[tuple[str, int, int, int]]:
    """Runs, on one rank of several or alone; the (stage, epoch, step, row) of each sample shown."""
    shown: list[tuple[str, int, int, int]] = []
    step = Stage.training_step

    def noting(self: Stage, batch: Batch, number: int) -> None:
        if batch.share > 0:
            stage = Path(self.trainer.default_root_dir).name
            shown.extend((stage, batch.epoch, batch.step, row) for row in batch.index.tolist())
        step(self, batch, number)

    Stage.training_step = noting  # type: ignore[method-assign]
    point_wise, project_by = auxiliary.pointwise, projection.projection
    contrast = projection.MomentumContrast.forward
    # batch norms of modules have no frozen mode
    projection.projection = lambda width_in, hidden, width, _: project_by(width_in, hidden, width, False)
    auxiliary.pointwise = lambda *sizes: nn.Sequential(
        *(part for part in point_wise(*sizes) if not isinstance(part, nn.BatchNorm2d))
    )
    projection.MomentumContrast.forward = lambda self, *read: contrast(self.eval(), *read)  # type: ignore[method-assign]
    try:
        if dist.is_initialized():
            run_on_rank(folder, overrides, project)
        else:
            run_here(Path(folder), *overrides, project=project)
    finally:
        Stage.training_step = step  # type: ignore[method-assign]
        auxiliary.pointwise, projection.projection = point_wise, project_by
        projection.MomentumContrast.forward = contrast  # type: ignore[method-assign]
    return shown


def compare(
    folder: Path, ranks: int, overrides: tuple[str, ...], run_on_ranks: Any, project: Path | None = None
) -> None:
    """One process against several: images drawn, weights of each stage, and metrics by class."""
    alone = run_and_note(str(folder / "one"), overrides, project)
    several = (*overrides, f"trainer.devices={ranks}")
    shares = run_on_ranks(run_and_note, ranks, str(folder / "several"), several, project)
    assert sorted(alone) == sorted(row for share in shares for row in share), "other images were drawn"
    for stage in stages_of(folder / "one"):
        one, several = weights(folder / "one", stage), weights(folder / "several", stage)
        assert_equal_weights(one, several, tolerance=2e-5)
    one, several = (read_record(folder / name)["metrics"] for name in ("one", "several"))
    assert one.pop("per_class") == pytest.approx(several.pop("per_class"), abs=1e-9)
    assert one == pytest.approx(several, abs=1e-2)


def settings(method: str) -> tuple[str, ...]:
    """One epoch of each stage that the method trains, without batch statistics, which keep rates of 0.1 in bounds."""
    return tiny(method, "batch_norm=frozen", "optimizer.lr=0.005", epochs=1)


# LADE\'s regulariser is of each process\'s share of the batch (docs/recipes.md)
@pytest.mark.parametrize("method", every_method(QUICK, but=("lade",)))
def test_two_processes_train_what_one_trains(method: str, tmp_path: Path, run_on_ranks: Any) -> None:
    compare(tmp_path, 2, settings(method), run_on_ranks)


@pytest.mark.slow
def test_lade_takes_its_regulariser_of_each_process_and_draws_the_same_images(
    tmp_path: Path, run_on_ranks: Any
) -> None:
    """The one method whose loss is no mean over samples that processes could share; its images are the same."""
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        compare(tmp_path, 2, settings("lade"), run_on_ranks)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["crt", "mislas", "bkd", "glag"])
def test_four_processes_train_what_one_trains(method: str, tmp_path: Path, run_on_ranks: Any) -> None:
    compare(tmp_path, 4, settings(method), run_on_ranks)


def test_the_comparison_notices_a_sampler_that_draws_for_each_process(tmp_path: Path, run_on_ranks: Any) -> None:
    """The control: each process draws the right number of images, of the right classes on average, but not these."""
    wrong = f"stage2.sampler._target_={__name__}.PerRank"
    with pytest.raises(AssertionError, match="other images were drawn"):
        compare(tmp_path, 2, (*settings("crt"), wrong), run_on_ranks)
    one, two = weights(tmp_path / "one", "stage2"), weights(tmp_path / "several", "stage2")
    with pytest.raises(AssertionError):
        assert_equal_weights(one, two, tolerance=2e-5)


def run_without_averaging(folder: str, overrides: tuple[str, ...]) -> None:
    """The control: what every process but the first saw is forgotten."""
    average = batch_norm.average_running_statistics
    batch_norm.average_running_statistics = lambda module: None
    try:
        run_on_rank(folder, overrides)
    finally:
        batch_norm.average_running_statistics = average


def test_running_statistics_are_those_of_all_processes(tmp_path: Path, run_on_ranks: Any) -> None:
    """Of the first batch norm, whose input depends on no other: the mean is that of one process, the variance near."""
    stage1 = tmp_path / "stage1"
    run_here(stage1, "method=mixup", "stage1.epochs=1")
    overrides = (
        *("method=crt", f"stage1.checkpoint={stage1}", "stage_cache.enabled=false", "stage2.batch_norm=statistics"),
        *("stage2.epochs=2", "stage2.sampler.epoch_length=256"),  # whole batches, so that all shares are equal
    )
    run_here(tmp_path / "one", *overrides)
    run_on_ranks(run_on_rank, 2, str(tmp_path / "two"), (*overrides, "trainer.devices=2"))
    run_on_ranks(run_without_averaging, 2, str(tmp_path / "first"), (*overrides, "trainer.devices=2"))
    first_norm = "backbone.bn1"
    one, two, first = (weights(tmp_path / name, "stage2") for name in ("one", "two", "first"))
    mean, variance = f"{first_norm}.running_mean", f"{first_norm}.running_var"
    torch.testing.assert_close(two[mean], one[mean], rtol=1e-4, atol=1e-5)
    assert (two[variance] / one[variance] - 1).abs().max() < 0.05
    assert (first[mean] - one[mean]).abs().max() > 100 * (two[mean] - one[mean]).abs().max()
