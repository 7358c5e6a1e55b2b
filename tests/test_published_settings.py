"""Every runnable cell that its paper trains itself is composed as printed, or a reason stands beside the rows."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from runs import composed
from torch import nn
from torch.optim import SGD

from ltexp.papers import Cell, all_cells, find_paper, load_papers
from ltexp.reproduce.jobs import Job, job_of

Settings = dict[str, Any]
TABLES = [f"{paper.id}/{number}" for paper in load_papers().values() for number in paper.tables]
SCHEDULES = {"MultiStep": "multi_step", "Cosine": "cosine"}
SAMPLERS = {"InstanceBalanced": "instance_balanced", "ClassAware": "class_balanced", "ClassBalanced": "class_balanced"}


def is_trained_by_its_paper(cell: Cell) -> bool:
    return cell.own is True or bool(find_paper(cell.paper).overrides_of(cell))


def read(record: Settings) -> Settings:
    """A record of a paper's settings, under one name for each."""
    found = dict(record)
    if "lr_decay_epochs" in record:
        found |= {"lr_schedule": "multi_step", "lr_decay": (record["lr_decay"], *record["lr_decay_epochs"])}
    if "epochs" in record and "stage1_epochs" not in record:
        found["stage1_epochs"] = record["epochs"]
    return found


def printed(cell: Cell) -> dict[str, list[Any]]:
    """All values that the paper prints of each setting of the cell: for all data, for its data, in its row."""
    found: dict[str, list[Any]] = defaultdict(list)
    for dataset in (cell.dataset, "all"):
        of_data: dict[str, list[Any]] = defaultdict(list)
        for record in find_paper(cell.paper).settings:
            if record["dataset"] == dataset and record.get("backbone", cell.backbone) == cell.backbone:
                for key, value in read(record).items():
                    of_data[key].append(value)
        for key, values in of_data.items():
            found.setdefault(key, values)  # what is printed for all data are defaults
    if cell.epochs is not None:
        found["stage1_epochs"] = [*found["stage1_epochs"], cell.epochs] if cell.paper == "dasl" else [cell.epochs]
    return found


def factors(stage: Mapping[str, Any]) -> list[float]:
    """The learning rate of each epoch over the base rate."""
    schedule = instantiate(stage["schedule"], SGD(nn.Linear(1, 1).parameters(), lr=1.0), epochs=stage["epochs"])
    return [schedule.factor(epoch) for epoch in range(stage["epochs"])]


def drops(stage: Mapping[str, Any], decay: float, *epochs: int) -> bool:
    warm = int(stage["schedule"]["warmup_epochs"])
    expected = [decay ** sum(epoch >= drop for drop in epochs) for epoch in range(stage["epochs"])]
    return factors(stage)[warm:] == pytest.approx(expected[warm:])


def measured(plain: Mapping[str, Any]) -> Settings:
    """What is composed, under the names of the papers' settings; a part that is not chosen has no entry."""
    one, two = plain["stage1"], plain["stage2"]
    name = one["loss"]["_target_"].rpartition(".")[2]
    found: Settings = {
        "stage1_epochs": one["epochs"],
        "batch_size": one["batch_size"],
        "lr": one["optimizer"]["lr"],
        "momentum": one["optimizer"]["momentum"],
        "weight_decay": one["optimizer"]["weight_decay"],
        "optimizer": one["optimizer"]["_target_"].rpartition(".")[2].lower(),
        "lr_schedule": SCHEDULES[one["schedule"]["_target_"].rpartition(".")[2]],
        "warmup_epochs": one["schedule"]["warmup_epochs"],
        "warmup": one["schedule"]["warmup_epochs"] > 0,
        "stage1_sampler": SAMPLERS.get(one["sampler"]["_target_"].rpartition(".")[2]),
        "init": "pretrained" if plain["backbone"].get("weights") or plain["backbone"].get("vectors") else "scratch",
    }
    if "alpha" in one["mixing"]:
        found["mixup_alpha"] = one["mixing"]["alpha"]
    if name == "KeyPoint":
        found["m_max"] = one["loss"]["max_margin"]
    if name == "GradualBalanced":
        found |= {"graloss_c": one["loss"]["c"], "graloss_s": 1.0 if one["loss"]["s"] is None else one["loss"]["s"]}
    if "attention" in one["terms"]:
        found["beta"] = one["terms"]["attention"]["weight"]
    if two is not None and two["epochs"] and not two["trainable"]["backbone"]:
        found["stage2_epochs"] = two["epochs"]
        found["stage2_lr_schedule"] = SCHEDULES[two["schedule"]["_target_"].rpartition(".")[2]]
        found["stage2_sampler"] = SAMPLERS.get(two["sampler"]["_target_"].rpartition(".")[2])
        if "head_smoothing" in two["loss"]:
            found |= {"eps_1": two["loss"]["head_smoothing"], "eps_k": two["loss"]["tail_smoothing"]}
            found["delta_w_lr_ratio"] = two["lr_factors"]["classifier"]["shift"]
    distillation = two["terms"].get("distillation", {}) if two is not None else {}
    if "temperature" in distillation.get("loss", {}):
        found |= {"temperature": distillation["loss"]["temperature"], "kd_lambda": distillation["weight"]}
        if "beta" in distillation["loss"]:
            found["cb_beta"] = distillation["loss"]["beta"]
    return found


