"""Two processes train what one process trains, in the sense that batch statistics allow."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from runs import assert_equal_weights, run_here, weights

FROZEN = ("method=crt_mixup", "stage2.epochs=2", "stage_cache.enabled=false")


def run_on_rank(folder: str, overrides: tuple[str, ...]) -> None:
    """What one process of torch's launcher does; the pool of the tests has joined the processes already."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(dist.get_rank()),
        "LOCAL_RANK": str(dist.get_rank()),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(dist.get_world_size()),
        "LOCAL_WORLD_SIZE": str(dist.get_world_size()),
    }
    run_here(Path(folder), *overrides)


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
    ],
    ids=["class_aware", "mixup", "weighted"],
)
def test_two_processes_equal_one_where_no_batch_statistics_are_taken(
    choice: tuple[str, ...], stage1: Path, tmp_path: Path, run_on_ranks: Any
) -> None:
    # 321 training images in batches of 64: the last batch takes the one left over, and its 65 are an odd share
    overrides = (*FROZEN, f"stage1.checkpoint={stage1}", "stage2.batch_norm=frozen", *choice)
    run_here(tmp_path / "one", *overrides)
    run_on_ranks(run_on_rank, 2, str(tmp_path / "two"), (*overrides, "trainer.devices=2"))
    assert_equal_weights(weights(tmp_path / "one", "stage2"), weights(tmp_path / "two", "stage2"), tolerance=1e-5)


def test_the_comparison_notices_another_seed(stage1: Path, tmp_path: Path, run_on_ranks: Any) -> None:
    overrides = (*FROZEN, f"stage1.checkpoint={stage1}", "stage2.batch_norm=frozen")
    run_here(tmp_path / "one", *overrides)
    run_on_ranks(run_on_rank, 2, str(tmp_path / "two"), (*overrides, "trainer.devices=2", "seed=1"))
    with pytest.raises(AssertionError):
        assert_equal_weights(weights(tmp_path / "one", "stage2"), weights(tmp_path / "two", "stage2"), tolerance=1e-5)
