"""Two processes train what one process trains, in the sense that batch statistics allow."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from runs import assert_equal_weights, run_here, weights
from torch import Tensor

from ltexp import distributed
from ltexp.data.loader import Batch
from ltexp.distributed import gather_batch, gather_with_gradient, own_rows, world_size
from ltexp.run_folder import read_metrics
from ltexp.training.predict import Collector
from ltexp.training.run_stage import StageCache

RUNS = ("one", "two")
FROZEN = ("method=crt_mixup", "stage2.epochs=2", "stage_cache.enabled=false")


def run_on_rank(folder: str, overrides: tuple[str, ...], project: Path | None = None) -> None:
    """What one process of torch's launcher does; the pool of the tests has joined the processes already."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(dist.get_rank()),
        "LOCAL_RANK": str(dist.get_rank()),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(dist.get_world_size()),
        "LOCAL_WORLD_SIZE": str(dist.get_world_size()),
    }
    run_here(Path(folder), *overrides, project=project)


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage1") / "run"
    run_here(folder, "method=mixup", "stage1.epochs=3")
    return folder


@pytest.mark.parametrize(
    "choice",
    [
        ("sampler@stage2.sampler=class_aware",),
        ("sampler@stage2.sampler=class_balanced", "mixing@stage2.mixing=mixup"),
        ("sampler@stage2.sampler=instance_balanced", "loss@stage2.loss=weighted_cross_entropy"),
        ("loss@stage2.loss=online_label_smoothing", "stage2.epochs=3"),
    ],
    ids=["class_aware", "mixup", "weighted", "online soft labels"],
)
def test_two_processes_equal_one_where_no_batch_statistics_are_taken(
    choice: tuple[str, ...], stage1: Path, tmp_path: Path, run_on_ranks: Any
) -> None:
    # 321 training images in batches of 64: the last batch takes the one left over, and its 65 are an odd share
    overrides = (*FROZEN, f"stage1.checkpoint={stage1}", "stage2.batch_norm=frozen", *choice)
    run_here(tmp_path / "one", *overrides)
    run_on_ranks(run_on_rank, 2, str(tmp_path / "two"), (*overrides, "trainer.devices=2"))
    assert_equal_weights(weights(tmp_path / "one", "stage2"), weights(tmp_path / "two", "stage2"), tolerance=1e-5)
    losses = [[float(row["train_loss"]) for row in read_metrics(tmp_path / n / "stage2/metrics.csv")] for n in RUNS]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_comparison_notices_batch_statistics(stage1: Path, tmp_path: Path, run_on_ranks: Any) -> None:
    """The control: where each process normalises its own share of the batch, the weights do differ."""
    overrides = (*FROZEN, f"stage1.checkpoint={stage1}", "stage2.batch_norm=statistics")
    run_here(tmp_path / "one", *overrides)
    run_on_ranks(run_on_rank, 2, str(tmp_path / "two"), (*overrides, "trainer.devices=2"))
    with pytest.raises(AssertionError):
        assert_equal_weights(weights(tmp_path / "one", "stage2"), weights(tmp_path / "two", "stage2"), tolerance=1e-5)


def run_on_a_slow_second_rank(folder: str, overrides: tuple[str, ...]) -> None:
    """Rank 1 comes to the cache when rank 0 has already copied the stage into the folder."""
    reserve = StageCache.reserve
    if dist.get_rank() == 1:

        @contextmanager
        def late(self: StageCache, fingerprint: str) -> Iterator[None]:
            time.sleep(1)
            with reserve(self, fingerprint):
                yield

        StageCache.reserve = late  # type: ignore[method-assign]
    try:
        run_on_rank(folder, overrides)
    finally:
        StageCache.reserve = reserve  # type: ignore[method-assign]


