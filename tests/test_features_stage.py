"""Stages on features: exact to resume and on two processes, blind to the test set, open to any classifier and loss."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import assert_equal_weights, composed, run_here, weights
from test_distributed_run import run_on_rank

from ltexp.analysis.restored import restore, write_features
from ltexp.config import to_config
from ltexp.config.build import build
from ltexp.config.identity import differing_keys
from ltexp.data.held_out import spare_validation
from ltexp.data.images import digits
from ltexp.errors import CheckpointError, ConfigError, TrainingError
from ltexp.features import loader
from ltexp.features.generator import AdaptiveFeatureGenerator
from ltexp.models.cifar_resnet import CifarResNet
from ltexp.run_folder import read_metrics
from ltexp.training import run_stage
from ltexp.training.session import Session

GLAG = ("method=glag", "stage2.epochs=4", "stage_cache.enabled=false")


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return content


@pytest.fixture(scope="module")
def glag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small run of the whole method."""
    folder = tmp_path_factory.mktemp("glag") / "run"
    run_here(folder, *GLAG, "stage1.epochs=4")
    return folder


def test_a_run_says_what_its_classifier_learned_from(glag: Path) -> None:
    """Of 120, 76, 48, 30, 19, 12, 7, 4, 3, 2 images all classes but the two largest hold a fifth out, at least one."""
    features = record(glag)["stages"][1]["features"]
    held = 9 + 6 + 3 + 2 + 1 + 1 + 1 + 1
    assert features["scored_on"] == f"{held} images held out of the training set"
    assert features["extracted"] == 321 - held
    assert features["extracted"] + features["generated"] == 10 * 120
    rows = read_metrics(glag / "stage2" / "confidence.csv")
    assert [(row["epoch"], row["class"]) for row in rows] == [(str(e), str(c)) for e in range(4) for c in range(2, 10)]
    assert {row["beta"] for row in rows if row["epoch"] == "0"} == {"0.6"}
    assert all(0 <= float(row["score"]) <= 1 for row in rows)