def agrees(key: str, value: Any, values: list[Any]) -> bool:
    if key == "init":
        return any((value == "scratch") == (text == "scratch") for text in values)
    return any(value == text or (isinstance(text, float) and value == pytest.approx(text)) for text in values)


def differences(cell: Cell, plain: Mapping[str, Any]) -> set[str]:
    """The settings that are composed otherwise than printed."""
    asked, found = printed(cell), measured(plain)
    unlike = {key for key, value in found.items() if key in asked and not agrees(key, value, asked[key])}
    if "lr_decay" in asked and not any(drops(plain["stage1"], *texts) for texts in asked["lr_decay"]):
        unlike.add("lr_decay")
    return unlike


def walk(cells: list[Cell]) -> tuple[dict[tuple[str, str], str], set[int]]:
    """(differences without a reason, with what is composed, by row and key; the reasons that were needed, by id)."""
    compositions: dict[Job, dict[str, Any]] = {}
    without, needed = {}, set()
    for cell in cells:
        job = job_of(cell)
        if not isinstance(job, Job) or not is_trained_by_its_paper(cell):
            continue
        plain = compositions.setdefault(job, {}) or composed(*job.overrides, small=False)
        compositions[job] = plain
        for key in differences(cell, plain):
            reasons = [known for known in find_paper(cell.paper).differences if key in known.keys and known.have(cell)]
            needed |= {id(known) for known in reasons[:1]}
            if not reasons:
                value = measured(plain).get(key)
                row = f"{cell.paper}/{cell.table}/{cell.row}/{cell.dataset}"
                without[row, key] = f"{value}, printed {printed(cell)[key]}"
    return without, needed


@pytest.mark.slow
def test_every_cell_is_composed_as_printed_or_has_a_reason() -> None:
    without, needed = walk(all_cells())
    assert not without, "\n".join(f"{cell} {key}: {text}" for (cell, key), text in without.items())
    idle = [known.text for paper in load_papers().values() for known in paper.differences if id(known) not in needed]
    assert not idle


@pytest.mark.slow
def test_one_row_of_each_paper_is_composed_as_printed_or_has_a_reason() -> None:
    kinds = {
        (cell.paper, cell.method, cell.dataset): cell for cell in reversed(all_cells()) if cell.ratio in (None, 100)
    }
    without, _ = walk([cell for cell in kinds.values() if cell.dataset in ("cifar100_lt", "inat18")])
    assert not without, "\n".join(f"{cell} {key}: {text}" for (cell, key), text in without.items())


def test_a_row_that_two_papers_print_alike_in_all_splits_is_one_run() -> None:
    """Equal digits for all, many, medium and few are one training, quoted by the second paper."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = defaultdict(dict)
    for cell in all_cells():
        where = (cell.method, cell.dataset, cell.imbalance, cell.ratio, cell.backbone)
        rows[cell.paper, cell.table, cell.row, where][cell.split] = (cell.accuracy, job_of(cell))
    alike: dict[tuple[Any, ...], dict[str, Any]] = defaultdict(dict)
    for (paper, table, row, where), splits in rows.items():
        if {"all", "few"} <= set(splits):
            digits = tuple((split, accuracy) for split, (accuracy, _) in sorted(splits.items()))
            alike[where, digits][f"{paper}/{table}/{row}"] = splits["all"][1]
    shared = [jobs for jobs in alike.values() if len(jobs) > 1]
    assert len(shared) >= 4  # such as tau_norm and lws on iNaturalist 2018 and Places-LT
    assert [jobs for jobs in shared if len(set(jobs.values())) > 1] == []


def test_the_reasons_are_in_the_documentation() -> None:
    text = (Path(__file__).parents[1] / "docs" / "reproduce.md").read_text()
    listed = [line.removeprefix("- ") for line in text.splitlines() if line.startswith("- `")]
    assert listed == [f"`{paper.id}` {known.text}" for paper in load_papers().values() for known in paper.differences]


def test_second_stages_follow_the_first() -> None:
    """GLAG's Eq. 11 has stage 1's alpha; DaSL's terms have one set of keys."""
    glag = composed("method=glag", "dataset=cifar100_lt", "stage1.loss.c=8", small=False)
    assert glag["stage2"]["terms"]["head_distillation"]["loss"]["c"] == 8
    key = "stage1.terms.soft_labels.loss.squared_factor=false"
    dasl = composed("method=dasl", "dataset=cifar100_lt", key, small=False)
    assert dasl["stage2"]["terms"]["soft_labels"]["loss"]["squared_factor"] is False


def test_ride_on_the_large_sets_is_its_authors_code() -> None:
    for dataset, factor in (("imagenet_lt", 0.02), ("inat18", 0.015)):
        stage = composed("method=ride_3", f"dataset={dataset}", small=False)["stage1"]
        assert (stage["loss"]["rarity"], stage["optimizer"]["nesterov"]) == (factor, True)


def test_mislas_is_there_as_its_table_5_prints_it() -> None:
    plain = composed("method=mislas", "dataset=inat18", "paper=mislas_table5", small=False)
    found = measured(plain)
    assert (found["eps_1"], found["eps_k"], found["stage2_epochs"]) == (0.4, 0.1, 30)
