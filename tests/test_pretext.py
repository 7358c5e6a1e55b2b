"""Stages before stage 1 and after stage 2: labels made of the images, chains of stages, their cache, and mistakes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from runs import assert_equal_weights, composed, run_here, tiny, weights
from test_every_method import resume_in_each
from texts import write_articles

import ltexp
from ltexp.config import to_config
from ltexp.config.composer import LayeredLoader, install
from ltexp.config.path import conf_dir
from ltexp.data.loader import Batch
from ltexp.errors import ConfigError, LtexpError
from ltexp.evaluation.record import read_record
from ltexp.inference.predictor import _class_names
from ltexp.models.cifar_resnet import CifarResNet
from ltexp.papers import all_cells
from ltexp.reproduce.measured import Outputs
from ltexp.reproduce.plan import first_stage_key, make_plan
from ltexp.training.composition import check_composition
from ltexp.training.rotation import Rotation, draw_turns, rotated

# a third stage after crt's two: the same network again, its classifier continued
THREE = (
    *tiny("crt"),
    "+stage@stage3=rebalancing",
    *("stage3.init.backbone=stage2", "stage3.init.classifier=stage2", "stage3.epochs=2", "stage3.batch_size=16"),
)


def batch_of(images: torch.Tensor, step: int = 0) -> Batch:
    size = len(images)
    labels = torch.zeros(size, dtype=torch.int64)
    return Batch(images, labels, torch.arange(size), share=1.0, size=size, epoch=0, step=step)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 64, 129])
def test_rotation_labels_of_a_batch_are_balanced_to_within_one(size: int) -> None:
    counts = torch.bincount(draw_turns(size, seed=3, epoch=2, step=5), minlength=4)
    assert counts.sum() == size
    assert counts.max() - counts.min() <= 1


def test_each_step_draws_anew_and_the_same_step_the_same() -> None:
    assert torch.equal(draw_turns(64, 0, 0, 0), draw_turns(64, 0, 0, 0))
    others = [draw_turns(64, *key) for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert all(not torch.equal(draw_turns(64, 0, 0, 0), other) for other in others)


def test_the_label_says_how_numpy_turns_the_image() -> None:
    images = torch.randn(10, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    mixed = Rotation(torch.tensor([5, 5]))(batch_of(images), seed=1)
    labels = mixed.targets.labels
    assert set(labels.tolist()) == {0, 1, 2, 3}
    for image, turned, quarter in zip(images, mixed.inputs, labels.tolist(), strict=True):
        np.testing.assert_array_equal(turned.numpy(), np.rot90(image.numpy(), quarter, axes=(1, 2)))
    assert mixed.inputs.is_contiguous(memory_format=torch.channels_last)


def test_four_quarters_are_none_and_an_evaluation_turns_by_the_samples_number() -> None:
    images = torch.randn(4, 3, 5, 5)
    turned = images
    for _ in range(4):
        turned = rotated(turned, torch.ones(4, dtype=torch.int64))
    assert torch.equal(turned, images)
    asked = Rotation(torch.tensor([2, 2])).examined(batch_of(images))
    assert asked.labels.tolist() == [0, 1, 2, 3]
    assert torch.equal(asked.inputs[2], images[2].flip(1, 2))


def test_the_published_settings_of_the_pretext_are_those_of_stage_1() -> None:
    """Yang and Xu's code: 200 epochs, batch 128, lr 0.1, weight decay 2e-4, hundredfold decay, 5 epochs of warm-up."""
    plain = composed("method=ssp", "dataset=cifar10_lt", small=False)
    pretext = plain["pretext"]
    assert (pretext["epochs"], pretext["batch_size"]) == (200, 128)
    optimizer = {"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4, "nesterov": False}
    assert optimizer.items() <= pretext["optimizer"].items()
    schedule = {"decay": 0.01, "warmup_epochs": 5, "milestones": [0.8, 0.9]}
    assert schedule.items() <= pretext["schedule"].items()
    assert {"padding": 4, "flip": True}.items() <= pretext["augmentation"].items()
    ldam_drw = composed("method=ldam_drw", "dataset=cifar10_lt", small=False)["stage1"]
    assert plain["stage1"] == ldam_drw | {"init": {"backbone": "pretext", "classifier": "fresh"}}
    shorter = composed("method=ssp", "stage1.epochs=7", "pretext.epochs=3", "stage1.optimizer.lr=0.3")
    assert (shorter["pretext"]["epochs"], shorter["pretext"]["optimizer"]["lr"]) == (3, 0.3)


def test_any_method_can_start_from_a_pretext_with_the_settings_of_its_data() -> None:
    plain = composed("method=glag", "dataset=inat18", "pretraining=rotation", small=False)
    assert plain["stage1"]["init"]["backbone"] == "pretext"
    same = ("epochs", "batch_size", "augmentation", "optimizer", "schedule")
    assert {key: plain["pretext"][key] for key in same} == {key: plain["stage1"][key] for key in same}
    assert (plain["pretext"]["epochs"], plain["pretext"]["batch_size"]) == (90, 512)
    assert plain["choices"]["mixing@pretext.mixing"] == "rotation"
    without = composed("method=ssp", "pretraining=none")
    assert "pretext" not in without
    assert without["stage1"] == composed("method=ldam_drw")["stage1"]


def test_a_sweep_leaves_out_what_it_sets_on_a_stage_that_a_job_does_not_have() -> None:
    of_pretext = ["pretext.epochs=2", "mixing@pretext.mixing=rotation"]
    install()
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        loader = LayeredLoader(GlobalHydra.instance().config_loader().get_search_path())
        swept = ["method=ssp,crt", *of_pretext]
        sweep = loader.load_configuration("config", swept, RunMode.MULTIRUN, from_shell=False)
        assert sweep.hydra.overrides.task == swept
        assert loader.without_absent(["method=crt", *of_pretext]) == (["method=crt"], of_pretext)
        assert loader.without_absent(["method=ssp", *of_pretext]) == (["method=ssp", *of_pretext], [])
        assert loader.load_sweep_config(sweep, ["method=ssp", *of_pretext]).pretext.epochs == 2


def test_the_published_cells_of_ssp_can_be_run() -> None:
    cells = [cell for cell in all_cells() if cell.method == "ssp" and cell.value is not None]
    plan = make_plan(cells, Outputs([]), [0], [])
    assert (len(cells), sum(map(len, plan.jobs.values())), plan.impossible) == (10, 10, {})
    keys = {first_stage_key(job) for job in plan.jobs}
    ldam_drw = [cell for cell in all_cells() if cell.method == "ldam_drw" and cell.dataset == "cifar10_lt"]
    assert keys.isdisjoint(map(first_stage_key, make_plan(ldam_drw, Outputs([]), [0], []).jobs))


def test_a_pretext_learns_four_labels_and_stage_1_starts_from_its_backbone(tmp_path: Path) -> None:
    lengths = ("pretext.epochs=3", "pretext.optimizer.lr=0.1", "stage1.epochs=1", "stage1.optimizer.lr=1e-9")
    run_here(tmp_path / "run", "method=ssp", "stage_cache.enabled=false", *lengths)
    pretext, stage1 = weights(tmp_path / "run", "pretext"), weights(tmp_path / "run", "stage1")
    learned = [name for name in pretext if name.startswith("backbone.") and "conv" in name]
    assert learned
    for name in learned:  # at no rate worth the name they stay as they were
        torch.testing.assert_close(stage1[name], pretext[name], rtol=0, atol=1e-6)
    assert pretext["classifier.weight"].shape[0] == 4
    record = read_record(tmp_path / "run")
    first, second = record["stages"]
    assert (first["name"], first["num_classes"], len(first["metrics"]["per_class"])) == ("pretext", 4, 4)
    assert [first["metrics"][group] for group in ("many", "medium", "few")] == [None] * 3
    assert first["metrics"]["all"] > 40  # of four rotations of digits; 25 by chance
    assert "num_classes" not in second
    assert record["metrics"] == second["metrics"]
    loaded = ltexp.load(tmp_path / "run", stage="pretext", accelerator="cpu")
    answer = loaded.predict(np.zeros((2, 8, 8, 3), np.uint8))
    assert (loaded.class_names, len(answer.rows(every_class=True)[0])) == (["0", "1", "2", "3"], 4 + 4)
    assert ltexp.load(tmp_path / "run", accelerator="cpu").class_names == record["class_names"]


def test_labels_that_a_stage_makes_are_numbers_however_many_classes_there_are() -> None:
    record = {"class_names": list("abcd"), "stages": [{"name": "pretext", "num_classes": 4}, {"name": "stage1"}]}
    assert _class_names(record, "pretext", 4) == ["0", "1", "2", "3"]
    assert _class_names(record, "stage1", 4) == ["a", "b", "c", "d"]


def test_the_labels_of_a_pretext_come_from_the_images_alone(tmp_path: Path) -> None:
    """The control: with other labels of the dataset the pretext is the same, and stage 1 is not."""
    run_here(tmp_path / "one", *tiny("ssp"))
    run_here(tmp_path / "other", *tiny("ssp"), "classifier@stage1.classifier=linear", "loss@stage1.loss=cross_entropy")
    assert_equal_weights(weights(tmp_path / "one", "pretext"), weights(tmp_path / "other", "pretext"))


@pytest.mark.slow
def test_three_stages_killed_in_each_and_resumed_are_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume_in_each(("stage1", "stage2", "stage3"), THREE, tmp_path, monkeypatch)


def test_a_pretext_before_two_stages_is_three_that_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = (*tiny("crt"), "pretraining=rotation")  # the pretext has stage 1's epochs
    resume_in_each(("pretext", "stage1", "stage2"), overrides, tmp_path, monkeypatch)
    names = [stage["name"] for stage in read_record(tmp_path / "whole")["stages"]]
    assert names == ["pretext", "stage1", "stage2"]


def cached(folder: Path) -> list[bool]:
    return [stage["cached"] for stage in read_record(folder)["stages"]]


def test_runs_with_an_equal_pretext_share_it(tmp_path: Path) -> None:
    ssp = (*tiny("ssp", epochs=1), "stage_cache.enabled=true")
    run_here(tmp_path / "ssp", *ssp)
    run_here(tmp_path / "other", *ssp, "loss@stage1.loss=arcface")  # whose stage 1 is its own
    run_here(tmp_path / "turned", *ssp, "pretext.optimizer.lr=0.01")
    run_here(tmp_path / "again", *ssp)
    runs = {name: cached(tmp_path / name) for name in ("ssp", "other", "turned", "again")}
    assert runs == {"ssp": [False, False], "other": [True, False], "turned": [False, False], "again": [True, True]}


@pytest.mark.slow
def test_a_stage_that_starts_from_two_others_depends_on_both(tmp_path: Path) -> None:
    three = (*(text for text in THREE if "epochs=2" not in text and "cache" not in text),)
    short = [f"stage{number}.epochs=1" for number in (1, 2, 3)]
    both = (*three, *short, "stage3.init.backbone=stage1")
    run_here(tmp_path / "one", *both)
    run_here(tmp_path / "other", *both, "stage2.optimizer.lr=0.01")
    assert cached(tmp_path / "other") == [True, False, False]


BAD = [
    (("method=crt", "stage1.init.backbone=stage2"), "stage1 and stage2 name each other in a circle"),
    (("method=ssp", "pretext.teacher=stage1"), "pretext and stage1 name each other in a circle"),
    (("method=crt", "stage2.init.backbone=stage2"), "stage2.init.backbone=stage2: expected fresh, stage1 or a path"),
    (("method=ssp", "stage1.init.backbone=stage2"), "expected fresh, pretext or a path; this run has no stage2"),
    (("method=ssp", "pretext=null"), "this run has no pretext"),
    (("method=ssp", "pretext.epochs=0"), "pretext.epochs=0: expected at least 1"),
    (("method=ce", "pretext.epochs=3"), "there is no pretext: "),
    (("method=ssp", "pretext.epoch=3"), "did you mean 'pretext.epochs'?"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD, ids=[" ".join(overrides) for overrides, _ in BAD])
def test_stages_that_cannot_follow_each_other_are_refused(overrides: tuple[str, ...], message: str) -> None:
    from ltexp.launching.explain import explained

    with pytest.raises(ConfigError) as refused, explained(overrides):
        composed(*overrides, small=False)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


ROTATION = "mixing@stage1.mixing=rotation"
UNFIT = [
    (("method=ssp", "stage1.init.backbone=fresh"), "no later stage starts from it"),
    (("method=ce", ROTATION), "set mixing@stage1.mixing=none"),
    (("method=ssp", "stage1.init.classifier=pretext"), "the classifier in pretext knows that stage's own labels"),
    (("method=ssp", "stage1.teacher=pretext"), "the teacher in pretext knows that stage's own labels"),
    (
        ("method=ssp", "+stream@pretext.streams.rare=reversed", "+loss@pretext.terms.rare.loss=cross_entropy"),
        "streams have the dataset's",
    ),
    (
        ("method=crt", ROTATION, "features@stage2.features=generated"),
        "beta_reference=last_epoch",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), UNFIT, ids=[" ".join(overrides) for overrides, _ in UNFIT])
def test_a_pretext_that_nothing_can_come_of_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_composition(to_config(composed(*overrides, small=False)))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_images_that_are_not_square_are_refused_before_training(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / "cifar10"
        folder.mkdir(exist_ok=True)
        np.save(folder / f"{split}_images.npy", np.zeros((40, 8, 12, 3), dtype=np.uint8))
        np.save(folder / f"{split}_labels.npy", np.arange(40, dtype=np.int64) % 4)
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    data = ("dataset=cifar10_sizes", f"paths.data={tmp_path}", "dataset.class_sizes=[9,8,4,2]")
    with pytest.raises(LtexpError, match=r"^pretext: rotation turns square images, and these are 8 x 12"):
        run_here(tmp_path / "run", "method=ssp", *data)


def test_texts_are_not_turned(tmp_path: Path) -> None:
    write_articles(tmp_path)
    data = ("dataset=ag_news_lt", f"paths.data={tmp_path}", "dataset.max_per_class=20", "dataset.imbalance_ratio=10")
    with pytest.raises(LtexpError, match=r"^pretext: rotation turns images"):
        run_here(tmp_path / "run", "method=ssp", *data)


def file_of(tmp_path: Path, kind: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """(A file of self-supervised training as other programs write it, the backbone that is meant) of a ResNet-8."""
    draws = torch.Generator().manual_seed(4)
    own = CifarResNet(8).state_dict()
    state = {name: torch.rand(v.shape, generator=draws).to(v.dtype) for name, v in own.items()}
    if kind == "moco":  # v2: He et al.'s main_moco.py
        held = {f"module.encoder_k.{name}": torch.zeros_like(value) for name, value in state.items()}
        held |= {f"module.encoder_q.{name}": value for name, value in state.items()}
        held |= {"module.encoder_q.fc.0.weight": torch.ones(64, 64), "module.queue": torch.ones(128, 16)}
    else:  # SSP's rotation on CIFAR
        held = {f"module.{name}": value for name, value in state.items()} | {"module.linear.weight": torch.ones(4, 64)}
    path = tmp_path / "others.pth.tar"
    torch.save({"epoch": 200, "arch": "resnet32", "best_acc1": 80.5, "state_dict": held}, path)
    return path, state


@pytest.mark.parametrize("kind", ["moco", "ssp"])
def test_a_stage_starts_from_a_file_of_self_supervised_training(kind: str, tmp_path: Path) -> None:
    path, state = file_of(tmp_path, kind)
    overrides = (*tiny("ldam_drw", "optimizer.lr=1e-12", epochs=1), "stage1.batch_norm=frozen")
    run_here(tmp_path / "run", *overrides, f"stage1.init.backbone={path}")
    found = weights(tmp_path / "run", "stage1")
    for name, value in state.items():
        torch.testing.assert_close(found[f"backbone.{name}"], value, rtol=0, atol=1e-6)


def test_a_file_of_another_network_is_refused_in_one_line(tmp_path: Path) -> None:
    path, state = file_of(tmp_path, "ssp")
    few = {name: value for name, value in state.items() if not name.startswith("layer3")}
    for held, message in (({"vit.cls": torch.ones(3)}, "belongs to a different model"), (few, "names missing")):
        torch.save({"state_dict": held}, path)
        with pytest.raises(LtexpError, match=message) as refused:
            run_here(tmp_path / message, *tiny("ce"), f"stage1.init.backbone={path}")
        assert "\n" not in str(refused.value)