def test_beta_is_moved_by_the_score_of_stage_1s_own_classifier(glag: Path) -> None:
    """Computed again here from stage 1's checkpoint and the held-out images: the last of each tail class."""
    session = restore(to_config(composed(*GLAG, "stage1.epochs=4")), glag, "stage1", None).session
    train, counts = session.data.train, session.class_counts.tolist()
    held = [max(1, count // 5) if count <= 48 else 0 for count in counts]
    rows = np.concatenate(
        [np.flatnonzero(train.labels == c)[len(np.flatnonzero(train.labels == c)) - n :] for c, n in enumerate(held)]
    )
    model = restore(to_config(composed(*GLAG, "stage1.epochs=4")), glag, "stage1", None).model
    batch = next(iter(session.loader(train.take(rows), batch_size=len(rows))))
    with torch.no_grad():
        right = model(batch.inputs).logits.softmax(1).gather(1, batch.labels[:, None]).squeeze(1)
    beta = {int(row["class"]): 0.6 for row in read_metrics(glag / "stage2" / "confidence.csv")}
    moved = set()
    for row in read_metrics(glag / "stage2" / "confidence.csv"):
        label = int(row["class"])
        assert float(row["beta"]) == pytest.approx(beta[label], abs=1e-4)
        change = float(row["score"]) - float(right[batch.labels == label].mean())
        step = 0.05 if change > 0.005 else -0.05 if change < -0.005 else 0.0
        beta[label] = min(max(beta[label] + step, 0.0), 0.9)
        moved.add(step)
    assert moved & {0.05, -0.05}


def test_the_power_is_part_of_the_model_wherever_it_is_evaluated(glag: Path) -> None:
    config = to_config(composed(*GLAG, "stage1.epochs=4"))
    restored = restore(config, glag, "stage2", None)
    assert restored.model.feature_power == 0.9
    assert record(glag)["metrics"].items() <= restored.measure().items()
    restored.model.feature_power = 1.0
    assert not record(glag)["metrics"].items() <= restored.measure().items()


def test_some_generated_features_are_kept_for_figures(glag: Path, tmp_path: Path) -> None:
    """Of the tail classes, with the last epoch's betas, beside the real features; the same whenever they are made."""
    shutil.copytree(glag, tmp_path / "run")
    found = []
    for _ in range(2):
        restored = restore(to_config(composed(*GLAG, "stage1.epochs=4")), tmp_path / "run", "stage2", None)
        with np.load(write_features(restored)) as arrays:
            found.append(dict(arrays))
    labels, features = found[0]["generated_labels"], found[0]["generated_features"]
    lacking = {label: 120 - kept for label, kept in zip(range(2, 10), (39, 24, 16, 10, 6, 3, 2, 1), strict=True)}
    assert dict(zip(*np.unique(labels, return_counts=True), strict=True)) == lacking
    assert features.shape == (len(labels), found[0]["train_features"].shape[1])
    assert np.array_equal(found[1]["generated_features"], features)


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_two_processes_train_what_one_trains(gamma: float, glag: Path, tmp_path: Path, run_on_ranks: Any) -> None:
    overrides = (*GLAG, f"stage1.checkpoint={glag}", f"stage2.features.gamma={gamma}", "stage2.batch_size=64")
    run_here(tmp_path / "one", *overrides)
    run_on_ranks(run_on_rank, 2, str(tmp_path / "two"), (*overrides, "trainer.devices=2"))
    one, two = (weights(tmp_path / name, "stage2") for name in ("one", "two"))
    assert_equal_weights(one, two, tolerance=2e-4)
    betas = [[row["beta"] for row in read_metrics(tmp_path / n / "stage2" / "confidence.csv")] for n in ("one", "two")]
    assert betas[0] == betas[1]


def test_training_does_not_depend_on_the_test_images(
    glag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a test set of black images of class 0, evaluated every epoch, the same weights and betas come out."""
    whole, _ = digits.Digits().inspect(tmp_path)
    assert whole is not None
    black = replace(whole, test_images=0 * whole.test_images, test_labels=0 * whole.test_labels)
    monkeypatch.setattr(digits.Digits, "inspect", lambda self, root: (black, []))
    run_here(tmp_path / "run", *GLAG, "stage1.epochs=4", "evaluation.every=1")
    for stage in ("stage1", "stage2"):
        assert_equal_weights(weights(glag, stage), weights(tmp_path / "run", stage))
    text = (glag / "stage2" / "confidence.csv").read_text()
    assert (tmp_path / "run" / "stage2" / "confidence.csv").read_text() == text
    assert record(tmp_path / "run")["metrics"]["all"] != record(glag)["metrics"]["all"]


def test_no_test_data_is_read_while_a_stage_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No batch of the test split is made between the start and the end of training."""
    training: list[bool] = []
    train, make = run_stage.train, Session.loader

    def watched_train(*arguments: Any) -> None:
        training.append(True)
        train(*arguments)
        training.clear()

    def watched_loader(self: Session, split: Any, **settings: Any) -> Any:
        made = make(self, split, **settings)
        if split is self.data.test:
            plan = made._plan

            def watched_plan() -> Any:
                assert not training, "test data is read during training"
                return plan()

            made._plan = watched_plan
        return made

    monkeypatch.setattr(run_stage, "train", watched_train)
    monkeypatch.setattr(Session, "loader", watched_loader)
    run_here(tmp_path / "run", *GLAG, "stage1.epochs=1", "stage2.epochs=2")
    with pytest.raises(AssertionError, match="test data is read"):  # the watch sees what it is there for
        run_here(tmp_path / "watched", *GLAG, "stage1.epochs=1", "evaluation.every=1")


def test_extracted_features_train_what_the_images_train(glag: Path, tmp_path: Path) -> None:
    """Without augmentation, features taken once an epoch are the features of every batch."""
    shared = ("method=crt", "stage2.epochs=3", "augmentation@stage2.augmentation=none", f"stage1.checkpoint={glag}")
    run_here(tmp_path / "images", *shared)
    run_here(tmp_path / "features", *shared, "features@stage2.features=extracted")
    images, features = (weights(tmp_path / name, "stage2") for name in ("images", "features"))
    assert_equal_weights(images, features, tolerance=1e-5)
    assert record(tmp_path / "features")["stages"][1]["features"] == {
        "extracted": 321,
        "generated": 0,
        "scored_on": None,
    }


@pytest.mark.parametrize(
    "choices",
    [
        ("method=crt", "sampler@stage2.sampler=class_aware"),
        ("method=lws", "loss@stage2.loss=balanced_softmax", "mixing@stage2.mixing=mixup"),
        (
            "method=mislas",
            "stage2.batch_norm=frozen",
            "sampler@stage2.sampler=class_balanced",
            "stage2.features.beta=0",
        ),
        ("method=gcl", "stage2.features.adaptive=false", "stage2.features.gamma=0.1"),
    ],
    ids=["crt", "lws", "mislas", "gcl"],
)
def test_other_classifiers_losses_and_samplers_train_on_generated_features(
    choices: tuple[str, ...], tmp_path: Path
) -> None:
    generated = ("features@stage2.features=generated", "stage2.features.tail_at_most=48")
    run_here(tmp_path / "run", *choices, *generated, "stage1.epochs=1", "stage2.epochs=2")
    features = record(tmp_path / "run")["stages"][1]["features"]
    assert features["extracted"] + features["generated"] == 10 * 120


def test_a_validation_split_keeps_the_score_where_there_is_one(glag: Path, tmp_path: Path) -> None:
    shared = (*GLAG, "stage1.epochs=1", "stage2.epochs=2", "dataset.validation.fraction=0.2")
    run_here(tmp_path / "run", *shared)
    features = record(tmp_path / "run")["stages"][1]["features"]
    assert features["scored_on"] == "the validation split"
    assert features["extracted"] == sum(record(tmp_path / "run")["class_counts"])


def test_a_class_of_one_image_works(tmp_path: Path) -> None:
    """At ratio 120 the smallest class has one image: nothing can be held out of it, so beta is fixed."""
    small = ("dataset.imbalance_ratio=120", "stage1.epochs=1", "stage2.epochs=2")
    with pytest.raises(ConfigError, match=r"of class 8 \(and 1 more\) leaves none of its 1 to train on: set"):
        run_here(tmp_path / "adaptive", *GLAG, *small)
    run_here(tmp_path / "fixed", *GLAG, *small, "stage2.features.adaptive=false")
    content = record(tmp_path / "fixed")
    assert content["class_counts"][-1] == 1
    assert content["stages"][1]["features"]["scored_on"] is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage2.features.support_classes=3", r"only 2 classes have more images than class 2 with 48: lower it"),
        (
            "stage2.features.tail_at_most=1",
            r"tail_at_most=1: no class has so few images, the smallest has 2, .*: raise",
        ),
        ("dataset.imbalance=balanced", r"tail_at_most=48: no class has so few images, the smallest has 120, "),
        (
            "stage2.features.beta_reference=stage2",
            r"beta_reference=stage2: expected stage1 .* last_epoch; did you mean",
        ),
        ("stage2.features.tail_at_most=200", r"only 0 classes have more images than class 0 with 120"),
        (
            "stage2.features.gamma=-0.1",
            "invalid stage2.features.gamma=-0.1: expected a number of 0 or more, for all classes",
        ),
        (
            "stage2.features.beta=0.95",
            "invalid stage2.features.beta=0.95: expected a number from 0 to most_beta=0.9, for every class",
        ),
        ("stage2.features.most_beta=1.5", "invalid stage2.features.most_beta=1.5: expected a number from 0 to 1"),
        (
            "stage2.features.held_out_fraction=0",
            "invalid stage2.features.held_out_fraction=0: expected a share between 0 and 1, for an",
        ),
        ("stage2.features.covariance=ful", r"did you mean 'full'"),
        ("stage2.trainable.backbone=true", r"trains on features, so its backbone cannot change"),
        ("stage2.batch_norm=statistics", r"trains on features, so its backbone cannot change"),
        (
            "mixing@stage2.mixing=cutmix",
            r"stage2: it trains on features, and its mixing is of images: set mixing@stage2",
        ),
        ("stage2.init.backbone=fresh", r"features of an untrained backbone"),
        ("stage2.feature_power=0", r"invalid stage2.feature_power=0.*: expected a number above 0"),
        ("+stage2.training_set.imbalanc=balanced", r"did you mean 'stage2.training_set.imbalance'"),
    ],
)
def test_what_cannot_work_is_refused_before_stage_1_trains(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run_here(tmp_path / "run", *GLAG, override)
    assert not (tmp_path / "run" / "stage1").exists()


TAUGHT = (
    *("method=crt", "features@stage2.features=extracted", "augmentation@stage2.augmentation=none", "stage2.epochs=1"),
    "+loss@stage2.terms.kd.loss=distillation",
)


def test_a_teacher_on_features_has_the_backbone_that_they_are_of(glag: Path, tmp_path: Path) -> None:
    """Stage 1, another run's stage over the same frozen backbone, or the file itself."""
    run_here(tmp_path / "same", *TAUGHT[:4], f"stage2.init.backbone={glag}", "stage1.epochs=1")
    of_file = f"stage2.init.backbone={glag}"
    for number, words in enumerate(
        [[of_file, glag], [of_file, tmp_path / "same" / "stage2"], ["stage1.epochs=1", "stage1"]]
    ):
        *further, teacher = words
        run_here(tmp_path / f"run{number}", *TAUGHT, *further, f"stage2.teacher={teacher}", "stage_cache.enabled=false")
    for further, teacher in (((of_file,), tmp_path / "run2"), ((), glag), ((of_file,), "stage1")):
        with pytest.raises(
            ConfigError, match=r"stage2: it trains on features, and its teacher .* has another backbone"
        ):
            run_here(tmp_path / "other", *TAUGHT, *further, f"stage2.teacher={teacher}")
    assert not (tmp_path / "other" / "stage1").exists()


def test_a_teacher_on_features_reads_nothing_else(tmp_path: Path) -> None:
    run_here(tmp_path / "teacher", "method=glmc", "stage1.epochs=1", "stage1.batch_size=64")
    words = (f"stage2.init.backbone={tmp_path / 'teacher'}", f"stage2.teacher={tmp_path / 'teacher'}")
    with pytest.raises(
        ConfigError, match=r"a module of its teacher .* reads view_features beside them: choose another"
    ):
        run_here(tmp_path / "run", *TAUGHT, *words)


def test_features_of_a_teacher_are_the_stages_own(tmp_path: Path) -> None:
    words = ("+loss@stage2.terms.features.loss=feature_distillation", "stage2.teacher=stage1")
    with pytest.raises(ConfigError, match=r"stage2: a loss reads teacher_features, and where a stage trains on"):
        run_here(tmp_path / "run", *TAUGHT, *words)


def test_a_network_of_experts_has_no_features_of_one_kind(glag: Path, tmp_path: Path) -> None:
    frozen = ("stage1.trainable.backbone=false", "stage1.batch_norm=frozen", f"stage1.init.backbone={glag}")
    with pytest.raises(ConfigError, match=r"stage1: features are extracted of a network of one expert"):
        run_here(tmp_path / "run", "method=ride_3", "features@stage1.features=extracted", *frozen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda features: features - 10, r"feature_power=0.9 needs features of 0 or more, .* first for class 0"),
        (lambda features: features * torch.nan, r"features that are not finite, first for class 0"),
    ],
    ids=["negative", "not a number"],
)
def test_features_that_cannot_be_used_are_named(
    change: Any, message: str, glag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, extract = CifarResNet.forward, loader.extract

    def changed(self: CifarResNet, images: torch.Tensor) -> Any:
        return change(forward(self, images))

    def extract_changed(*arguments: Any) -> Any:
        with monkeypatch.context() as context:
            context.setattr(CifarResNet, "forward", changed)
            return extract(*arguments)

    monkeypatch.setattr(loader, "extract", extract_changed)
    with pytest.raises(TrainingError, match=message):
        run_here(tmp_path / "run", *GLAG, f"stage1.checkpoint={glag}")


def test_a_richer_class_that_is_left_with_one_image_lends_its_mean() -> None:
    """Held-out images may leave a supporting class without a covariance."""
    source = AdaptiveFeatureGenerator(tail_at_most=5)
    counts = torch.tensor([50, 2, 9, 1])
    kept = counts - torch.tensor([0, 1, 0, 0])
    source.keeps_score = False
    labels = source.start(counts, kept, epochs=1)
    assert torch.bincount(labels).tolist() == [0, 49, 41, 49]


@pytest.mark.parametrize("stage1", ["ce", "graloss", "la"])
def test_the_classifier_can_be_retrained_on_the_full_balanced_set(stage1: str, tmp_path: Path) -> None:
    loss = {"ce": "cross_entropy", "graloss": "gradual_balanced", "la": "logit_adjustment"}[stage1]
    run_here(
        tmp_path / "run",
        "method=crt",
        f"loss@stage1.loss={loss}",
        "training_set@stage2.training_set=full_balanced",
        "sampler@stage2.sampler=instance_balanced",
        "stage1.epochs=1",
        "stage2.epochs=1",
    )
    content = record(tmp_path / "run")
    assert content["class_counts"][-1] == 2  # the run's own data, which says what is many, medium and few shot
    one, two = content["stages"]
    assert one["images_per_second"] * one["seconds"] == pytest.approx(321)
    assert two["images_per_second"] * two["seconds"] == pytest.approx(1200)
    assert content["metrics"]["few"] is not None
    backbone = {name: value for name, value in weights(tmp_path / "run", "stage1").items() if "backbone" in name}
    assert all(torch.equal(weights(tmp_path / "run", "stage2")[name], value) for name, value in backbone.items())


def test_a_stage_is_taken_over_with_the_power_of_its_features(tmp_path: Path) -> None:
    run_here(tmp_path / "one", "method=ce", "stage1.epochs=1", "stage1.feature_power=0.5")
    taken = ("method=ce", f"stage1.checkpoint={tmp_path / 'one'}")
    with pytest.raises(CheckpointError, match=r"is of features raised to 0\.5: set the stage's feature_power"):
        run_here(tmp_path / "two", *taken)
    run_here(tmp_path / "three", *taken, "stage1.feature_power=0.5")
    assert record(tmp_path / "three")["metrics"] == record(tmp_path / "one")["metrics"]


def test_a_training_set_of_a_stages_own_spares_what_the_run_holds_out(tmp_path: Path) -> None:
    """Of the long tail's 300 digits as of the balanced set's 1,200; both are judged by the same images."""
    plain = composed("method=crt", "training_set@stage2.training_set=full_balanced", "dataset.validation.fraction=0.3")
    config = to_config(plain)
    data = build(config.dataset, root=tmp_path, path="dataset")
    session = Session(config, tmp_path, data, torch.device("cpu"))
    one, two = (session.for_stage(stage).data for stage in config.stages.values())
    assert two.class_counts.min() > one.class_counts.max() / 2
    assert two.validation is one.validation
    assert not np.isin(two.train.index, data.validation.index).any()
    with pytest.raises(ConfigError, match="are among the run's held-out images"):
        spare_validation(data, replace(data, validation=data.train))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "touched"),
    [
        ("loss@stage1.loss=cross_entropy", "stage1.loss"),
        ("loss@stage1.loss=logit_adjustment", "stage1.loss"),
        ("stage1.loss.c=4", ("stage1.loss", "stage2.terms.head_distillation.loss.c")),  # Eq. 11 has stage 1's curve
        ("stage2.features.adaptive=false", "stage2.features.adaptive"),
        ("stage2.terms.head_distillation.weight=0", "stage2.terms.head_distillation.weight"),
        ("features@stage2.features=extracted", "stage2.features"),
        ("stage2.feature_power=1", "stage2.feature_power"),
    ],
)
def test_each_part_of_glag_has_one_key(override: str, touched: str | tuple[str, ...]) -> None:
    full = to_config(composed("method=glag", "dataset=cifar100_lt"))
    keys = differing_keys(full, to_config(composed("method=glag", "dataset=cifar100_lt", override)))
    assert keys
    assert all(key.startswith(touched) for key in keys), keys


