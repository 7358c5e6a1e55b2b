"""Teachers and auxiliary networks: what a stage learns from beside its labels."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from runs import assert_equal_weights, run_here, tiny, weights
from torch import Tensor, nn

from ltexp.analysis.restored import restore
from ltexp.errors import CheckpointError, ConfigError
from ltexp.evaluation.record import read_record as record
from ltexp.losses.base import Loss
from ltexp.models.module import StageModule
from ltexp.outputs import ModelOutput
from ltexp.training import checkpoint
from ltexp.training.start import load_teacher

STUDENT = (
    "method=crt",
    "stage2.epochs=1",
    "stage2.teacher=stage1",
    "+stage2.terms.match.weight=1.0",
    f"+stage2.terms.match.loss={{_target_: {__name__}.Match}}",
)


class Match(Loss):
    """Mean squared difference to the teacher's logits; remembers what it was given."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_logits"})
    seen: ClassVar[list[ModelOutput]] = []

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        assert output.teacher_logits is not None
        self.seen.append(output)
        return (output.logits - output.teacher_logits).square().mean(1)


class MatchAll(Loss):
    """The same of two teachers by name."""

    needs: ClassVar[frozenset[str]] = frozenset({"teachers_logits"})
    teachers = ("own", "other")
    seen: ClassVar[list[ModelOutput]] = []

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        assert output.teachers_logits is not None
        self.seen.append(output)
        return sum((output.logits - logits).square().mean(1) for logits in output.teachers_logits.values())


