"""DaSL as a method: its equations as weighted terms, its ablations, and an auxiliary network of training only."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_equal_weights, composed, run_here, weights
from test_distributed_run import run_on_rank
from texts import write_articles

from ltexp import evaluate
from ltexp.config import to_config
from ltexp.config.identity import differing_keys
from ltexp.errors import ConfigError
from ltexp.models.backbone import Backbone

SHORT = ("stage1.epochs=2", "stage2.epochs=2")
LATE = (
    "~module@stage1.modules.auxiliary",
    "~loss@stage1.terms.auxiliary.loss",
    "module@stage2.modules.auxiliary=two_way",
    "stage2.modules.auxiliary.start=fresh",
)
ZERO = (
    "stage1.terms.auxiliary.weight=0",
    "stage1.terms.soft_labels.weight=0",
    "stage1.terms.attention.weight=0",
    "stage2.terms.auxiliary.weight=0",
    "stage2.terms.soft_labels.weight=0",
)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "record.json").read_text())


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baseline") / "run"
    run_here(folder, "method=crt_mixup", *SHORT)
    return folder


@pytest.fixture(scope="module")
def dasl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dasl") / "run"
    run_here(folder, "method=dasl", *SHORT)
    return folder


def test_the_objectives_are_equations_9_and_12() -> None:
    plain = composed("method=dasl", "dataset=cifar100_lt", small=False)
    kinds = {
        "auxiliary": "AuxiliaryCrossEntropy",
        "soft_labels": "AuxiliarySoftLabels",
        "attention": "AttentionDistillation",
    }
    for stage, expected in (
        ("stage1", {"auxiliary": 1.0, "soft_labels": 1.0, "attention": 100.0}),
        ("stage2", {"auxiliary": 1.0, "soft_labels": 1.0}),
    ):
        terms = plain[stage]["terms"]
        assert {name: term["weight"] for name, term in terms.items()} == expected
        assert all(term["loss"]["_target_"].endswith(kinds[name]) for name, term in terms.items())
        assert plain[stage]["loss"]["_target_"].endswith("CrossEntropy")
    assert plain["stage2"]["init"] == {"backbone": "stage1", "classifier": "fresh"}
    one, two = (plain[stage]["modules"]["auxiliary"] for stage in ("stage1", "stage2"))
    assert two == one | {"start": "stage1"}


@pytest.mark.parametrize(
    ("override", "keys"),
    [
        (
            "module@stage1.modules.auxiliary=single_way",
            {"stage1.modules.auxiliary._target_", "stage2.modules.auxiliary._target_"},
        ),
        ("stage1.terms.attention.weight=250", {"stage1.terms.attention.weight"}),
        (
            "stage1.terms.soft_labels.loss.temperature=2",
            {"stage1.terms.soft_labels.loss.temperature", "stage2.terms.soft_labels.loss.temperature"},
        ),
        ("sampler@stage1.sampler=class_aware", {"stage1.sampler._target_", "stage1.sampler.images_per_class"}),
        ("sampler@stage2.sampler=instance_balanced", {"stage2.sampler._target_", "stage2.sampler.images_per_class"}),
    ],
)
def test_an_ablation_is_one_key_that_changes_what_it_says(override: str, keys: set[str]) -> None:
    base, changed = (to_config(composed("method=dasl", *more)) for more in ((), (override,)))
    assert set(differing_keys(base, changed)) == keys


def test_soft_labels_in_one_stage_leave_the_other_the_baselines() -> None:
    first, second = (composed("method=dasl", f"soft_labels=stage{number}") for number in (1, 2))
    base = composed("method=crt_mixup")
    assert first["stage2"] == base["stage2"]
    assert set(second["stage1"]["terms"]) == {"auxiliary"}
    assert second["stage1"]["modules"]["auxiliary"]["detached"]


@pytest.mark.parametrize("method", ["dasl", "ls", "ols"])
@pytest.mark.parametrize("dataset", ["cifar10_lt", "cifar100_lt"])
def test_settings_of_the_paper_on_cifar(method: str, dataset: str) -> None:
    plain = composed(f"method={method}", f"dataset={dataset}", small=False)
    one, two = plain["stage1"], plain["stage2"]
    assert (plain["backbone"]["depth"], one["epochs"], two["epochs"], one["batch_size"]) == (32, 160, 40, 128)
    assert (one["optimizer"]["lr"], one["optimizer"]["weight_decay"]) == (0.2, 2e-4)
    schedule = one["schedule"]
    assert [round(point * 160) for point in schedule["milestones"]] == [140, 150]
    assert (schedule["decay"], schedule["warmup_epochs"]) == (0.1, 5)
    assert two["schedule"]["_target_"].endswith("MultiStep")
    assert (one["mixing"]["alpha"], two["mixing"]["_target_"].rpartition(".")[2]) == (1.0, "NoMixing")


def test_smoothing_is_that_of_equation_1_and_one_stage_is_one_key() -> None:
    plain = composed("method=ls")
    assert plain["stage1"]["loss"] == plain["stage2"]["loss"]
    assert (plain["stage1"]["loss"]["epsilon"], plain["stage1"]["loss"]["spread"]) == (0.1, "others")
    one = composed("method=ls", "loss@stage2.loss=cross_entropy")
    assert one["stage1"]["loss"] == plain["stage1"]["loss"]
    assert one["stage2"]["loss"] == composed("method=crt_mixup")["stage2"]["loss"]


def test_the_baseline_takes_the_papers_settings_by_one_key() -> None:
    plain = composed("method=crt_mixup", "dataset=cifar100_lt", "paper=dasl", small=False)
    dasl = composed("method=dasl", "dataset=cifar100_lt", small=False)
    for stage in ("stage1", "stage2"):
        for key in ("epochs", "optimizer", "schedule", "sampler", "mixing", "batch_size"):
            assert plain[stage][key] == dasl[stage][key]


def of_the_model(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    """The weights of backbone and classifier, without those of the network that only training uses."""
    return {name: value for name, value in weights(folder, stage).items() if not name.startswith("modules.")}


def test_weights_of_zero_train_bit_by_bit_what_the_baseline_trains(baseline: Path, tmp_path: Path) -> None:
    run_here(tmp_path / "run", "method=dasl", *SHORT, *ZERO)
    for stage in ("stage1", "stage2"):
        assert_equal_weights(of_the_model(tmp_path / "run", stage), weights(baseline, stage))
    assert record(tmp_path / "run")["metrics"] == record(baseline)["metrics"]


def test_soft_labels_in_stage_2_alone_start_from_the_baselines_stage_1(baseline: Path, tmp_path: Path) -> None:
    run_here(tmp_path / "run", "method=dasl", "soft_labels=stage2", *SHORT)
    assert_equal_weights(of_the_model(tmp_path / "run", "stage1"), weights(baseline, "stage1"))
    one, two = (weights(folder, "stage2") for folder in (tmp_path / "run", baseline))
    assert not torch.equal(one["classifier.weight"], two["classifier.weight"])
    auxiliary = [
        torch.load(tmp_path / "run" / stage / "checkpoint.pt", weights_only=True)["modules"]["auxiliary"]["state"][
            "head.weight"
        ]
        for stage in ("stage1", "stage2")
    ]
    assert not torch.equal(*auxiliary)  # it goes on learning


@pytest.mark.slow
def test_the_auxiliary_network_trains_the_backbone_in_stage_1_and_not_in_stage_2(baseline: Path, dasl: Path) -> None:
    one = weights(dasl, "stage1")
    assert not torch.equal(one["backbone.conv1.weight"], weights(baseline, "stage1")["backbone.conv1.weight"])
    two = weights(dasl, "stage2")
    backbone = [name for name in one if name.startswith("backbone")]
    assert_equal_weights({name: one[name] for name in backbone}, {name: two[name] for name in backbone})


def test_the_auxiliary_network_trains_on_two_processes(dasl: Path, tmp_path: Path, run_on_ranks: Any) -> None:
    """Every parameter gets a gradient in both stages, or the processes would wait for it."""
    run_on_ranks(run_on_rank, 2, str(tmp_path / "run"), ("method=dasl", *SHORT, "trainer.devices=2"))
    assert record(tmp_path / "run")["status"] == "finished"
    one, two = (weights(folder, "stage2") for folder in (dasl, tmp_path / "run"))
    assert not torch.equal(one["classifier.weight"], two["classifier.weight"])  # each normalised its own share


def test_the_record_prints_what_the_networks_cost(dasl: Path) -> None:
    for stage in record(dasl)["stages"]:
        networks = stage["networks"]
        assert networks["backbone"]["parameters"] == 74_640
        assert networks["classifier"] == {"parameters": 64 * 10 + 10, "flops": 2 * 64 * 10}
        assert networks["auxiliary"]["parameters"] > 0
        assert networks["auxiliary"]["flops"] > 0


def test_evaluate_proves_that_the_auxiliary_network_is_dropped(
    dasl: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded accuracy comes from a checkpoint that has no auxiliary network any more."""
    path = dasl / "stage2" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    assert content["modules"]["auxiliary"]["state"]
    assert not any("auxiliary" in name for part in ("backbone", "classifier") for name in content[part])
    torch.save(content | {"modules": {}}, path)
    try:
        monkeypatch.setattr("sys.argv", ["ltexp evaluate", str(dasl)])
        evaluate.main()
    finally:
        torch.save(content, path)
    kept = json.loads((dasl / "evaluations" / "stage2.json").read_text())
    assert record(dasl)["metrics"].items() <= kept["metrics"].items()
    assert set(kept["networks"]) == {"backbone", "classifier"}
    assert "auxiliary" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("backbone=resnet18",), r"the backbone's maps of this dataset are 2x2, 1x1, 1x1, 1x1: choose a backbone"),
        (
            ("stage1.terms.soft_labels.loss.temperature=0",),
            "invalid stage1.terms.soft_labels.loss.temperature=0: expected a number above 0",
        ),
        (
            ("stage1.terms.attention.weight=-1",),
            r"invalid stage1.terms.attention.weight=-1.0: expected a number of 0 or more",
        ),
        (
            (
                "soft_labels=stage2",
                "~module@stage1.modules.auxiliary",
                "~stage1.terms",
                "stage2.modules.auxiliary._target_=ltexp.models.auxiliary.TwoWay",
                "stage2.modules.auxiliary.width=2",
            ),
            r"stage2: its module auxiliary continues that of stage1, which has none: add \+module@stage1",
        ),
        (
            ("~module@stage2.modules.auxiliary",),
            r"stage2: term auxiliary needs auxiliary_logits",
        ),
    ],
)
def test_what_cannot_work_has_one_line_before_training(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run_here(tmp_path / "run", "method=dasl", *overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "stage1").exists()


def test_an_auxiliary_network_is_refused_on_token_ids(tmp_path: Path) -> None:
    root = write_articles(tmp_path / "data")
    overrides = (
        "dataset=ag_news_lt",
        f"paths.data={root}",
        "dataset.max_per_class=40",
        "dataset.imbalance_ratio=4",
        "mixing@stage1.mixing=none",
    )
    with pytest.raises(
        ConfigError,
        match=r"maps of images, and dataset ag_news_lt holds text: leave the module out",
    ) as caught:
        run_here(tmp_path / "run", "method=dasl", *overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "stage1").exists()


class WithoutMaps(Backbone):
    """Reads images in one step, so there is no map on the way."""

    feature_dim = 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) @ torch.ones(3, 4)


def test_an_auxiliary_network_is_refused_over_a_backbone_without_maps(tmp_path: Path) -> None:
    own = f"backbone={{_target_: {__name__}.{WithoutMaps.__name__}}}"
    with pytest.raises(
        ConfigError, match=r"an auxiliary network reads feature maps, and this backbone offers none"
    ) as caught:
        run_here(tmp_path / "run", "method=dasl", "~backbone", f"+{own}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "stage1").exists()


def test_an_auxiliary_network_may_start_in_stage_2(tmp_path: Path) -> None:
    run_here(tmp_path / "run", "method=dasl", "soft_labels=stage2", *LATE, *SHORT)
    assert "auxiliary" not in record(tmp_path / "run")["stages"][0]["networks"]
    assert "auxiliary" in record(tmp_path / "run")["stages"][1]["networks"]
