"""Every runnable cell composes, to what its rule says."""

from collections.abc import Iterable
from typing import Any

import pytest
from runs import composed

from ltexp.config import to_config
from ltexp.config.path import conf_dir
from ltexp.papers import all_cells
from ltexp.reproduce.jobs import Job, job_of
from ltexp.reproduce.stages import read_stages
from ltexp.training.composition import check_composition, without_idle_epochs


def runnable() -> list[Job]:
    jobs = {job: None for cell in all_cells() if isinstance(job := job_of(cell), Job)}
    return list(jobs)


def one_of_each() -> list[Job]:
    """A job for each method and variant, rather than for each dataset and ratio as well."""
    found: dict[Any, Job] = {}
    for job in sorted(runnable(), key=lambda job: (job.ratio != 100, job.dataset != "cifar100_lt")):
        found.setdefault((job.method, job.settings), job)
    return list(found.values())


UNKNOWN = {"gcl/5.6/gcl:retrain=tau_norm/cifar10_lt/100"}  # what the paper does not print decides the number


def test_every_cell_runs_whose_method_dataset_and_backbone_exist() -> None:
    for cell in all_cells():
        if not isinstance(reason := job_of(cell), Job) and cell.name not in UNKNOWN:
            lacking = [("method", cell.method), ("dataset", cell.dataset), ("backbone", cell.backbone)]
            assert any(not (conf_dir() / group / f"{name}.yaml").exists() for group, name in lacking), cell.name
            assert reason.startswith("ltexp has no "), reason


def test_the_curves_of_glags_table_5_stand_on_glags_own_stage_1() -> None:
    """Its rows re-train cRT's classifier, and repeat what GLAG's settings say of stage 1."""
    cells = [cell for cell in all_cells() if (cell.paper, cell.table) == ("glag", "5")]
    (cell,) = (cell for cell in cells if "convex_c2" in str(cell.variant))
    job = job_of(cell)
    assert isinstance(job, Job)
    glag = ["method=glag", "dataset=cifar100_lt", "dataset.imbalance_ratio=100", "backbone=resnet32"]
    assert composed(*job.overrides, small=False)["stage1"] == composed(*glag, small=False)["stage1"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dasl/2/crt_mixup/cifar100_lt/100", ("paper=dasl",)),  # trained as the paper's own method
        ("dasl/4/dasl/inat18", ()),  # prints the 80 + 10 epochs together
        ("dasl/3/lws/imagenet_lt/resnet10", ()),  # no baseline of the paper's own
        ("mislas/6/mislas/imagenet_lt/resnet50", ()),  # prints the epochs that it has anyway
        ("bkd/4/bkd@200/inat18", ("stage1.epochs=200", "stage2.epochs=200")),
        ("bkd/4/ce@90/inat18", ("stage1.batch_size=256",)),
    ],
)
def test_baselines_are_trained_as_their_paper_says(name: str, settings: tuple[str, ...]) -> None:
    (job,) = {job_of(cell) for cell in all_cells() if cell.name == name}
    assert isinstance(job, Job)
    assert job.settings == settings


def test_a_stage_that_is_left_out_takes_no_settings() -> None:
    (cell,) = (cell for cell in all_cells() if cell.name == "mislas/1/crt:stage1_only/imagenet_lt/resnet10")
    job = job_of(cell)
    assert isinstance(job, Job)
    assert set(job.settings) == {"stage2=null", "stage1.epochs=180", "stage1.batch_size=256", "stage1.optimizer.lr=0.1"}


def check(jobs: Iterable[Job]) -> None:
    by_signature: dict[Any, Any] = {}
    for job in jobs:
        plain = composed(*job.overrides, small=False)
        check_composition(without_idle_epochs(to_config(plain)))  # what a run checks before it trains
        assert plain["choices"]["method"] == job.method
        assert plain["choices"]["backbone"] == job.backbone
        assert plain["dataset"]["name"] == job.dataset
        if job.ratio is not None:
            assert plain["dataset"]["imbalance_ratio"] == job.ratio
            assert plain["dataset"]["imbalance"] == job.imbalance
        stages = read_stages(job.overrides)
        assert set(stages) == {name for name in ("stage1", "stage2") if plain[name] is not None}, job
        data = (job.dataset, job.imbalance, job.ratio, job.backbone)
        assert by_signature.setdefault((*data, stages["stage1"].signature), plain["stage1"]) == plain["stage1"], job


@pytest.mark.slow
def test_each_method_and_variant_composes_and_can_start() -> None:
    check(one_of_each())


@pytest.mark.slow
def test_every_runnable_cell_composes_and_can_start() -> None:
    check(runnable())
