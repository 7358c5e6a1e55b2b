"""Every runnable cell composes, to what its rule says."""

import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
import yaml
from runs import composed

from ltexp.config import names_stage, to_config
from ltexp.config.path import conf_dir
from ltexp.papers import all_cells, find_table, match_cells, published_only
from ltexp.reproduce.jobs import Job, job_of
from ltexp.reproduce.measured import Outputs
from ltexp.reproduce.plan import first_stage_key, make_plan
from ltexp.reproduce.stages import read_stages
from ltexp.training.composition import check_composition
from ltexp.training.learning import without_idle_epochs


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


def test_every_cell_runs_or_stays_a_published_figure_for_a_reason() -> None:
    of_reason = {rows: [cell for cell in all_cells() if rows.have(cell)] for rows in published_only()}
    listed = {cell.name for cells in of_reason.values() for cell in cells}
    for rows, cells in of_reason.items():
        assert cells, f"no cell of {rows.methods}"
        assert rows.why
    for cell in all_cells():
        reason = job_of(cell)
        assert isinstance(reason, Job) or cell.name in listed | UNKNOWN, (cell.name, reason)


def test_no_cell_is_a_published_figure_only_where_its_method_could_be_run() -> None:
    """A method with a file in conf/method/ is on the list for single tables or datasets alone."""
    for rows in published_only():
        for method in rows.methods:
            assert rows.tables or rows.datasets or not (conf_dir() / "method" / f"{method}.yaml").exists(), method


@pytest.mark.parametrize(
    ("name", "method", "settings"),
    [
        ("fbl/4.3/decoupling/imagenet_lt", "lws", ()),
        ("fbl/4.3/decoupling/inat18", "lws", ("stage1.epochs=200",)),
        ("gcl/5.3/decoupling/places_lt", "lws", ()),
        ("gcl/5.7/decoupling/imagenet_lt/few", "lws", ()),
        ("kps/3.3/decoupling/imagenet_lt/resnext50", "lws", ()),
        ("kps/3.3/decoupling/inat18", "tau_norm", ("stage1.epochs=200",)),
        ("glag/2/decoupling/cifar100_lt/100", "crt", ()),
        ("glag/4/bbn/inat18", "bbn", ("stage1.epochs=90",)),
        ("dasl/4/bbn:2x_schedule/inat18", "bbn", ()),
        ("mislas/3/remix_drw/cifar10_lt/100", "remix_drw", ("paper=remix",)),
        ("glag/2/m2m/cifar100_lt/100", "m2m", ()),
        ("dasl/1/m2m_ldam/cifar10_lt/10", "m2m_ldam", ()),
        ("bkd/4/disalign@200/inat18", "disalign", ("stage1.epochs=200",)),
        ("gcl/5.3/disalign/imagenet_lt", "disalign", ()),
    ],
)
def test_a_row_is_trained_as_it_says(name: str, method: str, settings: tuple[str, ...]) -> None:
    """Which method a row of "decoupling" is, and its epochs, by the figures that it prints."""
    (cell,) = match_cells(all_cells(), name)
    job = job_of(cell)
    assert isinstance(job, Job)
    assert (job.method, job.settings) == (method, settings)


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
        ("bkd/4/ce@90/inat18", ("paper=bkd",)),
        ("mislas/7/lws/inat18", ("stage1.epochs=200",)),  # quoted: its own settings, also where another paper quotes it
        ("bkd/4/lws@200/inat18", ("stage1.epochs=200",)),
        ("glag/1/ce/cifar100_lt/100", ("paper=glag",)),
        ("glag/2/ce/cifar100_lt/100", ()),
        ("glag/4/glag/inat18", ("backbone.weights=FILE",)),
    ],
)
def test_baselines_are_trained_as_their_paper_says(name: str, settings: tuple[str, ...]) -> None:
    (job,) = {job_of(cell) for cell in all_cells() if cell.name == name}
    assert isinstance(job, Job)
    assert job.settings == settings


