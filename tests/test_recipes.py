"""The large sets: what a dataset's recipe, a paper's settings and a way of fine-tuning compose to."""

import math
from typing import Any

import pytest
import torch
from choices import CONF, names
from clips import beside
from runs import composed
from torch.optim import SGD

from ltexp.config import to_config
from ltexp.errors import ConfigError
from ltexp.training.composition import check_composition
from ltexp.training.learning import without_idle_epochs
from ltexp.training.schedules import build_schedule

LARGE = ("imagenet_lt", "places_lt", "inat18")
# epochs, batch size, learning rate, weight decay, schedule, its drops, colour jitter: method-facts of each paper
STAGE1: dict[tuple[str, str], tuple[Any, ...]] = {
    ("ce", "imagenet_lt"): (90, 512, 0.2, 5e-4, "Cosine", None, 0.4),  # Kang et al., ICLR 2020
    ("ce", "inat18"): (90, 512, 0.2, 1e-4, "Cosine", None, 0.0),
    ("ce", "places_lt"): (90, 256, 0.1, 5e-4, "Cosine", None, 0.4),  # MiSLAS, Table 5
    ("mislas", "imagenet_lt"): (180, 256, 0.1, 5e-4, "Cosine", None, 0.4),
    ("mislas", "inat18"): (200, 256, 0.1, 1e-4, "Cosine", None, 0.4),
    ("mislas", "places_lt"): (90, 256, 0.1, 5e-4, "Cosine", None, 0.4),
    ("gcl", "imagenet_lt"): (200, 256, 0.1, 2e-4, "MultiStep", [160, 180], 0.0),  # thesis, Table 5.1
    ("gcl", "places_lt"): (90, 512, 0.2, 5e-4, "MultiStep", [60, 80], 0.0),
    ("fbl", "inat18"): (180, 512, 0.2, 1e-4, "MultiStep", [120, 160], 0.0),
    ("kps_mixup", "imagenet_lt"): (180, 128, 0.1, 1e-4, "MultiStep", [120, 160], 0.0),
    ("dasl", "inat18"): (80, 512, 0.2, 1e-4, "MultiStep", [30, 60], 0.0),
    ("ride_3", "imagenet_lt"): (100, 256, 0.1, 2e-4, "MultiStep", [60, 80], 0.4),
    ("bkd", "places_lt"): (30, 256, 0.2, 5e-4, "MultiStep", [10, 20], 0.4),
    ("bkd", "inat18"): (90, 256, 0.2, 1e-4, "Cosine", None, 0.0),
}


def of(*overrides: str) -> dict[str, Any]:
    return composed(*overrides, small=False)


@pytest.mark.parametrize(("method", "dataset"), STAGE1, ids="-".join)
def test_stage_1_is_what_the_recipe_or_the_paper_says(method: str, dataset: str) -> None:
    plain = of(f"method={method}", f"dataset={dataset}")
    stages = [plain["stage1"], *([plain["stage2"]] if method == "bkd" else [])]  # the student trains as its teacher
    for stage in stages:
        optimizer, schedule = stage["optimizer"], stage["schedule"]
        found = (stage["epochs"], stage["batch_size"], optimizer["lr"], optimizer["weight_decay"])
        kind = schedule["_target_"].rpartition(".")[2]
        expected = STAGE1[method, dataset]
        drops = [round(point * stage["epochs"], 2) for point in schedule.get("milestones", [])] or None
        assert (
            *found,
            kind,
            drops and [math.ceil(drop) for drop in drops],
            stage["augmentation"]["jitter"],
        ) == expected
        assert plain["choices"]["schedule@stage1.schedule"] == kind.lower()
    if "Mixup" in stages[-1]["mixing"]["_target_"]:
        assert stages[-1]["mixing"]["alpha"] == 0.2


