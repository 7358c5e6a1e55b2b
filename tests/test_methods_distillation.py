"""KD, BKD, DiVE and CBD as teacher and student in the two stages of a run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from choices import full_output
from runs import composed, run_here
from torch import Tensor

from ltexp.config import to_config
from ltexp.config.build import build
from ltexp.errors import CheckpointError, ConfigError
from ltexp.evaluation.record import read_record
from ltexp.models.model import Model
from ltexp.outputs import ModelOutput
from ltexp.training import run_stage
from ltexp.training.objective import Objective
from ltexp.training.session import Session
from ltexp.training.start import load_model, load_teachers
from ltexp.training.teacher import Teacher, Teachers

COSINE = tuple(
    f"{key}={value}"
    for key, value in {
        "classifier@stage1.classifier": "cosine",
        "classifier@stage2.classifier": "cosine",
        "stage1.loss.scale": 16,
        "stage2.loss.scale": 16,
    }.items()
)
TERM = "stage2.terms.distillation.loss"


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {key: value for name, child in node.items() for key, value in flat(child, f"{prefix}.{name}").items()}


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """The keys of the two stages in which two configs differ."""
    left, right = ({k: v for k, v in flat(config).items() if k.startswith(".stage")} for config in (one, other))
    return {key for key in left.keys() | right.keys() if left.get(key, "absent") != right.get(key, "absent")}


@pytest.mark.parametrize("method", ["kd", "bkd", "dive", "cbd"])
def test_the_student_is_trained_as_the_teacher_was(method: str) -> None:
    """From scratch, everything learning, over as many epochs in the same schedule, also in a shortened run."""
    config = to_config(
        composed(f"method={method}", "dataset=cifar100_lt", "stage1.epochs=8", "stage1.optimizer.lr=0.3")
    )
    one, two = config.stage1, config.stage2
    assert two is not None
    assert (two.epochs, two.batch_size, two.teacher, one.teacher) == (8, one.batch_size, "stage1", None)
    assert (two.init.backbone, two.init.classifier, two.batch_norm) == ("fresh", "fresh", "train")
    assert two.trainable.backbone
    assert (two.schedule, two.optimizer, two.augmentation) == (one.schedule, one.optimizer, one.augmentation)


def test_bkd_as_published() -> None:
    for dataset, start in (("cifar10_lt", 0.8), ("cifar100_lt", 0.0)):
        plain = composed("method=bkd", f"dataset={dataset}", small=False)
        loss = plain["stage2"]["terms"]["distillation"]["loss"]
        assert (loss["temperature"], loss["weighting"], loss["beta"]) == (2.0, "effective_number", 0.9999)
        assert (loss["start"], plain["stage2"]["terms"]["distillation"]["weight"]) == (start, 1.0)
        assert plain["stage1"]["mixing"]["_target_"].endswith("NoMixing")
        assert plain["stage2"]["mixing"] == {"_target_": "ltexp.training.mixing.Mixup", "alpha": 1.0}
        assert (plain["stage1"]["epochs"], plain["stage1"]["schedule"]["decay"]) == (200, 0.01)


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("mixing@stage2.mixing=none", {".stage2.mixing._target_", ".stage2.mixing.alpha"}),
        (f"{TERM}.temperature=3", {f".{TERM}.temperature"}),
        (f"{TERM}.beta=0.99", {f".{TERM}.beta"}),
        (f"{TERM}.weighting=inverse_frequency", {f".{TERM}.weighting"}),
        (
            f"loss@{TERM}=distillation",
            {f".{TERM}.{key}" for key in ("_target_", "weighting", "beta", "start")},
        ),
    ],
)
def test_an_ablation_is_one_key(override: str, changed: set[str]) -> None:
    """Table 7, Figs. 5 and 6; the stage before, the teacher, is the same and so trained once."""
    assert (
        differing(composed("method=bkd", "dataset=cifar10_lt"), composed("method=bkd", "dataset=cifar10_lt", override))
        == changed
    )


def test_bkd_without_weights_and_mixup_is_kd() -> None:
    ablated = composed("method=bkd", "dataset=cifar100_lt", "mixing@stage2.mixing=none", f"loss@{TERM}=distillation")
    assert not differing(ablated, composed("method=kd", "dataset=cifar100_lt"))


def test_the_loss_of_a_stage_has_a_weight_as_its_terms_have() -> None:
    """DiVE: half balanced softmax, half distillation."""
    config = to_config(composed("method=dive"))
    assert config.stage2 is not None
    objective = Objective(config.stage2, torch.tensor([9, 5, 2]))
    output, y = full_output(torch.randn(6, 3)), torch.arange(6) % 3
    expected = 0.5 * objective.loss(output, y) + 0.5 * objective.terms["distillation"](output, y)
    torch.testing.assert_close(objective(output, y), expected)
    with pytest.raises(ConfigError, match=r"stage2.loss_weight=0.* above 0"):
        composed("method=dive", "stage2.loss_weight=0")


def test_a_grid_over_temperatures_trains_its_teacher_once(tmp_path: Path) -> None:
    """And the teacher of KD and BKD is the run of plain cross-entropy."""
    run_here(tmp_path / "ce", "method=ce", "stage1.epochs=1")
    students = {}
    for temperature in (1, 4):
        run_here(tmp_path / f"t{temperature}", "method=bkd", "stage1.epochs=1", f"{TERM}.temperature={temperature}")
        record = read_record(tmp_path / f"t{temperature}")
        assert [stage["cached"] for stage in record["stages"]] == [True, False]
        students[temperature] = record["stages"][1]["fingerprint"]
    assert students[1] != students[4]


@pytest.mark.parametrize("method", ["bkd", "cbd"])
def test_the_teacher_reads_the_mixed_batch_and_stays_bit_equal(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters and running statistics before and after; the student's inputs are the teacher's, mixed once."""
    teachers: list[Teacher] = []
    before: list[dict[str, Tensor]] = []
    seen: list[bool] = []
    load, call = run_stage.load_teachers, Teacher.__call__

    def loaded(*arguments: Any) -> Teachers:
        found = load(*arguments)
        if found.one is not None:
            teachers.append(found.one)
            before.append({name: value.clone() for name, value in found.one.model.state_dict().items()})
        return found

    def called(self: Teacher, inputs: Tensor, of_features: bool = False) -> ModelOutput:
        output = call(self, inputs, of_features)
        assert not self.model.training
        assert not output.logits.requires_grad
        seen.append(inputs is last[0])
        return output

    last: list[Tensor] = [torch.empty(0)]
    forward = Model.forward

    def spied(self: Model, inputs: Tensor, *arguments: Any, **keywords: Any) -> Any:
        if self.training:
            last[0] = inputs
        return forward(self, inputs, *arguments, **keywords)

    monkeypatch.setattr(run_stage, "load_teachers", loaded)
    monkeypatch.setattr(Teacher, "__call__", called)
    monkeypatch.setattr(Model, "forward", spied)
    run_here(tmp_path / "run", f"method={method}", "stage1.epochs=2")
    (teacher,) = teachers
    assert seen
    assert all(seen)
    after = teacher.model.state_dict()
    assert before[0].keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before[0].items())
    assert any("running_mean" in name for name in after)


