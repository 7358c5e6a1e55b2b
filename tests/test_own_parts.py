"""Faults in a user's own parts are told in a line before anything is trained, and right ones are not refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import composed, run_here

from ltexp.config import to_config
from ltexp.errors import ConfigError
from ltexp.training.composition import check_composition

LOSS, SAMPLER, CLASSIFIER, MIXING = (f"{group}@stage1.{group}" for group in ("loss", "sampler", "classifier", "mixing"))
REFUSED = [
    (LOSS, "Mean", "stage1: Mean.per_sample gave shape (): expected a loss for each of the"),
    (LOSS, "Nameless", "stage1: Nameless says no loss: write per_sample, per_sample_in_context or forward"),
    (LOSS, "ReturnsFloat", "stage1: ReturnsFloat.forward gave a float: expected a scalar tensor"),
    (LOSS, "Learns", "stage1.loss: Learns has parameters (temperature), and no optimizer trains those of a loss"),
    (LOSS, "NoSuper", "stage1.loss own_examples.NoSuper"),
    (LOSS, "Raises", "stage1: KeyError: 'nothing' (own_examples.py, line"),
    (LOSS, "NotANumber", "stage1: the objective is nan on the first batch"),
    (LOSS, "NeedsText", "stage1.loss: NeedsText.needs is 'feature_maps': expected a set of names"),
    (LOSS, "Unasked", "stage1.loss: own_examples.Unasked.before_epoch is never called: set surveys as well"),
    (LOSS, "Plain", "stage1.loss: own_examples.Plain is no Loss: derive it from ltexp.losses.base.Loss"),
    (
        SAMPLER,
        "Negative",
        "stage1.sampler: Negative.class_probabilities gave float64 (10,) from -1 to 1: expected (10,)",
    ),
    (SAMPLER, "Few", "stage1.sampler: Few.class_probabilities gave float64 (3,) from 1 to 1: expected (10,) shares"),
    (SAMPLER, "Short", "stage1.sampler: Short.indices gave int64 (5,)"),
    (SAMPLER, "Abstract", "stage1.sampler: own_examples.Abstract: TypeError: Can't instantiate abstract class"),
    (CLASSIFIER, "Wide", "stage1.classifier: own_examples.Wide gave float32 (2, 11): expected logits of shape (2, 10)"),
    (CLASSIFIER, "Unfitted", "own_examples.Unfitted.fit is never called: set needs_features or starts_from_features"),
    (CLASSIFIER, "Plain", "stage1.classifier: own_examples.Plain is no Classifier"),
    ("backbone", "Narrow", "backbone: own_examples.Narrow gave float32 (1, 8): expected features, feature_dim wide,"),
    (MIXING, "Halves", "stage1.mixing: own_examples.Halves gave a tuple: expected a Mixed"),
    (MIXING, "Rows", "stage1.mixing gave float32"),
]


def choice(project: Path, key: str, name: str) -> str:
    """The override that chooses a class of tests/own_examples.py, whose file it writes."""
    group = key.lstrip("+").partition("@")[0]
    path = project / "conf" / group / f"{name.lower()}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {name}\n_target_: own_examples.{name}\n")
    return f"{key}={name.lower()}"


@pytest.mark.parametrize(("key", "name", "expected"), REFUSED, ids=[name for _, name, _ in REFUSED])
def test_a_faulty_part_is_refused_before_anything_is_trained(
    key: str, name: str, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        run_here(tmp_path / "run", "method=ce", choice(tmp_path, key, name), project=tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "record.json").exists()


def test_a_module_that_gives_too_little_is_refused(tmp_path: Path) -> None:
    words = [choice(tmp_path, "+module@stage1.modules.two", "Two"), choice(tmp_path, LOSS, "ReadsTwo")]
    with pytest.raises(ConfigError, match=r"modules\.two: forward gave a Tensor: expected a tuple of one, other"):
        run_here(tmp_path / "run", "method=ce", *words, project=tmp_path)


def test_a_hook_with_a_slip_in_its_name_and_state_that_is_lost_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [choice(tmp_path, LOSS, "Misspelt"), choice(tmp_path, CLASSIFIER, "Forgetful")]
    run_here(tmp_path / "run", "method=ce", *words, project=tmp_path)
    said = capsys.readouterr().out
    assert "note: stage1.loss: nothing calls Misspelt.befor_epoch; if it is meant as before_epoch" in said
    assert "note: stage1.classifier: own_examples.Forgetful keeps memory as a tensor, which no checkpoint holds" in said


def test_parts_that_fit_the_runs_own_numbers_alone_are_tried_with_them(tmp_path: Path) -> None:
    words = ["method=ce", choice(tmp_path, LOSS, "PerClass"), choice(tmp_path, CLASSIFIER, "Groups")]
    with pytest.raises(ConfigError) as caught:
        check_composition(to_config(composed(*words, project=tmp_path)))
    assert caught.value.of_own_part
    run_here(tmp_path / "run", *words, project=tmp_path)
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "finished"
    with pytest.raises(ConfigError, match=r"own_examples\.PerClass: 10 weights"):
        run_here(tmp_path / "other", *words, "dataset.num_classes=8", project=tmp_path)


def test_an_error_of_a_later_step_is_placed_in_the_users_file(tmp_path: Path) -> None:
    (tmp_path / "own_late.py").write_text(
        "from own_examples import Good\n\n\nclass Late(Good):\n    calls = 0\n\n"
        "    def per_sample(self, output, target):\n"
        "        Late.calls += 1\n        if Late.calls > 9:\n            raise RuntimeError('too late')\n"
        "        return super().per_sample(output, target)\n"
    )
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "late.yaml").write_text("# late\n_target_: own_late.Late\n")
    path = ":".join([str(tmp_path), *(text for text in sys.path if text)])
    command = [sys.executable, "-m", "ltexp", "train", "--config-dir", str(tmp_path / "conf"), "method=ce"]
    command += ["loss@stage1.loss=late", "evaluation.figures=false", "hydra.run.dir=run"]
    ended = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    log = tmp_path / "run" / "run.log"
    assert ended.stderr == f"ltexp: own_late.py, line 10, in per_sample: RuntimeError: too late (traceback: {log})\n"
    assert "Traceback" in log.read_text()
