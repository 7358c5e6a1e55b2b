"""`ltexp evaluate` on shifted tests, with experts that adapt, and against images of other classes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import composed, run_here, tiny
from sklearn.metrics import average_precision_score, roc_auc_score

from ltexp import evaluate
from ltexp.analysis.adaptation import adapt, agreement, drawn, recalls_with, views_of
from ltexp.analysis.restored import LoadedStage, kept_modules, restore
from ltexp.config import to_config
from ltexp.errors import ConfigError, DataError, LtexpError
from ltexp.evaluation.detection import confidence_scores, detection
from ltexp.evaluation.further import further_metrics
from ltexp.evaluation.shifted import Shift
from ltexp.report.__main__ import main as report
from ltexp.training.predict import extract_features


def test_detection_agrees_with_scikit_learn_ties_included() -> None:
    draws = np.random.default_rng(0)
    inside, outside = draws.normal(1, 1, 300).round(1), draws.normal(0, 1, 200).round(1)
    found = detection(inside, outside)
    labels, scores = np.repeat([1, 0], [300, 200]), np.concatenate([inside, outside])
    assert found["auroc"] == pytest.approx(100 * roc_auc_score(labels, scores))
    assert found["aupr"] == pytest.approx(100 * average_precision_score(labels, scores))


def test_false_alarms_are_at_the_threshold_that_95_percent_pass() -> None:
    """Of the positives 1 to 20 the upper 19 pass at 2, and so do three of the four others."""
    assert detection(np.arange(1, 21), [0, 2, 3, 100])["fpr95"] == 75
    assert detection([1, 1], [1, 1]) == {"auroc": 50, "aupr": 50, "fpr95": 100}
    assert detection([2, 3], [0, 1]) == {"auroc": 100, "aupr": 100, "fpr95": 0}
    with pytest.raises(DataError, match="no samples"):
        detection([1], [])


def test_scores_of_hand_worked_logits() -> None:
    found = confidence_scores(np.log([[2.0, 1.0, 1.0], [3.0, 3.0, 6.0]]))
    np.testing.assert_allclose(found["max_softmax"], [0.5, 0.5])
    np.testing.assert_allclose(found["energy"], np.log([4, 12]))
    np.testing.assert_allclose(found["max_logit"], np.log([2, 6]))
    with pytest.raises(DataError, match="finite"):
        confidence_scores(np.array([[np.inf, 0.0]]))


def test_agreement_of_a_hand_worked_case() -> None:
    """Two experts: the first says the same of both views, (1/5, 4/5), the second has 1/4 and 3/4 change places."""
    same, one, other = (torch.tensor(values).log() for values in ([0.2, 0.8], [0.25, 0.75], [0.75, 0.25]))
    first, second = torch.stack([same, one])[:, None], torch.stack([same, other])[:, None]
    assert agreement(torch.tensor([1.0, 0.0]), first, second).item() == pytest.approx(1)
    # (1/4, 3/4) and (3/4, 1/4): 3/8 over 5/8
    assert agreement(torch.tensor([0.0, 1.0]), first, second).item() == pytest.approx(0.6)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts") / "run"
    run_here(folder, *tiny("sade"))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    run_here(folder, *tiny("ce"))
    return folder


def restored(folder: Path) -> LoadedStage:
    config, stage = evaluate.chosen(folder, {}, [])
    return restore(config, folder, stage, None)


def kept(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "evaluations" / f"{name}.json").read_text())
    return content


def test_shifted_evaluations_are_kept_and_reported(experts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.evaluate(*evaluate.parse([str(experts), "shift=forward5,uniform", "adapt=true"])) == 0
    assert "transductive" in capsys.readouterr().out
    record = json.loads((experts / "record.json").read_text())
    uniform = kept(experts, "stage1_uniform_unknown")["metrics"]
    assert uniform["all"] == pytest.approx(np.mean(record["metrics"]["per_class"]))
    assert {key: uniform[key] for key in ("many", "medium", "few")}.items() <= record["metrics"].items()
    adapted = kept(experts, "stage1_forward5_adapted")
    assert sum(adapted["expert_weights"]) == pytest.approx(1, abs=1e-3)
    assert report([str(experts), "posthoc=true", "format=csv"]) == 0
    output = capsys.readouterr().out
    for name in ("stage1_forward5_known", "stage1_forward5_estimated", "stage1_uniform_adapted"):
        assert f",{name}," in output


def test_the_bins_of_the_config_are_those_of_the_class_wise_error(plain: Path) -> None:
    stage = restored(plain)
    evaluation = replace(stage.session.config.evaluation, calibration_bins=3)
    stage.session.config = replace(stage.session.config, evaluation=evaluation)
    found = stage.predictions()
    expected = further_metrics(found.logits * stage.model.logit_scale, found.labels, bins=3)
    assert stage.measure(found)["classwise_ece"] == expected["classwise_ece"]
    assert expected["classwise_ece"] != further_metrics(found.logits, found.labels)["classwise_ece"]


def test_equal_weights_are_the_networks_own_prediction(experts: Path) -> None:
    stage = restored(experts)
    assert recalls_with(stage, torch.full((3,), 1 / 3)) == stage.measure()["per_class"]


def test_weights_come_from_the_drawn_images_alone(experts: Path) -> None:
    """The same twice, of as many images as the list has."""
    stage, shift = restored(experts), Shift("backward", 5)
    split = drawn(stage, shift)
    counts = np.bincount(split.labels, minlength=4)
    assert counts.tolist() == shift.counts([24, 13, 7, 4], [50] * 4).tolist()
    assert len(set(split.index.tolist())) == len(split)
    found = adapt(stage, shift)
    assert found == adapt(restored(experts), shift)
    assert found.images == len(split)
    assert found.weights != [pytest.approx(1 / 3, abs=1e-4)] * 3


def test_views_are_random_and_two(experts: Path) -> None:
    stage = restored(experts)
    loader = stage.session.loader(stage.session.data.test, batch_size=8, augmentation=views_of(stage), seed=1)
    batch = next(iter(loader))
    assert batch.views is not None
    assert batch.views.shape == (2, 8, 3, 8, 8)
    assert not torch.equal(batch.views[0], batch.views[1])


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 8 x 8 pixels of two classes, none of them digits."""
    folder, draws = tmp_path_factory.mktemp("textures"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("noise", "stripes"):
            (folder / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = draws.integers(0, 256, (8, 8 if name == "noise" else 1, 3), dtype=np.uint8)
                Image.fromarray(np.broadcast_to(pixels, (8, 8, 3))).save(folder / split / name / f"{number}.png")
    return folder


def test_images_of_other_classes(plain: Path, textures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ood=image_folder", f"ood.source.folder={textures}", "ood.image_size=8", "ood.resize=8", "ood.workers=0"]
    assert evaluate.evaluate(*evaluate.parse([str(plain), *words])) == 0
    output = capsys.readouterr().out
    assert "200 test samples of the run (positive) against 12 others" in output
    (file,) = (plain / "evaluations").glob("stage1_ood=image_folder_*.json")
    found = json.loads(file.read_text())["ood"]
    assert found["positive"] == "in-distribution"
    assert set(found["scores"]) == {"max_softmax", "energy", "max_logit"}
    assert report([str(plain), "posthoc=true"]) == 0  # has no metrics, and no row
    assert "ood" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shift=forward0.5"], "invalid shift=forward0.5: expected uniform, or forward or backward with a ratio"),
        (["shift=forward50,backwards"], "invalid shift=backwards"),
        (["adapt=yes"], "invalid adapt=yes: expected true | false"),
        (["adapt=true"], "this run has no experts"),
        (["ood=cifar100"], "unknown dataset 'cifar100': did you mean 'cifar100_lt'?"),
        (["ood=digits_lt", "ood.num_classes=4"], "these are the run's own classes: choose a dataset of others"),
        (["ood.image_size=8"], "ood.image_size= is of the dataset that ood= names: add ood=NAME"),
        (["ood=ag_news_lt"], "ag_news"),
        (["dataset.imbalance_ratio=10"], "dataset.imbalance_ratio= is about training images alone: leave it out"),
        (["dataset.test.fraction=0.5"], "dataset.test.fraction= would hold out images that the run was trained on"),
        (["dataset.subset.seed=1"], "dataset.subset.seed= is about training images alone: leave it out"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(words: list[str], message: str, plain: Path) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        evaluate.evaluate(*evaluate.parse([str(plain), *words]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_classifier_takes_over_from_a_module_that_answers(tmp_path: Path) -> None:
    """Nearest class mean by its definition, over a network whose answer is a module's, which is out of the way."""
    run_here(tmp_path / "run", *tiny("glmc", epochs=1))
    config, stage = evaluate.chosen(tmp_path / "run", {}, [])
    found = restore(config, tmp_path / "run", stage, {"_target_": "ltexp.models.posthoc.NearestClassMean"})
    session = found.session
    (_, seen, labels), (_, asked, _) = (
        extract_features(found.model, session.evaluation_loader(split), "32-true")
        for split in (session.data.train, session.data.test)
    )
    center = seen.mean(0)
    seen, asked = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (seen - center, asked - center))
    means = np.stack([seen[labels == label].mean(0) for label in range(4)])
    distances = np.square(asked[:, None] - means).sum(2)
    np.testing.assert_allclose(found.predictions().logits, -distances, atol=1e-5)
    with pytest.raises(
        ConfigError, match=r"^stage1 answers by its module balanced, not by its classifier, which a Tau"
    ):
        evaluate.evaluate(*evaluate.parse([str(tmp_path / "run"), "classifier=tau_normalized"]))


def test_images_held_out_by_a_stream_are_held_out_once(tmp_path: Path) -> None:
    """Of the smallest class 2 of 4 images; another 2 would be all."""
    held_out = ("streams.meta.held_out.of=train", "streams.meta.held_out.per_class=2")
    run_here(tmp_path / "run", *tiny("mw_net", *held_out, epochs=1))
    assert evaluate.evaluate(*evaluate.parse([str(tmp_path / "run"), "classifier=nearest_class_mean"])) == 0


def test_modules_that_kept_ones_read_are_evaluated(tmp_path: Path) -> None:
    """Those of `ltexp predict` and of teachers."""
    stage = to_config(composed("method=glmc")).stages["stage1"]
    siamese = stage.modules["siamese"]
    assert list(kept_modules(stage)) == ["balanced"]
    reading = stage.modules["balanced"] | {"reads": ["projections"]}
    assert list(kept_modules(replace(stage, modules={"siamese": siamese, "balanced": reading}))) == [
        "siamese",
        "balanced",
    ]


def test_images_of_another_size_are_refused(plain: Path, textures: Path) -> None:
    words = ["ood=image_folder", f"ood.source.folder={textures}", "ood.image_size=16", "ood.workers=0"]
    with pytest.raises(ConfigError, match=r"its images have 16x16 pixels, and the run's 8x8"):
        evaluate.evaluate(*evaluate.parse([str(plain), *words]))


def test_the_runs_own_images_as_files_give_the_runs_own_figures(plain: Path, tmp_path: Path) -> None:
    """They are read at the size that they had in memory."""
    test = restored(plain).session.data.test
    for split in ("train", "test"):
        for number, (pixels, label) in enumerate(zip(test.images, test.labels, strict=True)):
            (tmp_path / split / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / split / str(label) / f"{number}.png")
    words = [str(plain), "dataset=image_folder", f"dataset.source.folder={tmp_path}", "dataset.workers=0"]
    assert evaluate.evaluate(*evaluate.parse(words)) == 0
    (file,) = (plain / "evaluations").glob("stage1_dataset=image_folder_*.json")
    recorded = json.loads((plain / "record.json").read_text())["metrics"]
    assert json.loads(file.read_text())["metrics"]["per_class"] == recorded["per_class"]
    with pytest.raises(ConfigError, match=r"its images have 16x16 pixels, and the run's 8x8: choose a set of that"):
        evaluate.evaluate(*evaluate.parse([*words, "dataset.image_size=16"]))


def test_figures_that_cannot_be_kept_are_shown(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(plain, copy)
    shutil.rmtree(copy / "evaluations", ignore_errors=True)
    (copy / "evaluations").touch()  # as where the folder may not be written
    with pytest.raises(LtexpError, match=r"^the figures above were not kept: cannot write .*stage1\.json: "):
        evaluate.evaluate(*evaluate.parse([str(copy), "accelerator=cpu"]))
    out = capsys.readouterr().out
    assert "\nstage1 " in out
    assert "\nrecorded " in out
    assert "kept in" not in out


def test_features_that_cannot_be_kept_do_not_hide_the_figures(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(plain, copy)
    (copy / "features.npz").mkdir()
    with pytest.raises(LtexpError, match=r"^features not kept: cannot write .*features\.npz: "):
        evaluate.evaluate(*evaluate.parse([str(copy), "accelerator=cpu", "features=true"]))
    out = capsys.readouterr().out
    assert "\nstage1 " in out
    assert "\nkept in" in out
