"""The figures by class: what they read, how they order and group classes, and one line where they cannot be drawn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from records import record, write, write_measured
from runs import run_here

from ltexp.analysis.restored import restore, write_features
from ltexp.config import load
from ltexp.errors import ConfigError, DataError
from ltexp.report.classes import chosen_classes, frequency_groups
from ltexp.report.drawing import experiments
from ltexp.report.figures import draw, error_by_class, feature_norms, tsne, weight_norms
from ltexp.report.records import Run


def run(folder: Path = Path(), **changes: Any) -> Run:
    return Run(folder, record(**changes))


@pytest.fixture
def measured(tmp_path: Path) -> Run:
    write_measured(write(tmp_path / "run"))
    return run(tmp_path / "run")


def many_classes(num_classes: int = 100) -> Run:
    """Counts rise with the label, so the last label is the most frequent; class c has accuracy c."""
    counts = list(range(10, 10 + num_classes))
    metrics = {"per_class": [float(c) for c in range(num_classes)]}
    return run(class_counts=counts, class_names=[f"c{c}" for c in range(num_classes)], metrics=metrics)


def test_ten_groups_of_many_classes_follow_the_frequencies_and_not_the_labels() -> None:
    members, labels = frequency_groups(many_classes(), None)
    assert [list(group) for group in members] == [list(range(start, start - 10, -1)) for start in range(99, 0, -10)]
    assert labels[0] == "1\n109–100"
    rates = error_by_class.error_rates(many_classes(), members)
    np.testing.assert_allclose(rates, [100 - (94.5 - 10 * group) for group in range(10)])


def test_few_classes_stand_alone_and_groups_can_be_chosen() -> None:
    unsorted = run(class_counts=[30, 500, 50])
    assert [list(group) for group in frequency_groups(unsorted, None)[0]] == [[1], [2], [0]]
    assert [list(group) for group in frequency_groups(unsorted, "2")[0]] == [[1, 2], [0]]
    assert len(frequency_groups(many_classes(), "none")[0]) == 100
    for text in ("0", "4", "ten"):
        with pytest.raises(ConfigError, match=f"invalid groups={text}"):
            frequency_groups(unsorted, text)


def test_a_class_without_test_images_has_no_error_rate() -> None:
    members = [np.array([0, 2]), np.array([2])]
    np.testing.assert_allclose(error_by_class.error_rates(run(), members), [40, np.nan])  # accuracies 60, 40, None


def test_classes_are_named_or_spread_over_the_frequencies() -> None:
    unsorted = run(class_counts=[30, 500, 50], class_names=["cat", "dog", "3"])
    assert chosen_classes(unsorted, "dog, 0,name:3,dog", default=4) == [1, 0, 2]
    with pytest.raises(ConfigError, match=r"unknown class '3'.*a label from 0 to 2; the class of this name is name:3"):
        chosen_classes(unsorted, "3", default=4)  # a number is a label, never a name
    numbers = run(class_counts=[30, 500, 50], class_names=["2", "0", "name:1"])
    assert chosen_classes(numbers, "0,name:0,name:1,name:2", default=4) == [0, 1, 2]
    assert chosen_classes(unsorted, None, default=2) == [1, 0]
    assert chosen_classes(many_classes(), None, default=4) == [99, 66, 33, 0]
    with pytest.raises(ConfigError, match=r"unknown class 'dgo': did you mean 'dog'\?.*a label from 0 to 2"):
        chosen_classes(unsorted, "dgo", default=4)


def test_seeds_are_one_experiment() -> None:
    found = experiments([run(), run(seed=1), run(method="ce", config_hash="d")])
    assert [(name, len(seeds)) for name, seeds in found] == [("crt (mean of 2 seeds)", 2), ("ce", 1)]


def test_percentiles_are_of_the_test_images_of_each_group(measured: Run) -> None:
    spread = feature_norms.percentiles(measured, [np.array([0]), np.array([0, 1]), np.array([2])])
    np.testing.assert_allclose(spread[0], [0.15, 0.75, 1.5, 2.25, 2.85])  # of 0, 1, 2, 3
    assert spread[1, 2] == 3.5  # the median of 0 to 7
    assert np.isnan(spread[2]).all()


def test_curves_are_read_as_they_were_written(measured: Run) -> None:
    epochs, means = feature_norms.read_curves(measured, "stage1")
    assert epochs.tolist() == [0, 1]
    np.testing.assert_allclose(means, [[1, 2, np.nan], [1.5, 2.5, np.nan]])


def test_curves_of_seeds_are_averaged_where_all_were_evaluated(measured: Run, tmp_path: Path) -> None:
    other = run(write(tmp_path / "other", seed=1), seed=1)
    write_measured(other.folder)
    (other.folder / "stage1" / "feature_norms.csv").write_text("epoch,0,1,2\n1,2.5,3.5,\n")
    epochs, means = feature_norms.mean_curves([measured, other], "stage1")
    assert epochs.tolist() == [1]
    np.testing.assert_allclose(means, [[2, 3, np.nan]])
    draw("feature_norms", [measured, other], tmp_path / "out.png")


def test_weight_norms_are_of_the_last_stage_unless_one_is_chosen() -> None:
    stages = [{"name": "stage1", "weight_norms": [3.0, 2.0, 1.0]}, {"name": "stage2", "weight_norms": [1.0, 1.0, 1.0]}]
    assert weight_norms._norms(run(stages=stages), None).tolist() == [1, 1, 1]
    assert weight_norms._norms(run(stages=stages), "stage1").tolist() == [3, 2, 1]
    with pytest.raises(ConfigError, match="did you mean 'stage2'"):
        weight_norms._norms(run(stages=stages), "stage22")
    unlike = [
        {"name": "stage1", "weight_norms": [1.0]},
        {"name": "stage2", "classifier": "gated", "weight_norms": None},
    ]
    with pytest.raises(DataError, match=r"the gated of stage2 in .* equals no linear map .*: stage=stage1 has"):
        weight_norms._norms(run(stages=unlike), None)
    with pytest.raises(DataError, match="has no weight norms of stage1"):
        weight_norms._norms(run(stages=[{"name": "stage1"}]), None)


def test_smoothing_keeps_a_line_straight_but_for_its_ends() -> None:
    line = np.arange(100.0)
    np.testing.assert_allclose(weight_norms._smooth(line)[2:-2], line[2:-2])


def test_tsne_takes_classes_evenly_and_keeps_clusters_apart() -> None:
    labels = np.repeat([0, 1, 2], [100, 40, 3])
    chosen = tsne.choose(labels, [2, 0], samples=10)
    assert labels[chosen].tolist() == [2] * 3 + [0] * 10
    assert (chosen[3], chosen[-1]) == (0, 99)
    draws = np.random.default_rng(0)
    features = np.concatenate([draws.normal(size=(20, 60)) + 30 * number for number in range(2)]).astype(np.float32)
    places = tsne.embed(features)
    middles = places[:20].mean(axis=0), places[20:].mean(axis=0)
    radius = np.linalg.norm(places[:20] - middles[0], axis=1).max()
    assert np.linalg.norm(middles[0] - middles[1]) > radius
    np.testing.assert_array_equal(tsne.embed(features), places)


MISSING = [
    ("tsne", {}, r"features\.npz .*make it with ltexp evaluate .*run features=true"),
    ("feature_norms", {}, r"needs .*feature_norms\.csv, written while training: train with evaluation\.every"),
    ("negative_gradients", {}, r"no gradients measured: ltexp evaluate .*run gradients=true"),
    ("tsne", {"split": "tset"}, "did you mean 'test'"),
    ("tsne", {"samples": "0"}, "invalid samples=0"),
    ("tsne", {"classes": "9"}, "unknown class '9'"),
    ("error_by_class", {"groups": "9"}, "invalid groups=9"),
    ("error_by_class", {"classes": "1"}, "unknown option of figure=error_by_class 'classes'"),
]


@pytest.mark.parametrize(("kind", "options", "message"), MISSING)
def test_what_cannot_be_drawn_has_one_line(kind: str, options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=message) as error:
        draw(kind, [run(write(tmp_path / "run"))], tmp_path / "out.png", **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("name", ["features.npz", "stage1/feature_norms.csv"])
def test_damaged_files_have_one_line(name: str, measured: Run, tmp_path: Path) -> None:
    (measured.folder / name).write_text("epoch,0\n0,oh\n")
    kind = "tsne" if "npz" in name else "feature_norms"
    with pytest.raises(DataError, match="is damaged"):
        draw(kind, [measured], tmp_path / "out.png")


@pytest.mark.parametrize("kind", ["error_by_class", "weight_norms", "feature_norms", "tsne"])
def test_runs_of_other_counts_do_not_share_a_figure(kind: str, measured: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="differ in their class counts"):
        draw(kind, [measured, run(class_counts=[9, 9, 9])], tmp_path / "out.png")


def test_a_run_keeps_the_norms_of_features_and_weights(tmp_path: Path) -> None:
    """And a stage out of the cache brings its curves along."""
    for name, method in (("one", "method=ce"), ("two", "method=crt")):
        run_here(tmp_path / name, method, "evaluation.every=1")
    one, two = (json.loads((tmp_path / name / "record.json").read_text()) for name in ("one", "two"))
    assert two["stages"][0]["cached"]
    curves = [(tmp_path / name / "stage1" / "feature_norms.csv").read_text() for name in ("one", "two")]
    assert curves[0] == curves[1]
    state = torch.load(tmp_path / "one" / "stage1" / "checkpoint.pt", weights_only=True)["classifier"]
    np.testing.assert_allclose(one["stages"][0]["weight_norms"], state["weight"].norm(dim=1).numpy(), rtol=1e-6)
    with np.load(tmp_path / "one" / "predictions.npz") as arrays:
        norms, labels = arrays["feature_norms"], arrays["labels"]
    assert norms.shape == (500,)
    epochs, means = feature_norms.read_curves(Run(tmp_path / "one", one), "stage1")
    assert epochs.tolist() == [0, 1]
    expected = [norms[labels == label].mean() for label in range(10)]
    np.testing.assert_allclose(means[-1], expected, rtol=1e-4)  # the last evaluation is of the final model


def test_evaluate_keeps_features_whose_norms_are_the_recorded_ones(tmp_path: Path) -> None:
    run_here(tmp_path / "run", "method=ce")
    path = write_features(restore(load(tmp_path / "run" / "config.yaml"), tmp_path / "run", "stage1", None))
    with np.load(path, allow_pickle=False) as arrays, np.load(tmp_path / "run" / "predictions.npz") as predictions:
        assert str(arrays["stage"]) == "stage1"
        state = torch.load(tmp_path / "run" / "stage1" / "checkpoint.pt", weights_only=True)["classifier"]
        np.testing.assert_array_equal(arrays["classifier_weight"], state["weight"].numpy())
        assert np.bincount(arrays["train_labels"]).tolist() == [120, 76, 48, 30, 19, 12, 7, 4, 3, 2]
        norms = np.linalg.norm(arrays["test_features"], axis=1)
        np.testing.assert_allclose(norms, predictions["feature_norms"], rtol=1e-5)
        np.testing.assert_array_equal(arrays["test_labels"], predictions["labels"])