class Pooled(StageModule):
    """An auxiliary network: the classes from the means of the last map."""

    reads = ("feature_maps",)
    gives = ("auxiliary_logits", "auxiliary_maps")

    def __init__(self, map_channels: list[int], num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(map_channels[-1], num_classes)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self.linear(maps[-1].mean((2, 3))), maps


class AuxiliaryCrossEntropy(Loss):
    """Cross-entropy of the auxiliary network's logits."""

    needs: ClassVar[frozenset[str]] = frozenset({"auxiliary_logits"})

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        assert output.auxiliary_logits is not None
        return nn.functional.cross_entropy(output.auxiliary_logits, target, reduction="none")


AUXILIARY = (
    f"+stage1.modules.auxiliary._target_={__name__}.Pooled",
    "+stage1.terms.auxiliary.weight=1.0",
    f"+stage1.terms.auxiliary.loss={{_target_: {__name__}.AuxiliaryCrossEntropy}}",
)


def test_the_teacher_answers_on_the_students_batch_without_gradient_and_stays_as_it_was(tmp_path: Path) -> None:
    Match.seen.clear()
    run_here(tmp_path / "plain", "method=crt", "stage2.epochs=1")
    run_here(tmp_path / "taught", *STUDENT)
    assert record(tmp_path / "taught")["stages"][0]["cached"]
    assert Match.seen
    assert not any(output.teacher_logits.requires_grad for output in Match.seen if output.teacher_logits is not None)
    teacher = checkpoint.read(tmp_path / "taught" / "stage1" / "checkpoint.pt").build_classifier()
    output = Match.seen[0]  # the backbone is frozen and shared here, so the teacher's logits are known
    torch.testing.assert_close(output.teacher_logits, teacher(output.features), rtol=1e-4, atol=1e-4)
    assert_equal_weights(weights(tmp_path / "plain", "stage1"), weights(tmp_path / "taught", "stage1"))


def test_a_teacher_of_a_cosine_classifier_gives_scaled_logits(tmp_path: Path) -> None:
    Match.seen.clear()
    run_here(tmp_path / "run", *STUDENT, "classifier@stage1.classifier=cosine", "stage1.loss.scale=16")
    largest = max(
        float(output.teacher_logits.abs().max()) for output in Match.seen if output.teacher_logits is not None
    )
    assert 1 < largest <= 16.01


@pytest.mark.parametrize("method", ["glmc", "oltr"])
def test_a_teacher_answers_with_the_modules_that_its_stage_keeps(method: str, tmp_path: Path) -> None:
    """As the run was evaluated: GLMC's balanced head, and OLTR's memory, answer in the classifier's place."""
    config = run_here(tmp_path / "teacher", *tiny(method, epochs=1))
    last = list(config.stages)[-1]
    restored = restore(config, tmp_path / "teacher", last, None)
    inputs = restored.session.sample_inputs()
    teacher = load_teacher(restored.session, str(tmp_path / "teacher" / last))
    answer = teacher(inputs).logits
    torch.testing.assert_close(answer, restored.model(inputs).logits.detach())
    assert not torch.allclose(answer, teacher.model.classifier(teacher.model.features(inputs)))


def test_another_run_can_be_the_teacher_whatever_its_backbone(tmp_path: Path) -> None:
    run_here(tmp_path / "large", "method=ce", "backbone=resnet20", "stage1.epochs=1")
    run_here(tmp_path / "student", *STUDENT, f"stage2.teacher={tmp_path / 'large'}")
    assert record(tmp_path / "student")["status"] == "finished"


def test_several_teachers_by_name_answer_each_for_itself(tmp_path: Path) -> None:
    """One of the run and one of another; the backbone is the first one's, frozen, so that its answer is known."""
    MatchAll.seen.clear()
    run_here(tmp_path / "other", "method=ce", "backbone=resnet20", "stage1.epochs=1")
    run_here(
        tmp_path / "student",
        *("method=crt", "stage1.epochs=1", "stage2.epochs=1", "+stage2.teachers.own=stage1"),
        *(f"+stage2.teachers.other={tmp_path / 'other'}", "+stage2.terms.match.weight=1.0"),
        f"+stage2.terms.match.loss={{_target_: {__name__}.MatchAll}}",
    )
    output = MatchAll.seen[0]
    assert output.teacher_logits is None
    assert output.teachers_logits is not None
    assert list(output.teachers_logits) == ["own", "other"]
    own, other = output.teachers_logits.values()
    assert not own.requires_grad
    assert not other.requires_grad
    teacher = checkpoint.read(tmp_path / "student" / "stage1" / "checkpoint.pt").build_classifier()
    torch.testing.assert_close(own, teacher(output.features), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(own, other, atol=0.1)
    files = record(tmp_path / "student")["started_from"]
    assert list(files) == ["stage2"]
    assert len(files["stage2"]) == 1


@pytest.mark.parametrize(
    ("other", "message"),
    [("dataset.num_classes=5", "knows 5 classes"), ("dataset.imbalance_ratio=10", "other class counts")],
)
def test_a_teacher_of_other_classes_or_counts_is_refused_before_training(
    other: str, message: str, tmp_path: Path
) -> None:
    run_here(tmp_path / "teacher", "method=ce", "stage1.epochs=1", other)
    with pytest.raises(CheckpointError, match=message):
        run_here(tmp_path / "student", *STUDENT, f"stage2.teacher={tmp_path / 'teacher'}")
    assert not (tmp_path / "student" / "stage1" / "checkpoint.pt").exists()


def test_a_teacher_of_the_run_on_other_images_is_refused_before_training(tmp_path: Path) -> None:
    held = ("+stream@stage2.streams.meta=held_out", "+stage2.terms.match.stream=meta")
    with pytest.raises(ConfigError, match=r"stage2: its teacher stage1 is trained on other classes or class counts"):
        run_here(tmp_path / "run", *STUDENT, *held)
    assert not (tmp_path / "run" / "stage1").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*STUDENT, "stage2.teacher=null"), r"stage2: term match needs a teacher: set stage2.teacher"),
        (("method=crt", "stage2.teacher=stage1"), r"stage2: no loss or term reads its teacher"),
        (("method=ce", "stage1.teacher=stage1"), r"invalid stage1.teacher=stage1: expected null or a path"),
        (
            ("method=ce", "+stage1.teachers.a=stage1"),
            r"invalid stage1.teachers.a=stage1: expected a path; a stage cannot",
        ),
        (
            ("method=crt", "+stage2.teachers.a=nowhere"),
            r"stage2: no loss or term reads its teacher a, but none by name",
        ),
        ((*STUDENT, "stage2.teacher=nowhere"), r"no checkpoint at .*nowhere"),
        (("method=ce", *AUXILIARY[1:]), r"stage1: term auxiliary needs auxiliary_logits, and no module gives it"),
        (("method=ce", AUXILIARY[0]), r"stage1: nothing reads what its module auxiliary gives"),
        (
            (
                "method=crt",
                *(text.replace("stage1", "stage2") for text in AUXILIARY),
                "+stage2.modules.auxiliary.start=stage1",
            ),
            r"stage2: its module auxiliary continues that of stage1, which has none",
        ),
    ],
)
def test_what_has_no_teacher_or_no_use_for_one_is_refused(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=message):
        run_here(tmp_path / "run", *overrides)


def test_an_auxiliary_network_learns_continues_in_stage_2_and_is_no_part_of_what_is_evaluated(tmp_path: Path) -> None:
    second = [text.replace("stage1", "stage2") for text in AUXILIARY]
    run_here(
        tmp_path / "run", "method=crt", "stage2.epochs=1", *AUXILIARY, *second, "+stage2.modules.auxiliary.start=stage1"
    )
    states: list[dict[str, Any]] = []
    for stage in ("stage1", "stage2"):
        source = checkpoint.read(tmp_path / "run" / stage / "checkpoint.pt")
        assert not any("auxiliary" in name for name in (*source.backbone, *source.classifier))
        states.append(source.modules["auxiliary"]["state"])
    assert not torch.equal(states[0]["linear.weight"], states[1]["linear.weight"])


def test_a_checkpoint_without_auxiliary_network_cannot_stand_for_a_stage_with_one(tmp_path: Path) -> None:
    run_here(tmp_path / "plain", "method=ce", "stage1.epochs=1")
    with pytest.raises(CheckpointError, match="has no module auxiliary"):
        run_here(tmp_path / "run", "method=ce", *AUXILIARY, f"stage1.checkpoint={tmp_path / 'plain'}")
