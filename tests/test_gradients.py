"""Gradients by class (BKD, Fig. 2b): what `ltexp evaluate RUN gradients=true` measures."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import run_here, tiny

from ltexp import evaluate
from ltexp.analysis.gradients import write_gradients
from ltexp.analysis.restored import LoadedStage, restore
from ltexp.errors import ConfigError
from ltexp.run_folder import read_metrics
from ltexp.training.predict import predict

PLAIN = ("augmentation@stage1.augmentation=none", "stage1.epochs=1")


def restored(folder: Path) -> LoadedStage:
    config, stage = evaluate.chosen(folder, {}, [])
    return restore(config, folder, stage, None)


@pytest.mark.parametrize(("method", "beta"), [("ce", 0.0), ("cb_ce", 0.9999)])
def test_gradients_are_those_of_equation_4(method: str, beta: float, tmp_path: Path) -> None:
    """Sum over samples of w_y p_k for k != y, and of w_y (1 - p_y), from predictions on the training images."""
    settings = (f"method={method}", *PLAIN, *(("stage1.loss.divide_by=batch",) if beta else ()))
    run_here(tmp_path / "run", *settings)
    stage = restored(tmp_path / "run")
    rows = read_metrics(write_gradients(stage))
    split, counts = stage.session.data.train, stage.session.data.class_counts
    found = predict(stage.model, stage.session.evaluation_loader(split), "32-true")
    p = torch.from_numpy(found.logits).double().softmax(1).numpy()
    weights = (1 - beta) / (1 - beta ** counts.astype(np.float64))
    size = weights[found.labels, None] * len(counts) / weights.sum()
    own = np.eye(len(counts), dtype=bool)[found.labels]
    negative = (size * np.where(own, 0, p)).sum(0)
    positive = (size * np.where(own, 1 - p, 0)).sum(0)
    np.testing.assert_allclose([float(row["negative"]) for row in rows], negative, rtol=1e-3)
    np.testing.assert_allclose([float(row["positive"]) for row in rows], positive, rtol=1e-3)
    assert [int(row["class"]) for row in rows] == list(range(10))


@pytest.mark.parametrize(
    ("method", "keys", "tau"),
    [
        ("bsce_cmo", ("mixing.plain_first=0", "mixing.plain_last=0"), 1),  # a stream that the mixing alone reads
        # a stream that the step alone reads, whose images are no training images, taken away once
        ("mw_net", ("streams.meta.held_out.of=train", "streams.meta.held_out.per_class=1"), 0),
    ],
)
def test_what_training_alone_has_is_no_hindrance(
    method: str, keys: tuple[str, ...], tau: float, tmp_path: Path
) -> None:
    """Sums of p_k, and of 1 - p_y, for the softmax of z + tau log n, from predictions on the images of training."""
    run_here(tmp_path / "run", *tiny(method, *keys, epochs=1), "augmentation@stage1.augmentation=none")
    stage = restored(tmp_path / "run")
    rows = read_metrics(write_gradients(stage))
    found = predict(stage.model, stage.session.evaluation_loader(stage.session.data.train), "32-true")
    prior = torch.from_numpy(stage.session.data.class_counts).double().log()
    p = (torch.from_numpy(found.logits).double() + tau * prior).softmax(1).numpy()
    own = np.eye(4, dtype=bool)[found.labels]
    np.testing.assert_allclose([float(row["negative"]) for row in rows], np.where(own, 0, p).sum(0), rtol=1e-3)
    np.testing.assert_allclose([float(row["positive"]) for row in rows], np.where(own, 1 - p, 0).sum(0), rtol=1e-3)


@pytest.mark.parametrize("method", ["bcl", "dasl"])
def test_objectives_over_views_and_auxiliary_networks_have_gradients(method: str, tmp_path: Path) -> None:
    run_here(tmp_path / "run", *tiny(method, epochs=1))
    rows = read_metrics(write_gradients(restored(tmp_path / "run")))
    assert all(float(row["positive"]) > 0 < float(row["negative"]) for row in rows)


def test_a_students_gradients_include_its_distillation(tmp_path: Path) -> None:
    """Softmax losses only move mass between classes: what all lose, the targets gain, up to the sign."""
    run_here(tmp_path / "run", "method=bkd", "mixing@stage2.mixing=none", "stage1.epochs=1")
    rows = read_metrics(write_gradients(restored(tmp_path / "run")))
    assert (tmp_path / "run" / "stage2" / "gradients.csv").is_file()
    assert all(float(row["negative"]) > 0 for row in rows)


@pytest.mark.parametrize("method", ["ride_2", "glmc"])
def test_experts_and_heads_of_views_have_no_gradient_by_class(method: str, tmp_path: Path) -> None:
    run_here(tmp_path / "run", *tiny(method, epochs=1))
    with pytest.raises(ConfigError, match="does not read the logits"):
        write_gradients(restored(tmp_path / "run"))


def test_the_command_measures_and_the_figure_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ltexp.report.__main__ import main as report

    run_here(tmp_path / "run", "method=ce", "stage1.epochs=1")
    figure = tmp_path / "figure.png"
    assert report([str(tmp_path / "run"), "figure=negative_gradients", f"out={figure}"]) == 1
    assert "gradients=true" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["evaluate", str(tmp_path / "run"), "gradients=true"])
    evaluate.main()
    assert "gradients kept in" in capsys.readouterr().out
    assert report([str(tmp_path / "run"), "figure=negative_gradients", f"out={figure}"]) == 0
    assert figure.exists()
    with pytest.raises(ConfigError, match="leave out classifier"):
        evaluate.parse([str(tmp_path / "run"), "gradients=true", "classifier=nearest_class_mean"])
