"""The ablations of KPS, FBL and GCL: each row of their tables is an override of one key, and trains."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import assert_equal_weights, composed, run_here, weights

from ltexp.config import to_config
from ltexp.errors import ConfigError
from ltexp.training.composition import check_composition
from ltexp.training.learning import without_idle_epochs

LWS = "classifier@stage2.classifier=learnable_weight_scaling"
TAU = "classifier@stage2.classifier=tau_normalized"
NO_GA = "stage1.loss.gradient_adjustment=false"

ROWS = [  # (table, base, the row's override, what it changes)
    ("KPS 3.4", (NO_GA, "method=kps"), "stage1.loss.gradient_adjustment=true", "stage1.loss.gradient_adjustment"),
    ("KPS 3.4", (NO_GA, "method=kps"), "reweighting@stage1.reweighting=deferred", "stage1.reweighting"),
    ("KPS 3.5", ("method=kps",), "mixing@stage1.mixing=mixup", "stage1.mixing"),
    *[
        ("FBL 4.4", ("method=fbl",), f"stage1.loss.growth={growth}", "stage1.loss.growth")
        for growth in ("linear_decrease", "linear", "sine", "cosine")
    ],
    *[
        ("GCL 5.4", ("method=gcl",), f"stage1.loss.cloud={cloud}", "stage1.loss.cloud stage2.loss.cloud")
        for cloud in ("cosine", "cube_root", "fourth_root")
    ],
    *[
        ("GCL 5.5", ("method=gcl",), f"sampler@stage2.sampler={sampler}", "stage2.sampler")
        for sampler in ("instance_balanced", "class_balanced", "effective_number")
    ],
    ("GCL 5.6", ("method=gcl",), "stage2=null", "stage2"),
    ("GCL 5.6", ("method=gcl",), LWS, "stage2.classifier"),
    ("GCL 5.6", ("method=gcl",), TAU, "stage2.classifier"),
    ("GCL 5.6", ("method=gcl",), "stage2.init.classifier=fresh", "stage2.init.classifier"),
]


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(node, dict) or not node:
        return {path: node}
    return {key: value for name, child in node.items() for key, value in leaves(child, f"{path}.{name}").items()}


def changed(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Dotted keys of the stages, or of the part they are keys of, whose values differ."""
    parts = [leaves({name: config[name] for name in ("stage1", "stage2")}) for config in (one, other)]
    return {key.lstrip(".") for key in parts[0] | parts[1] if parts[0].get(key, "-") != parts[1].get(key, "-")}


@pytest.mark.parametrize("dataset", ["cifar10_lt", "cifar100_lt"])
@pytest.mark.parametrize(("table", "base", "override", "keys"), ROWS, ids=[f"{row[0]} {row[2]}" for row in ROWS])
def test_each_row_is_its_base_with_one_key_changed(
    table: str, base: tuple[str, ...], override: str, keys: str, dataset: str
) -> None:
    """Nothing else differs in what the stages do, and the composition can work."""
    overrides = [word for word in base if word.partition("=")[0] != override.partition("=")[0]]
    plain = composed(*base, f"dataset={dataset}", small=False)
    row = composed(*overrides, override, f"dataset={dataset}", small=False)
    found = changed(plain, row)
    assert found
    assert all(any(key == part or key.startswith(part + ".") for part in keys.split()) for key in found), found
    assert all(any(key == part or key.startswith(part + ".") for key in found) for part in keys.split()), found
    check_composition(without_idle_epochs(to_config(row)))


@pytest.mark.parametrize("dataset", ["cifar10_lt", "cifar100_lt"])
def test_methods_that_are_rows_of_another_are_that_row(dataset: str) -> None:
    """Table 3.5's method is KPS with one key changed; Table 3.6's is MiSLAS but for stage 2's loss and classifier."""
    mixup = composed("method=kps", "mixing@stage1.mixing=mixup", f"dataset={dataset}", small=False)
    assert not changed(mixup, composed("method=kps_mixup", f"dataset={dataset}", small=False))
    both = [composed(f"method={name}", f"dataset={dataset}", small=False) for name in ("mislas", "mislas_kps")]
    parts = ("stage2.loss.", "stage2.classifier.", "stage2.init.classifier", "stage2.lr_factors")
    assert all(key.startswith(parts) for key in changed(*both))


@pytest.fixture(scope="module")
def gcl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gcl") / "run"
    run_here(folder, "method=gcl", "stage2.epochs=2")
    return folder


def stages(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "record.json").read_text())["stages"]
    return found


@pytest.mark.parametrize("override", ["stage2=null", LWS, TAU, "stage2.init.classifier=fresh"])
def test_every_way_of_re_training_gcl_runs_over_one_stage_1(override: str, gcl: Path) -> None:
    folder = gcl.parent / override.partition("=")[2]
    run_here(folder, "method=gcl", *([] if override == "stage2=null" else ["stage2.epochs=2"]), override)
    found = stages(folder)
    assert found[0]["cached"]
    assert len(found) == (1 if override == "stage2=null" else 2)
    if override == LWS:
        scale = weights(folder, "stage2")["classifier.scale"]
        assert not np.allclose(scale, 1)


def test_epochs_in_which_nothing_learns_are_left_out(gcl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """tau-normalisation at tau = 1 of a cosine stage 1 is that stage."""
    run_here(gcl.parent / "tau", "method=gcl", "stage2.epochs=2", TAU)
    assert "nothing learns here (tau_normalized), so its 2 epochs are left out" in capsys.readouterr().out
    first, second = stages(gcl.parent / "tau")
    assert second["epochs"] == 0
    assert second["metrics"]["per_class"] == first["metrics"]["per_class"]
    run_here(gcl.parent / "none", "method=gcl", TAU, "stage2.epochs=0")
    assert_equal_weights(weights(gcl.parent / "tau", "stage2"), weights(gcl.parent / "none", "stage2"))


def test_moving_batch_norms_are_not_left_out_in_silence() -> None:
    config = to_config(composed("method=mislas", TAU))
    assert without_idle_epochs(config) == config
    with pytest.raises(ConfigError, match="not trained by epochs"):
        check_composition(config)


def test_a_scaled_classifier_starts_from_the_file_of_a_cosine_one_and_is_known_to_be_of_cosines(gcl: Path) -> None:
    config = to_config(composed("method=gcl", LWS, f"stage2.init.classifier={gcl}"))
    check_composition(config)
    linear = to_config(composed("method=lws", "loss@stage2.loss=gaussian_clouded"))
    with pytest.raises(ConfigError, match=r"stage2: GaussianClouded needs a cosine classifier and this one is linear"):
        check_composition(linear)