def test_a_teacher_that_is_no_stage_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("not a checkpoint")
    torch.save({"model": {}}, tmp_path / "other.pt")
    for name, message in (
        ("notes.pt", "is a text file, no checkpoint"),
        ("other.pt", "not a stage checkpoint"),
        ("none.pt", "no checkpoint at"),
    ):
        with pytest.raises(CheckpointError, match=message):
            run_here(tmp_path / f"run_{name}", "method=kd", "stage1.epochs=1", f"stage2.teacher={tmp_path / name}")
        assert not (tmp_path / f"run_{name}" / "stage1" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=ride_bkd_2", "loss@stage2.terms.distillation.loss=distillation"),
        (
            "method=kd",
            "classifier@stage1.classifier=cosine",
            "classifier@stage2.classifier=cosine",
            "stage1.loss.scale=16",
            "stage2.loss.scale=16",
        ),
    ],
)
def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_it(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    """Plain cosines on both sides: the term scales the student's as the model's output says, as the teacher's are."""
    config = run_here(tmp_path / "run", *overrides, "stage1.epochs=1")
    assert config.stage2 is not None
    session = Session(config, tmp_path / "run", build(config.dataset, root=config.paths.data), torch.device("cpu"))
    model = session.fresh_model("stage2", config.stage2)
    load_model(model, tmp_path / "run" / "stage1" / "checkpoint.pt")
    teachers = load_teachers(session, config.stage2)
    inputs, labels = session.sample_inputs().expand(4, -1, -1, -1), torch.arange(4)
    output = model.eval()(inputs, {"expert_logits"})
    teachers.answer(inputs, output, {"teacher_logits"})
    term = Objective(config.stage2, session.class_counts).terms["distillation"]
    assert output.logit_scale > 1
    assert term(output, labels).item() == pytest.approx(0, abs=1e-4)
    output.logit_scale = 1.0
    assert term(output, labels).item() > 0.01  # the control: the wrong scale is seen