def test_the_components_of_glag_stand_on_three_stages_1() -> None:
    jobs = {job for cell in find_table("glag/7").cells if isinstance(job := job_of(cell), Job)}
    assert (len(jobs), len({first_stage_key(job) for job in jobs})) == (7, 3)


def test_one_number_of_a_paper_has_one_composition() -> None:
    """Of two tables of the same paper."""
    tables = ("bkd/2/ce/", "bkd/7/ce:none/")
    jobs = {name: [job_of(cell) for cell in all_cells() if cell.name.startswith(name)] for name in tables}
    assert jobs["bkd/2/ce/"][:3] == jobs["bkd/7/ce:none/"]


def test_a_cell_that_needs_a_file_says_so_and_takes_any() -> None:
    (cell,) = match_cells(all_cells(), "glag/4/glag/inat18")
    plan = make_plan([cell], Outputs([]), [0], [])
    assert (list(plan.impossible), plan.to_run) == (["needs FILE: backbone.weights=FILE"], [])
    ((job, _),) = make_plan([cell], Outputs([]), [0], ["backbone.weights=ssp.pt"]).to_run
    assert job.settings == ("backbone.weights=ssp.pt",)


def whole_recipes() -> list[tuple[str, str, str]]:
    """(family, method whose settings they are, dataset) of conf/paper/."""
    owners = {
        "kps": "kps",
        "fbl": "fbl",
        "gcl": "gcl",
        "bkd": "kd",
        "dasl": "dasl",
        "mislas": "mislas",
        "ride": "ride_3",
    }
    sets = ("cifar10_lt", "imagenet_lt", "inat18")
    return [
        (family, method, dataset)
        for family, method in owners.items()
        for dataset in sets
        if (family, dataset) != ("bkd", "imagenet_lt")
    ]


@pytest.mark.parametrize(("family", "method", "dataset"), whole_recipes())
def test_a_papers_recipe_travels_whole(family: str, method: str, dataset: str) -> None:
    own = composed(f"method={method}", f"dataset={dataset}", small=False)
    other = composed("method=ce", f"dataset={dataset}", f"paper={family}", small=False)
    for key in ("epochs", "batch_size", "optimizer", "schedule", "augmentation"):
        assert other["stage1"][key] == own["stage1"][key], key
    assert other["dataset"] == own["dataset"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["glag/6/mislas:stage1=la/cifar100_lt/100", "gcl/5.7/arcface/imagenet_lt", "bkd/4/bkd@200/inat18"]
)
def test_cfg_job_prints_the_cell_that_is_trained(name: str) -> None:
    job = job_of(match_cells(all_cells(), name)[0])
    assert isinstance(job, Job)
    command = [sys.executable, "-m", "ltexp.train", *job.overrides, "--cfg", "job"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    elsewhere = ("paths", "stage_cache", "launcher", "overrides")  # where and how typed, not what
    printed = {key: node for key, node in yaml.safe_load(answer.stdout).items() if key not in elsewhere}
    frozen = yaml.safe_load(yaml.safe_dump(composed(*job.overrides, small=False)))
    assert printed == {key: node for key, node in frozen.items() if key not in elsewhere}


def test_a_stage_that_is_left_out_takes_no_settings() -> None:
    (cell,) = (cell for cell in all_cells() if cell.name == "mislas/1/crt:stage1_only/imagenet_lt/resnet10")
    job = job_of(cell)
    assert isinstance(job, Job)
    assert set(job.settings) == {"stage2=null", "paper=mislas"}


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
        assert set(stages) == {name for name in plain if names_stage(name) and plain[name] is not None}, job
        data = (job.dataset, job.imbalance, job.ratio, job.backbone)
        assert by_signature.setdefault((*data, stages["stage1"].signature), plain["stage1"]) == plain["stage1"], job


@pytest.mark.slow
def test_each_method_and_variant_composes_and_can_start() -> None:
    check(one_of_each())


@pytest.mark.slow
def test_every_runnable_cell_composes_and_can_start() -> None:
    check(runnable())