def test_glag_and_graloss_share_their_stage_1_and_any_method_takes_the_loss() -> None:
    for dataset in ("digits_lt", "cifar100_lt"):
        glag, graloss = (composed(f"method={method}", f"dataset={dataset}") for method in ("glag", "graloss"))
        assert glag["stage1"] == graloss["stage1"]
    for method in ("crt", "lws", "mislas"):
        plain = to_config(composed(f"method={method}"))
        changed = to_config(composed(f"method={method}", "loss@stage1.loss=gradual_balanced"))
        assert all(key.startswith("stage1.loss") for key in differing_keys(plain, changed))


def test_a_backbone_of_other_classes_has_no_score_to_compare_with(glag: Path, tmp_path: Path) -> None:
    fewer = ("dataset.num_classes=8", "stage2.epochs=1", f"stage2.init.backbone={glag}", "stage2.init.classifier=fresh")
    generated = ("features@stage2.features=generated", "stage2.features.support_classes=1")
    other = ("method=crt", "stage_cache.enabled=false", *fewer, *generated)
    with pytest.raises(
        CheckpointError, match=r"beta_reference=stage1: .* knows 10 classes and this dataset has 8: set"
    ):
        run_here(tmp_path / "refused", *other)
    assert not (tmp_path / "refused" / "stage1").exists()
    run_here(tmp_path / "run", *other, "stage1.epochs=1", "stage2.features.beta_reference=last_epoch")