@pytest.mark.parametrize(
    ("method", "dataset"),
    [
        *((method, dataset) for method in ("kps", "fbl", "gcl") for dataset in LARGE),
        *((method, dataset) for method in ("dasl", "ride_3") for dataset in ("imagenet_lt", "inat18")),
        ("bkd", "places_lt"),
    ],
)
def test_the_drops_of_a_shortened_run_follow_its_epochs(method: str, dataset: str) -> None:
    """At half of the paper's epochs each drop comes at half of its epoch."""
    whole = of(f"method={method}", f"dataset={dataset}")["stage1"]
    epochs = whole["epochs"]
    half = of(f"method={method}", f"dataset={dataset}", f"stage1.epochs={epochs // 2}")["stage1"]
    factors = [
        build_schedule(stage["schedule"], SGD([torch.zeros(1)], lr=1.0), stage["epochs"], 1)[0].lr_lambdas[0]
        for stage in (whole, half)
    ]
    late = range(epochs // 5, epochs // 2)
    assert [factors[1](epoch) for epoch in late] == pytest.approx([factors[0](2 * epoch) for epoch in late])
    assert factors[1](epochs // 2 - 1) == pytest.approx(0.01)


def test_a_drop_behind_the_end_of_a_stage_is_refused() -> None:
    refused = r"invalid stage1.schedule.milestones=\[120, 160\]: expected fractions .*, or epochs that it .* below 130"
    with pytest.raises(ConfigError, match=refused):
        check_composition(to_config(of("method=ce", "stage1.epochs=130", "stage1.schedule.milestones=[120,160]")))
    # a stage without epochs has no such end
    idle = ("method=tau_norm", "schedule@stage2.schedule=multistep", "stage2.schedule.milestones=[120,160]")
    check_composition(without_idle_epochs(to_config(of(*idle))))


def test_mislas_on_the_large_sets_has_its_authors_smoothing_and_rates() -> None:
    for dataset, factors in {"imagenet_lt": (0.3, 0.0), "inat18": (0.3, 0.0), "places_lt": (0.4, 0.1)}.items():
        stage = of("method=mislas", f"dataset={dataset}")["stage2"]
        assert (stage["loss"]["head_smoothing"], stage["loss"]["tail_smoothing"]) == factors
        assert stage["lr_factors"]["classifier"] == {"shift": 0.05, "bias": 0.05}
        assert (stage["epochs"], stage["batch_size"], stage["optimizer"]["lr"]) == (10, 256, 0.1)


def test_a_student_follows_its_teachers_schedule_unless_one_is_typed() -> None:
    large = ("method=bkd", "dataset=imagenet_lt")
    assert of(*large)["stage2"]["schedule"] == {
        "_target_": "ltexp.training.schedules.Cosine",
        "warmup_epochs": 0,
        "warmup_start": 0.0,
        "interval": "epoch",
    }
    assert of(*large, "stage1.schedule.warmup_epochs=3")["stage1"]["schedule"]["warmup_epochs"] == 3
    typed = of(*large, "schedule@stage2.schedule=constant")["stage2"]
    assert typed["schedule"]["_target_"].endswith("Constant")
    both = of("method=kd", "dataset=cifar10_lt", "schedule@stage1.schedule=cosine", "stage1.schedule.warmup_epochs=3")
    assert both["stage2"]["schedule"]["_target_"].endswith("Cosine")
    steps = of("method=kd", "dataset=cifar10_lt", "stage1.schedule.milestones=[5,7]")
    assert steps["stage2"]["schedule"] == steps["stage1"]["schedule"]


TUNINGS = sorted(path.stem for path in (CONF / "fine_tuning").glob("*.yaml") if "tuning:" in path.read_text())


def test_a_tuning_is_for_a_network_of_timm_on_any_dataset() -> None:
    assert len(TUNINGS) == 9
    for choice in TUNINGS:
        chosen = ("method=gcl", "backbone=timm", "backbone.weights=vit.pth", f"fine_tuning={choice}")
        for dataset in ("places_lt", "cifar10_lt", "image_folder"):
            tuning = of(*chosen, f"dataset={dataset}")["backbone"]["tuning"]
            assert tuning["_target_"].startswith("ltexp.models.tuning."), choice


@pytest.mark.parametrize("choice", sorted({*names("fine_tuning")} - {*TUNINGS}))
def test_each_way_of_fine_tuning_is_a_choice_on_any_dataset(choice: str) -> None:
    expected = {
        "none": (None, False, False),
        "new_last_block": ("IMAGENET1K_V1", True, True),
        "last_block": ("IMAGENET1K_V1", True, False),
        "whole": ("IMAGENET1K_V1", False, False),
    }[choice]
    for overrides in (("dataset=places_lt", f"fine_tuning={choice}"), ("backbone=resnet18", f"fine_tuning={choice}")):
        plain = of("method=gcl", *overrides)
        backbone = plain["backbone"]
        assert (backbone["weights"], backbone["frozen_trunk"], backbone["fresh_last_block"]) == expected
        factors = {"backbone": 0.01} if choice == "whole" else {}
        assert plain["stage1"]["lr_factors"] == plain["stage2"]["lr_factors"] == factors
    assert of("method=ce", "dataset=places_lt")["choices"]["fine_tuning"] == "new_last_block"


def test_another_classifier_leaves_the_backbones_rate_alone() -> None:
    typed = (
        "dataset=places_lt",
        "fine_tuning=whole",
        "classifier@stage2.classifier=linear",
        "stage2.init.classifier=fresh",
    )
    assert of("method=mislas", *typed)["stage2"]["lr_factors"] == {"backbone": 0.01}


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [*LARGE, "image_folder", "image_list", "image_csv"])
def test_every_method_composes_on_every_large_set(dataset: str) -> None:
    for method in names("method"):
        overrides = [f"method={method}", f"dataset={dataset}", *beside(method)]
        if method.startswith(("ride", "sade")) and dataset == "places_lt":
            with pytest.raises(ConfigError, match="fine_tuning=none"):
                of(*overrides)
            overrides += ["fine_tuning=none", "backbone=resnet50"]
        plain = of(*overrides)
        check_composition(without_idle_epochs(to_config(plain)))
        if plain["stage2"] is not None and "distillation" in plain["stage2"]["terms"]:
            assert plain["stage2"]["schedule"] == plain["stage1"]["schedule"], method
