"""Plots without runs: their numbers against what the papers print, torch's own gradient, and geometry."""

from pathlib import Path

import numpy as np
import pytest
import torch
from records import record, write

from ltexp.errors import ConfigError, DataError
from ltexp.report import plots
from ltexp.report.drawing import titles
from ltexp.report.figures import angles, draw, probabilities_by_shot, to_evaluate
from ltexp.report.plots import class_counts, softmax_gradient
from ltexp.report.records import Run


def test_the_gradient_is_torchs() -> None:
    logits = torch.linspace(-6, 6, 25, dtype=torch.float64)[:, None] * torch.tensor([0.75, -0.25])
    logits.requires_grad_()
    torch.nn.functional.cross_entropy(logits, torch.zeros(25, dtype=torch.int64), reduction="sum").backward()
    assert logits.grad is not None
    difference = (logits[:, 0] - logits[:, 1]).detach().numpy()
    np.testing.assert_allclose(softmax_gradient.gradient(difference), logits.grad[:, 0].numpy(), rtol=1e-12)


def test_counts_are_by_falling_size_and_other_splits_follow() -> None:
    lines = class_counts._lines("digits_lt", "60,10", ["train"], "nowhere")
    assert [name.partition(" (")[0] for name in lines] == ["ratio 60", "ratio 10"]
    first, second = lines.values()
    assert (first[0], first[-1], second[0], second[-1]) == (120, 2, 120, 12)
    assert (np.diff(first) <= 0).all()
    both = class_counts._lines("digits_lt", None, ["train", "test"], "nowhere")
    assert [counts.tolist() for counts in both.values()][1] == [50] * 10


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("class_count", {}, "unknown plot 'class_count': did you mean 'class_counts'"),
        ("class_counts", {"dataset": "digits_lt", "ratio": "2"}, "unknown option of the plot class_counts 'ratio'"),
        ("class_counts", {"dataset": "digits_lt", "ratios": "2,x"}, "invalid ratios=2,x: expected numbers above 0"),
        ("class_counts", {"dataset": "digits_lt", "splits": "tset"}, "unknown split 'tset'"),
        ("gradual_weight", {"c": "0"}, "invalid c=0"),
        ("smoothing_factors", {"forms": "concav"}, "unknown form 'concav': did you mean 'concave'"),
    ],
)
def test_what_cannot_be_plotted_has_one_line(name: str, options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        plots.draw(name, tmp_path / "x.png", **options)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("class_counts", {"dataset": "digits_lt", "ratios": "60,10"}),
        ("gradual_weight", {"c": "0.5,1,2"}),
        ("smoothing_factors", {"forms": "power", "powers": "0.5,2"}),
        ("softmax_gradient", {}),
    ],
)
def test_every_plot_is_drawn(name: str, options: dict[str, str], tmp_path: Path) -> None:
    plots.draw(name, tmp_path / "x.svg", **options)
    assert "</svg>" in (tmp_path / "x.svg").read_text()


def test_angles_are_those_of_the_plane() -> None:
    features = np.array([[1, 0], [0, 3], [-2, 0], [1, 1]], dtype=np.float32)
    weight = np.array([[2, 0], [0, 0.5]], dtype=np.float32)
    np.testing.assert_allclose(angles.angles(features, weight), [[0, 90], [90, 0], [180, 90], [45, 45]], atol=0.03)


def test_angles_are_of_the_most_and_the_least_frequent_class_and_want_the_weight(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", class_counts=[50, 500, 5])
    found = Run(folder, record(class_counts=[50, 500, 5]))
    draws, arrays = np.random.default_rng(0), {}
    for split in ("train", "test"):
        arrays[f"{split}_features"] = draws.normal(size=(9, 4)).astype(np.float32)
        arrays[f"{split}_labels"] = np.repeat([0, 1, 2], 3)
    np.savez(folder / "features.npz", **arrays)
    assert to_evaluate("angles", found) == "features"  # of a time before the weight was kept
    assert to_evaluate("tsne", found) is None
    with pytest.raises(DataError, match="features=true"):
        draw("angles", [found], tmp_path / "x.svg")
    np.savez(folder / "features.npz", **arrays, classifier_weight=draws.normal(size=(3, 4)).astype(np.float32))
    assert to_evaluate("angles", found) is None
    draw("angles", [found], tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    for axis in ("weight of b", "weight of c"):  # 500 and 5 images
        assert axis in text


def test_probabilities_are_of_the_true_class_and_by_shot(tmp_path: Path) -> None:
    odds = np.array([[1, 1, 2], [6, 1, 1], [1, 3, 4], [2, 2, 6]])
    np.savez(tmp_path / "predictions.npz", logits=np.log(odds).astype(np.float32), labels=np.array([2, 0, 1, 1]))
    found = probabilities_by_shot.probabilities(Run(tmp_path, record(class_counts=[500, 50, 5])))
    expected = {"many": [6 / 8], "medium": [3 / 8, 2 / 10], "few": [2 / 4]}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)


def test_titles_leave_out_what_all_runs_share_where_they_have_the_stage() -> None:
    stages = record()["stages"]
    shared = ["stage1.epochs=2", "trainer.accelerator=cpu"]
    one = Run(Path(), record(method="ce", overrides=shared, stages=stages[:1]))
    two = Run(Path(), record(method="crt", overrides=[*shared, "stage2.epochs=1"], stages=stages))
    three = Run(Path(), record(method="kps", overrides=[*shared, "stage1.loss.scale=3"], stages=stages[:1]))
    assert titles([one, two]) == ["ce", "crt"]
    assert titles([one, two, three]) == ["ce", "crt", "kps, stage1.loss.scale=3"]
