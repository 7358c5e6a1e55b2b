"""Temperature scaling: the temperature against a search of SciPy's, and as a row of a finished run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import record, write
from runs import run_here, tiny
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ltexp.analysis.batch_norm import write_batch_norm
from ltexp.analysis.restored import restore
from ltexp.errors import ConfigError, DataError
from ltexp.evaluation.temperature import HIGHEST, LOWEST, fit_temperature
from ltexp.report.figures import draw
from ltexp.report.figures.batch_norm import by_layer
from ltexp.report.groups import Statistic, group_runs
from ltexp.report.records import Run, find_runs
from ltexp.report.results import results_table


def sample(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the softmax of some logits, and these logits times `scale`."""
    draws = np.random.default_rng(0)
    logits = draws.normal(size=(4000, 5)) * 2
    chances = np.exp(log_softmax(logits, axis=1)).cumsum(axis=1)
    labels = (draws.random((4000, 1)) > chances[:, :-1]).sum(axis=1)
    return logits * scale, labels


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_it_is_the_least_likelihood_and_undoes_a_scale(scale: float) -> None:
    logits, labels = sample(scale)

    def loss(temperature: float) -> float:
        return float(-log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean())

    found = fit_temperature(logits, labels)
    assert found == pytest.approx(minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x, rel=1e-3)
    assert found == pytest.approx(scale, rel=0.05)


def test_samples_that_are_all_right_or_all_wrong_end_at_a_bound() -> None:
    logits = np.eye(3) * 5
    assert fit_temperature(logits, np.arange(3)) == pytest.approx(LOWEST)
    assert fit_temperature(logits, np.array([1, 2, 0])) == pytest.approx(HIGHEST)
    with pytest.raises(DataError, match="not finite"):
        fit_temperature(np.full((1, 2), np.inf), np.array([0]))


def test_an_evaluation_that_was_kept_is_a_row_of_its_own(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = write(tmp_path / str(seed), seed=seed)
        (folder / "evaluations").mkdir()
        metrics = record()["metrics"] | {"ece": 1.0 + seed, "nll": 0.5}
        (folder / "evaluations" / "stage2_temperature.json").write_text(json.dumps({"metrics": metrics}))
    (tmp_path / "0" / "evaluations" / "other.json").write_text("{")
    table = results_table(group_runs(find_runs([tmp_path])[0]), "posthoc,ece,nll", posthoc=True)
    assert [row[0] for row in table.rows] == [None, "stage2_temperature"]
    assert [cell.mean for cell in table.rows[1][1:] if isinstance(cell, Statistic)] == [1.5, 0.5]


def test_rows_on_another_test_set_are_named_and_are_not_the_best_of_the_test_split(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", all=50.0)
    (folder / "evaluations").mkdir()
    kept: dict[str, dict[str, Any]] = {"stage2_temperature": {}, "stage2_forward50_unknown": {"shift": "forward50"}}
    kept |= {"stage2_forward50_known": {"shift": "forward50"}, "stage2_other": {"dataset": ["dataset=birds"]}}
    for place, (name, content) in enumerate(kept.items(), 1):
        metrics = record()["metrics"] | {"all": 50.0 + 10 * place}
        (folder / "evaluations" / f"{name}.json").write_text(json.dumps(content | {"metrics": metrics}))
    table = results_table(group_runs(find_runs([tmp_path])[0]), "posthoc,all", posthoc=True)
    assert {table.rows[row][0] for row, _ in table.best} == {"stage2_temperature", "stage2_forward50_known"}
    said = "rows on other test sets, compared among themselves alone: class shares forward50, dataset=birds"
    assert said in table.notes
    assert said not in results_table(group_runs(find_runs([tmp_path])[0])).notes


def test_a_part_of_the_test_images_is_another_test_set(tmp_path: Path) -> None:
    for place, tested in enumerate([{}, {}, {"tested": {"images": 10, "of": 500}}]):
        write(tmp_path / str(place), config_hash=str(place), all=50.0 + place, **tested)
    table = results_table(group_runs(find_runs([tmp_path])[0]), "config,all")
    assert {table.rows[row][0] for row, _ in table.best} == {"1"}


@pytest.mark.slow
def test_a_finished_run_is_scaled_by_its_held_out_images(tmp_path: Path) -> None:
    held_out = "dataset.validation.fraction=0.25"
    for name, extra in (("with", (held_out,)), ("without", ())):
        folder = tmp_path / name
        config = run_here(folder, *tiny("lws", "batch_norm=statistics"), *extra)
        restored = restore(config, folder, "stage2", None)
        if not extra:
            with pytest.raises(ConfigError, match=r"dataset\.validation\.fraction"):
                restored.scale_by_temperature()
            continue
        before = restored.measure()
        temperature, images = restored.scale_by_temperature()
        after = restored.measure()
        assert images == len(restored.session.data.validation.labels)  # type: ignore[union-attr]
        assert after["per_class"] == before["per_class"]  # no prediction changes
        assert (after["nll"] != before["nll"]) == (temperature != 1)
        write_batch_norm(restored)
        run = Run(folder, record())
        layers = by_layer(run)
        first = layers[next(iter(layers))]
        assert set(first) == {"stage1", "stage2"}
        assert not np.allclose(first["stage1"]["mean"], first["stage2"]["mean"])  # shift learning
        draw("batch_norm", [run], tmp_path / "batch_norm.png")