def test_processes_agree_on_a_cached_stage(tmp_path: Path, run_on_ranks: Any) -> None:
    overrides = ("method=crt", "stage1.epochs=1", "stage2.epochs=1", "trainer.devices=2")
    run_on_ranks(run_on_rank, 2, str(tmp_path / "one"), overrides)
    run_on_ranks(run_on_a_slow_second_rank, 2, str(tmp_path / "two"), overrides)
    assert_equal_weights(weights(tmp_path / "one", "stage2"), weights(tmp_path / "two", "stage2"))


def pairs(rows: Tensor, everything: Tensor) -> Tensor:
    """A loss of each row that depends on all."""
    return (rows @ everything.T).square().mean(1)


def gradient_of_own_rows(total: int, with_gradient: bool) -> list[list[float]]:
    """Of the mean over processes of each one's mean, counted by its share, as DDP has it."""
    everything = torch.arange(3.0 * total).sin().view(total, 3)
    mine = own_rows(total)
    own = everything[mine].requires_grad_()
    gather = gather_with_gradient if with_gradient else gather_batch
    share = 0.0 if dist.get_rank() >= total else len(mine) * world_size() / total
    (pairs(own, gather(own, total)).mean() * share).backward()
    assert own.grad is not None
    return (own.grad / world_size()).tolist()


@pytest.mark.parametrize("total", [6, 5, 1])  # equal shares, unequal ones, and a process without rows
def test_a_loss_over_the_global_batch_has_its_gradient_on_each_process(total: int, run_on_ranks: Any) -> None:
    """Against autograd on one process; without the other processes' part of the gradient, the control differs."""
    rows = torch.arange(3.0 * total).sin().view(total, 3).requires_grad_()
    pairs(rows, rows).mean().backward()
    assert rows.grad is not None
    shares = run_on_ranks(gradient_of_own_rows, 2, total, True)
    for rank in range(min(total, 2)):
        torch.testing.assert_close(torch.tensor(shares[rank]), rows.grad[rank::2])
    if total == 1:
        assert shares[1] == [[0.0] * 3]
    control = run_on_ranks(gradient_of_own_rows, 2, total, False)
    assert not torch.allclose(torch.tensor(control[0]), rows.grad[0::2])


def said_of_a_split(rows: int, classes: int) -> tuple[list[list[float]], list[int], list[float]]:
    """(logits, classes, confidence) of one process: the loader's shares of `rows` samples in batches of 8."""
    values = torch.arange(float(rows * (classes + 1))).mul(0.7).sin().view(rows, classes + 1)
    everything = torch.arange(rows)
    collector = Collector(rows)
    for step, index in enumerate(everything.split(8)):
        mine = index[own_rows(len(index))]
        share = 0.0 if dist.is_initialized() and dist.get_rank() >= len(index) else 1.0
        batch = Batch(torch.empty(0), mine % classes, mine, share, len(index), 0, step)
        collector.add(batch, values[mine])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "PIECE", 50)  # bytes: two rows
        top1, predictions = collector.top1(30.0), collector.predictions()
    assert top1.labels.tolist() == (everything % classes).tolist()
    assert top1.feature_norms.tolist() == values[:, -1].tolist()
    return predictions.logits.tolist(), top1.classes.tolist(), top1.confidence.tolist()


def test_logits_of_all_processes_come_to_the_first_alone(run_on_ranks: Any) -> None:
    """Against one process, bit by bit; the last batch of 1 row leaves three of four processes a stand-in."""
    alone = said_of_a_split(17, 5)
    values = torch.arange(17 * 6.0).mul(0.7).sin().view(17, 6)[:, :5]
    assert torch.equal(torch.tensor(alone[0]), values)
    assert alone[1] == values.argmax(1).tolist()
    expected = (30.0 * values.double()).softmax(1).amax(1)
    torch.testing.assert_close(torch.tensor(alone[2], dtype=torch.float64), expected)
    first, *others = run_on_ranks(said_of_a_split, 4, 17, 5)
    assert first == alone
    assert all(other == ([], *alone[1:]) for other in others)
