"""LFME: groups of classes, an expert of each, and a student paced by what they can do, against numbers by hand."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY, composed, run_here, tiny
from test_distributed_methods import compare, run_and_note
from test_every_method import resume_in_each
from torch import Tensor
from torch.nn import functional as F

from ltexp.data.shot_group import ShotGroup
from ltexp.errors import CheckpointError, ConfigError
from ltexp.evaluation.record import read_record
from ltexp.evaluation.shots import GROUPS
from ltexp.losses.context import BatchContext
from ltexp.losses.multiple_experts import MultipleExperts, scaled
from ltexp.losses.shot_group import ShotGroupCrossEntropy
from ltexp.outputs import ModelOutput

COUNTS = torch.tensor([30, 300, 8, 200, 50, 12])  # medium, many, few, many, medium, few
MEMBERS = {"many": [1, 3], "medium": [0, 4], "few": [2, 5]}
LABELS = torch.arange(6)
STUDENT = 2 * torch.sin(3 * torch.arange(6.0)[:, None] + 5 * torch.arange(6.0))
EXPERTS = {name: 3 * torch.cos(torch.arange(36.0).view(6, 6) + number) for number, name in enumerate(GROUPS)}


def output_of(logits: Tensor = STUDENT) -> ModelOutput:
    return ModelOutput(logits, teachers_logits=EXPERTS)


# --- an expert's part ---


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_shows_its_own_images_once_and_no_others(group: str) -> None:
    labels = torch.arange(6).repeat_interleave(COUNTS).flip(0)
    sampler = ShotGroup(labels, COUNTS, group)
    order = sampler.indices(0, 0, 10)
    own = torch.isin(labels, torch.tensor(MEMBERS[group])).nonzero().flatten()
    assert sorted(order.tolist()) == own.tolist()
    assert order.tolist() != own.tolist()


@pytest.mark.parametrize(("many_above", "few_below"), [(99, 21), (100, 20)])
def test_bounds_say_whose_group_a_class_of_100_and_of_20_images_is(many_above: int, few_below: int) -> None:
    counts = torch.tensor([100, 50, 20, 101, 19])
    labels = torch.arange(5).repeat_interleave(counts)
    shown = {
        group: labels[ShotGroup(labels, counts, group, many_above, few_below).indices(0, 0, 1)].unique().tolist()
        for group in GROUPS
    }
    at_bounds = {"many": [0, 3], "medium": [1], "few": [2, 4]}
    assert shown == (at_bounds if many_above == 99 else {"many": [3], "medium": [0, 1, 2], "few": [4]})


@pytest.mark.parametrize("group", GROUPS)
def test_an_expert_learns_cross_entropy_among_its_own_classes_and_nothing_of_others(group: str) -> None:
    logits, columns = STUDENT.clone().requires_grad_(), MEMBERS[group]
    loss = ShotGroupCrossEntropy(COUNTS, group)
    losses = loss.per_sample(ModelOutput(logits), LABELS)
    for row in range(6):
        total = math.log(sum(math.exp(STUDENT[row, column]) for column in columns))
        expected = total - float(STUDENT[row, row]) if row in columns else 0.0
        assert losses[row].item() == pytest.approx(expected, abs=1e-5)
    losses.sum().backward()
    assert logits.grad is not None
    assert set(logits.grad.abs().sum(0).nonzero().flatten().tolist()) == set(columns)
    assert set(logits.grad.abs().sum(1).nonzero().flatten().tolist()) == set(columns)


def test_an_experts_logits_are_for_shares_among_its_own_classes() -> None:
    prior = ShotGroupCrossEntropy(COUNTS, "many").learned_prior(COUNTS.double() / COUNTS.sum())
    torch.testing.assert_close(prior, torch.tensor([0, 0.6, 0, 0.4, 0, 0], dtype=torch.float64))


# --- the student's loss ---


def test_a_divergence_is_of_the_groups_classes_alone_at_temperature_2_without_its_square() -> None:
    """Expert (3/4, 1/4) at T = 2, student (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2, whatever other logits are."""
    student, expert = torch.full((1, 6), 40.0), torch.full((1, 6), 70.0)
    student[0, [1, 3]], expert[0, [1, 3]] = 0.0, torch.tensor([2 * math.log(3), 0.0])
    loss = MultipleExperts(COUNTS)
    taught = loss(ModelOutput(student, teachers_logits={"many": expert, "medium": expert, "few": expert}), LABELS[1:2])
    plain = F.cross_entropy(student, LABELS[1:2])
    assert (taught - plain).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=2e-5)


def written_out(paces: Mapping[str, float], weights: list[float], temperature: float = 2.0) -> float:
    """The loss of the batch, each sum written out."""

    def log_softmax(row: list[float]) -> list[float]:
        total = math.log(sum(math.exp(value) for value in row))
        return [value - total for value in row]

    whole = 0.0
    for row in range(6):
        loss = -log_softmax(STUDENT[row].tolist())[row]
        for group, columns in MEMBERS.items():
            own, theirs = (
                log_softmax([float(z[row, column]) / temperature for column in columns])
                for z in (STUDENT, EXPERTS[group])
            )
            loss += paces[group] * sum(math.exp(q) * (q - p) for q, p in zip(theirs, own, strict=True))
        whole += weights[row] * loss / 6
    return whole


def test_the_loss_and_its_gradient_are_as_written() -> None:
    loss, paces = MultipleExperts(COUNTS), {"many": 0.25, "medium": 1.0, "few": 0.0}
    loss.paces, loss.start = paces, torch.tensor([0.1, 0.4, 1.0, 0.7, 0.2, 0.5])
    index = torch.tensor([5, 0, 3, 3, 1, 2])
    context = BatchContext(epoch=1, max_epochs=10, index=index)
    start = [0.5, 0.1, 0.7, 0.7, 0.4, 1.0]
    weights = [0.4 + 0.6 * p for p in start]  # p + (1 - p) t, t = 2 / 5
    logits = STUDENT.clone().requires_grad_()
    value = loss(output_of(logits), LABELS, context)
    assert value.item() == pytest.approx(written_out(paces, weights), rel=1e-5)
    value.backward()
    expected = STUDENT.softmax(1) - torch.eye(6)
    for group, pace in paces.items():
        columns = MEMBERS[group]
        off = (STUDENT[:, columns] / 2).softmax(1) - (EXPERTS[group][:, columns] / 2).softmax(1)
        expected[:, columns] += pace * off / 2
    torch.testing.assert_close(logits.grad, expected * torch.tensor(weights)[:, None] / 6, rtol=1e-4, atol=1e-6)


def test_weights_follow_the_rows_of_a_part() -> None:
    loss = MultipleExperts(COUNTS)
    loss.start = torch.tensor([0.1, 0.4, 1.0, 0.7, 0.2, 0.5])
    context = BatchContext(epoch=0, max_epochs=10, index=torch.tensor([5, 0, 3, 3, 1, 2]))
    whole = loss.per_sample_in_context(output_of(), LABELS, context)
    experts = {name: logits[2:5] for name, logits in EXPERTS.items()}
    part = BatchContext(epoch=0, max_epochs=10, index=context.index, part=slice(2, 5))
    rows = loss.per_sample_in_context(ModelOutput(STUDENT[2:5], teachers_logits=experts), LABELS[2:5], part)
    torch.testing.assert_close(rows, whole[2:5])


@pytest.mark.parametrize(
    ("student", "expert", "expected"),
    [
        *((0.0, 0.8, 1.0), (0.239, 0.8, 1.0), (0.24, 0.8, 1.0), (0.52, 0.8, 0.5), (0.8, 0.8, 0.0), (0.9, 0.8, 0.0)),
        *((0.0, 0.0, 0.0), (0.3, 0.0, 0.0)),
    ],
)
def test_an_expert_counts_in_full_below_three_tenths_of_its_accuracy_and_not_at_all_once_reached(
    student: float, expert: float, expected: float
) -> None:
    assert MultipleExperts(COUNTS).pace(student, expert) == pytest.approx(expected)


def test_confidences_are_scaled_within_a_class_from_the_floor_to_1() -> None:
    torch.testing.assert_close(scaled(torch.tensor([0.5, 0.2, 0.8]), 0.25), torch.tensor([0.625, 0.25, 1.0]))
    assert scaled(torch.tensor([0.3, 0.3, 0.3]), 0.25).tolist() == [1.0, 1.0, 1.0]
    assert scaled(torch.tensor([0.3]), 0.25).tolist() == [1.0]


def test_images_come_in_by_the_middle_of_the_stage_and_stay_at_1() -> None:
    loss, index = MultipleExperts(COUNTS), torch.zeros(6, dtype=torch.int64)
    loss.start = torch.tensor([0.2])
    plain = loss.per_sample_in_context(output_of(), LABELS, BatchContext(max_epochs=8))
    shares = []
    for epoch in range(8):
        context = BatchContext(epoch=epoch, max_epochs=8, index=index)
        shares.append(float((loss.per_sample_in_context(output_of(), LABELS, context) / plain).mean()))
    assert shares == pytest.approx([0.4, 0.6, 0.8, 1, 1, 1, 1, 1])


def test_the_floors_are_the_mean_counts_of_the_few_over_those_of_the_group() -> None:
    """The authors' 12 / 230 and 12 / 53."""
    loss = MultipleExperts(torch.tensor([40, 200, 14, 260, 66, 10]))
    assert loss.floors == pytest.approx({"many": 12 / 230, "medium": 12 / 53, "few": 1.0})


# --- what it learns of whole splits ---

VALIDATION = torch.tensor([0, 1, 1, 1, 2, 3, 4, 5])
# right but of the first and second image of class 1, which has three
SAID = torch.tensor([0, 3, 0, 1, 2, 3, 4, 5])
TRAIN = torch.arange(6).repeat_interleave(COUNTS)


class Toy:
    """Surveys of made-up models, which say a class with logit 9; counts what is asked."""

    def __init__(self, student: Tensor = VALIDATION) -> None:
        self.student, self.asked = student, list[tuple[str, str | None]]()

    def __call__(
        self, split: str, value: Callable[[ModelOutput, Tensor], Tensor], teacher: str | None = None
    ) -> tuple[Tensor, Tensor]:
        self.asked.append((split, teacher))
        labels = {"validation": VALIDATION, "train": TRAIN}[split]
        if split == "train":
            logits = torch.zeros(len(labels), 6)
            logits[torch.arange(len(labels)), labels] = torch.arange(len(labels)).float() / 100
        else:
            said = SAID if teacher == "many" else VALIDATION if teacher else self.student
            logits = 9 * F.one_hot(said, 6).float()
        return value(ModelOutput(logits), labels), labels


def test_accuracies_are_the_students_among_all_classes_and_the_experts_among_their_own() -> None:
    """Class 1's second image is said to be of class 0, which the expert of many cannot say: it says its first.

    So the expert has 2 of 3 of class 1 and class 3 whole, 5/6; a student that says the same has 1/3 and 1, 2/3.
    """
    loss, toy = MultipleExperts(COUNTS, curriculum=False), Toy(SAID)
    loss.before_epoch(0, 10, toy)
    assert toy.asked == []
    assert loss.paces == dict.fromkeys(GROUPS, 1.0)
    loss.before_epoch(1, 10, toy)
    assert loss.paces == pytest.approx({"many": (5 / 6 - 2 / 3) / (5 / 6 * 0.7), "medium": 0.0, "few": 0.0})
    assert toy.asked == [*(("validation", group) for group in GROUPS), ("validation", None)]
    loss.before_epoch(2, 10, toy)
    assert toy.asked[4:] == [("validation", None)]


def test_a_student_that_has_beaten_every_expert_learns_by_cross_entropy() -> None:
    loss = MultipleExperts(COUNTS, curriculum=False)
    loss.before_epoch(1, 10, Toy(VALIDATION))
    logits = STUDENT.clone().requires_grad_()
    loss(output_of(logits), LABELS, BatchContext(epoch=1, max_epochs=10)).backward()
    other = STUDENT.clone().requires_grad_()
    F.cross_entropy(other, LABELS).backward()
    torch.testing.assert_close(logits.grad, other.grad)


def test_an_expert_that_is_never_beaten_counts_in_full_to_the_end() -> None:
    loss, never = MultipleExperts(COUNTS), MultipleExperts(COUNTS, self_paced=False, curriculum=False)
    context = BatchContext(epoch=9, max_epochs=10, index=LABELS)
    for epoch in range(10):
        loss.before_epoch(epoch, 10, Toy((VALIDATION + 1) % 6))
    assert loss.paces == dict.fromkeys(GROUPS, 1.0)
    torch.testing.assert_close(loss(output_of(), LABELS, context), never(output_of(), LABELS, context))


def test_confidences_are_of_the_right_expert_among_its_own_classes() -> None:
    loss, toy = MultipleExperts(COUNTS, self_paced=False), Toy()
    loss.before_epoch(0, 10, toy)
    assert toy.asked == [("train", group) for group in GROUPS]
    assert loss.start is not None
    for row in (0, 7, 29, 31, 330, 337, 345, 599):
        label = int(TRAIN[row])
        group = next(group for group, columns in MEMBERS.items() if label in columns)
        rows = [other for other in range(600) if TRAIN[other] == label]
        # two classes: the other one has logit 0
        shares = {other: 1 / (1 + math.exp(-other / 100)) for other in rows}
        lowest, highest = min(shares.values()), max(shares.values())
        expected = (shares[row] - lowest) / (highest - lowest)
        floor = loss.floors[group]
        assert loss.start[row].item() == pytest.approx(expected * (1 - floor) + floor, abs=1e-4)
    loss.before_epoch(1, 10, toy)
    assert len(toy.asked) == 3  # once


def test_a_stage_whose_images_all_count_alike_asks_nothing_of_them() -> None:
    toy = Toy()
    MultipleExperts(COUNTS, self_paced=False).before_epoch(4, 10, toy)
    assert toy.asked == []


# --- whole runs ---


def spied(monkeypatch: pytest.MonkeyPatch) -> list[MultipleExperts]:
    """The losses of the students of later runs."""
    found: list[MultipleExperts] = []
    before = MultipleExperts.before_epoch

    def noting(self: MultipleExperts, *arguments: Any) -> None:
        before(self, *arguments)
        if self not in found:
            found.append(self)

    monkeypatch.setattr(MultipleExperts, "before_epoch", noting)
    return found


# of 6 classes, two of a group; by count 22, 15, 10, 7, 4 and 3 training images
PAIRS = ("dataset.num_classes=6", "evaluation.many_shot_above=14", "evaluation.few_shot_below=6")


def test_each_expert_sees_its_own_images_and_the_student_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = spied(monkeypatch)
    shown = run_and_note(str(tmp_path / "run"), (*tiny("lfme", epochs=1), "stage4.epochs=3", *PAIRS))
    assert read_record(tmp_path / "run")["class_counts"] == [22, 15, 10, 7, 4, 3]
    rows = {name: {row for stage, _, _, row in shown if stage == name} for name in ("stage1", "stage2", "stage3")}
    assert rows == {"stage1": {*range(37)}, "stage2": {*range(37, 54)}, "stage3": {*range(54, 61)}}
    assert {row for stage, _, _, row in shown if stage == "stage4"} > {*range(54, 61)}
    (loss,) = losses
    assert loss.start is not None
    assert loss.floors == pytest.approx({"many": 3.5 / 18.5, "medium": 3.5 / 8.5, "few": 1.0})
    for first, last, group in ((0, 22, "many"), (22, 37, "many"), (37, 47, "medium"), (54, 58, "few"), (58, 61, "few")):
        of_class = loss.start[first:last]
        assert (of_class.min().item(), of_class.max().item()) == pytest.approx((loss.floors[group], 1.0))


@pytest.mark.slow
def test_a_resumed_student_weighs_experts_and_images_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 6 epochs, in the first half of which images are weighted; and by the last some expert has lost weight."""
    losses = spied(monkeypatch)
    overrides = (*tiny("lfme", epochs=6), *PAIRS)
    resume_in_each(("stage1", "stage4"), overrides, tmp_path, monkeypatch)
    whole, resumed = losses[0], losses[-1]
    assert whole.paces == resumed.paces
    assert min(whole.paces.values()) < 1
    assert whole.start is not None
    assert resumed.start is not None
    assert torch.equal(whole.start, resumed.start)


@pytest.mark.slow
def test_two_processes_weigh_experts_and_images_as_one(tmp_path: Path, run_on_ranks: Any) -> None:
    overrides = tiny("lfme", "batch_norm=frozen", "optimizer.lr=0.005", epochs=3)
    compare(tmp_path, 2, (*overrides, "stage4.epochs=4", *PAIRS), run_on_ranks)


def test_imagenet_lt_has_the_authors_settings() -> None:
    plain = composed("method=lfme", "dataset=imagenet_lt", "backbone=resnet10", small=False)
    stages = [plain[f"stage{number}"] for number in (1, 2, 3, 4)]
    assert [stage["epochs"] for stage in stages] == [120, 120, 120, 90]
    assert [stage["batch_size"] for stage in stages] == [128, 128, 32, 256]
    assert [stage["schedule"]["_target_"].rpartition(".")[2] for stage in stages] == [*["Cosine"] * 3, "MultiStep"]
    assert stages[3]["schedule"]["milestones"] == [50, 80]
    assert stages[3]["schedule"]["warmup_epochs"] == 0
    assert stages[3]["schedule"]["decay"] == 0.1
    for stage in stages:
        assert (stage["optimizer"]["lr"], stage["optimizer"]["weight_decay"]) == (0.1, 5e-4)
        assert (stage["init"]["backbone"], stage["trainable"]["backbone"]) == ("fresh", True)
        assert stage["augmentation"]["_target_"].endswith("RandomResizedCrop")
        groups = [stage["loss"]] if stage is stages[3] else [stage["loss"], stage["sampler"]]
        assert all((node["many_above"], node["few_below"]) == (99, 21) for node in groups)
    assert [stage["sampler"].get("group") for stage in stages] == ["many", "medium", "few", None]
    assert stages[3]["sampler"]["images_per_class"] == 4
    assert stages[3]["loss"]["floors"] == pytest.approx([12 / 230, 12 / 53, 1.0], abs=1e-4)
    assert plain["dataset"]["validation"]["fraction"] == 0.0  # the list of the dataset


REFUSED = {
    "no few-shot class": (
        ("evaluation.few_shot_below=2",),
        r"^stage3\.sampler: no class has fewer than 2 training images: set evaluation\.many_shot_above and",
    ),
    "an expert of other classes than it is shown": (
        ("stage1.loss.group=few",),
        r"^stage1: its loss is of other classes than those that its sampler shows: choose one of them",
    ),
    "no validation split": (
        ("dataset.validation.fraction=0",),
        r"^stage4\.loss: experts are weighted by validation images, and there are none: set dataset\.validation",
    ),
    "no expert": (
        ("~stage4.teachers.few",),
        r"^stage4: its loss needs a teacher few: add \+stage4\.teachers\.few=STAGE",
    ),
    "a later expert": (("stage4.teachers.few=stage5",), r"^invalid stage4\.teachers\.few=stage5: .*has no stage5"),
    "a circle": (
        ("stage3.init.backbone=stage4",),
        r"^invalid stage3\.init\.backbone=stage4: .*stage3 and stage4 name each other in a circle",
    ),
    "a teacher of nobody": (
        ("+stage4.teachers.all=stage1",),
        r"^stage4: no loss or term reads its teacher all, but few, many, medium: leave it out with ~stage4",
    ),
    "mixed images": (
        ("mixing@stage4.mixing=mixup",),
        r"^stage4: its loss surveys images as they are: set mixing@stage4",
    ),
    "floors": (("stage4.loss.floors=[0.1,1]",), r"^invalid stage4\.loss\.floors=\[0\.1, 1\]: expected null, or three"),
    "temperature": (("stage4.loss.temperature=0",), r"^invalid stage4\.loss\.temperature=0"),
    "full below": (("stage4.loss.full_below=1",), r"^invalid stage4\.loss\.full_below=1"),
    "bounds": (
        ("stage4.loss.few_below=200",),
        r"^invalid stage4\.loss\.few_below=200: expected at most many_above \+ 1",
    ),
    "group": (("stage1.sampler.group=most",), r"^invalid stage1\.sampler\.group=most: expected many \| medium \| few"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_has_one_line_before_anything_is_trained(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run_here(tmp_path / "run", "method=lfme", *TINY, *overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "stage1").exists()


def test_an_expert_in_a_file_that_is_not_there_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^no checkpoint at .*nowhere"):
        run_here(tmp_path / "run", "method=lfme", *TINY, f"stage4.teachers.few={tmp_path}/nowhere")
    assert not (tmp_path / "run" / "stage1").exists()


def test_without_a_pace_and_a_curriculum_no_validation_split_is_asked_for(tmp_path: Path) -> None:
    words = ("dataset.validation.fraction=0", "stage4.loss.self_paced=false", "stage4.loss.curriculum=false")
    run_here(tmp_path / "run", *tiny("lfme", epochs=1), *words)
    assert (tmp_path / "run" / "stage4" / "checkpoint.pt").exists()
