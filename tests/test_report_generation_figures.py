"""The figures of generated features and of weights that grow: the right numbers, and one line where there are none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from records import record, write
from runs import composed

from ltexp.config import to_config
from ltexp.errors import ConfigError, DataError
from ltexp.report.figures import confidence, draw, generated_features, gradual_weight
from ltexp.report.records import Run
from ltexp.run_folder import write_metrics


def run(folder: Path, *overrides: str) -> Run:
    """A finished run's record and config."""
    write(folder)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(composed(*overrides))))
    return Run(folder, record())


def test_the_curves_are_those_of_the_runs_once_each(tmp_path: Path) -> None:
    settings = (("stage1.loss.c=4",), ("stage1.loss.c=1",), ("stage1.loss.c=0.5", "stage1.loss.s=-1"), ())
    runs = [run(tmp_path / str(number), "method=graloss", *some) for number, some in enumerate((*settings, ()))]
    found = {gradual_weight.curve_of(to_config(composed("method=graloss", *some)).stage1) for some in settings}
    assert found == {(4.0, None), (1.0, None), (0.5, -1), (2.0, None)}
    draw("gradual_weight", runs, tmp_path / "alpha.svg")
    for name in ("convex, c = 4", "linear", "concave, c = 0.5, s = -1", "convex, c = 2"):
        assert gradual_weight.name(*next(curve for curve in found if gradual_weight.name(*curve) == name)) == name
    assert (tmp_path / "alpha.svg").read_text().count("<!-- convex, c = 2 -->") == 1
    with pytest.raises(DataError, match="none of these runs has loss gradual_balanced"):
        draw("gradual_weight", [run(tmp_path / "ce", "method=ce")], tmp_path / "none.png")


def beta_rows(betas: list[list[float]]) -> list[dict[str, Any]]:
    return [
        {"epoch": epoch, "class": label, "images": 10 - label, "beta": beta, "score": 0.5}
        for epoch, row in enumerate(betas)
        for label, beta in enumerate(row)
    ]


def test_betas_come_by_epoch_and_class(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=r"has no confidence\.csv"):
        draw("confidence", [Run(tmp_path, record())], tmp_path / "none.png")
    (tmp_path / "stage2").mkdir(exist_ok=True)
    betas = [[0.6, 0.6], [0.65, 0.55], [0.7, 0.5]]
    write_metrics(tmp_path / "stage2" / "confidence.csv", beta_rows(betas))
    images, found = confidence.read_confidence(Run(tmp_path, record()))
    assert images.tolist() == [10, 9]
    assert found.tolist() == betas
    draw("confidence", [Run(tmp_path, record())], tmp_path / "beta.png")
    assert (tmp_path / "beta.png").stat().st_size > 10_000


def test_generated_features_are_shown_on_their_principal_components(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(200, 3)) * [5.0, 2.0, 0.1]
    mean, directions = generated_features.components(wide.astype(np.float32) + 7)
    np.testing.assert_allclose(mean, 7, atol=1)
    np.testing.assert_allclose(np.abs(directions), [[1, 0, 0], [0, 1, 0]], atol=0.05)

    shown = Run(tmp_path, record())
    arrays = {f"{kind}_features": rng.normal(size=(40, 6)).astype(np.float32) for kind in ("train", "test")}
    arrays |= {f"{kind}_labels": np.arange(40) % 3 for kind in ("train", "test")}
    np.savez(tmp_path / "features.npz", **arrays)
    with pytest.raises(DataError, match="of a run with generated features"):
        draw("generated_features", [shown], tmp_path / "out.png")
    made = {"generated_features": rng.normal(size=(30, 6)).astype(np.float32), "generated_labels": np.full(30, 2)}
    np.savez(tmp_path / "features.npz", **arrays, **made)
    draw("generated_features", [shown], tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 10_000
    with pytest.raises(ConfigError, match="no features of class 0 are generated"):
        draw("generated_features", [shown], tmp_path / "none.png", classes="a")
