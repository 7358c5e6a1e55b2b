"""Methods of a user's own that read and steer what those of ltexp do not; their parts are in tests/new_parts.py."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import new_parts
import pytest
import torch
from runs import composed, run_here, tiny, weights
from test_distributed_methods import compare, run_and_note
from test_every_method import resume_in_each
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config import to_config
from ltexp.data.deferred import Deferred
from ltexp.data.samplers import InstanceBalanced
from ltexp.distributed import rank
from ltexp.errors import ConfigError
from ltexp.models.model import Model
from ltexp.outputs import ModelOutput
from ltexp.training.agreement import note_unequal_state
from ltexp.training.fingerprint import _reads_validation

VALIDATION = "dataset.validation.fraction=0.2"
COUNTS = torch.tensor([24, 13, 7, 4])


def of(project: Path, *parts: str) -> tuple[str, ...]:
    """A run of two epochs on 48 digits with parts of tests/new_parts.py: `loss@stage1.loss=ReadsVectors`."""
    words = []
    for part in parts:
        key, _, name = part.partition("=")
        path = project / "conf" / key.lstrip("+").partition("@")[0] / f"{name.lower()}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n_target_: new_parts.{name}\n")
        words.append(f"{key}={name.lower()}")
    return (*tiny("ce"), *words)


LOSS, SAMPLER, CLASSIFIER = "loss@stage1.loss", "sampler@stage1.sampler", "classifier@stage1.classifier"
RESIDUAL = (f"{LOSS}=ResidualBranches", f"{CLASSIFIER}=ResidualHeads")
STREAM = "+stream@stage1.streams.rare=reversed"


def test_a_loss_reads_what_a_classifier_gives(tmp_path: Path) -> None:
    run_here(tmp_path / "run", *of(tmp_path, *RESIDUAL), project=tmp_path)
    assert weights(tmp_path / "run", "stage1")["classifier.weight"].isfinite().all()


def test_heads_of_rare_classes_learn_of_their_images_alone() -> None:
    heads = new_parts.ResidualHeads(3, 4)
    loss = new_parts.ResidualBranches(COUNTS, weight=1.0)
    loss(heads.output(torch.randn(5, 3)), torch.tensor([0, 0, 1, 1, 1])).backward()
    gradient = heads.weight.grad
    assert gradient is not None
    assert gradient[0].any()
    assert gradient[1].any()
    assert not gradient[2].any()


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_a_loss_lets_any_classifier_read_other_features(classifier: str, tmp_path: Path) -> None:
    words = (*of(tmp_path, f"{LOSS}=Swapped"), STREAM, f"{CLASSIFIER}={classifier}")
    run_here(tmp_path / "run", *words, project=tmp_path)
    assert weights(tmp_path / "run", "stage1")["classifier.weight"].isfinite().all()


def test_classify_is_the_classifier_of_the_model() -> None:
    heads = new_parts.ResidualHeads(64, 4)
    model = Model(new_parts.CifarResNet(8), heads)
    output = model(torch.randn(2, 3, 8, 8), {"classify"})
    torch.testing.assert_close(output.extra["classify"](output.features), output.logits)


def test_class_biases_of_a_classifier_without_them_are_none(tmp_path: Path) -> None:
    run_here(tmp_path / "run", *of(tmp_path, f"{LOSS}=ReadsVectors"), "stage1.classifier.bias=false", project=tmp_path)
    with pytest.raises(
        ConfigError, match=r"stage1: a loss reads class_vectors, which a Cosine classifier has not: set"
    ):
        run_here(tmp_path / "run", *of(tmp_path, f"{LOSS}=ReadsVectors"), f"{CLASSIFIER}=cosine", project=tmp_path)


def test_a_linear_form_that_is_the_forward_starts_a_later_stage(tmp_path: Path) -> None:
    words = (*of(tmp_path, f"{CLASSIFIER}=WellTempered"), "method=crt", "stage2.init.classifier=stage1")
    words += ("stage2.epochs=1", "stage2.optimizer.lr=1e-30")
    run_here(tmp_path / "run", *words, project=tmp_path)
    one, other = (weights(tmp_path / "run", stage) for stage in ("stage1", "stage2"))
    expected = one["classifier.weight"] / one["classifier.temperature"][:, None]
    torch.testing.assert_close(other["classifier.weight"], expected)


def test_a_network_may_have_a_fixed_number_of_experts(tmp_path: Path) -> None:
    words = of(tmp_path, f"{LOSS}=EachExpert", f"{CLASSIFIER}=ThreeHeads", "backbone=Depths")
    run_here(tmp_path / "run", *words, project=tmp_path)
    assert weights(tmp_path / "run", "stage1")["classifier.weight"].shape == (3, 4, 64)


def test_a_sampler_follows_what_the_model_tells_of_validation_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[Tensor] = []
    drawn = new_parts.Difficult.indices

    def noted(self: Any, seed: int, epoch: int, max_epochs: int) -> Tensor:
        orders.append(self.shares)
        return drawn(self, seed, epoch, max_epochs)

    monkeypatch.setattr(new_parts.Difficult, "seen", [])
    monkeypatch.setattr(new_parts.Difficult, "indices", noted)
    run_here(tmp_path / "run", *of(tmp_path, f"{SAMPLER}=Difficult"), VALIDATION, project=tmp_path)
    seen = new_parts.Difficult.seen
    assert [epoch for epoch, _ in seen] == [0, 1]
    assert seen[0] != seen[1]
    assert orders[-1].tolist() == seen[1][1]


def test_a_streams_sampler_does_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_parts.Difficult, "seen", [])
    words = of(tmp_path, f"{LOSS}=Swapped", "sampler@stage1.streams.rare.sampler=Difficult")
    run_here(tmp_path / "run", *words, STREAM, VALIDATION, project=tmp_path)
    assert [epoch for epoch, _ in new_parts.Difficult.seen] == [0, 1]


def test_validation_images_that_a_sampler_surveys_are_a_part_of_what_is_trained(tmp_path: Path) -> None:
    for sampler, reads in (("Difficult", True), ("Unsurveyed", False)):
        plain = composed(*of(tmp_path, f"{SAMPLER}={sampler}"), project=tmp_path)
        assert _reads_validation(SimpleNamespace(class_counts=COUNTS), to_config(plain).stages["stage1"]) is reads  # type: ignore[arg-type]


def test_a_deferred_sampler_surveys_where_the_epochs_own_does() -> None:
    labels = torch.repeat_interleave(COUNTS)
    own = new_parts.Difficult(labels, COUNTS)
    deferred = Deferred(labels, COUNTS, InstanceBalanced(labels, COUNTS), own, start=1)
    assert deferred.surveys == {"validation"}
    told: list[str] = []

    def survey(split: str, value: Any, teacher: Any = None) -> tuple[Tensor, Tensor]:
        told.append(split)
        return torch.ones(4), torch.arange(4)

    deferred.before_epoch(0, 2, survey)
    assert not told
    deferred.before_epoch(1, 2, survey)
    assert told == ["validation"]
    torch.testing.assert_close(deferred.class_probabilities(1, 2), torch.full((4,), 0.25, dtype=torch.float64))


def test_a_survey_gives_vectors_as_well(tmp_path: Path) -> None:
    term = (*of(tmp_path, "+loss@stage1.terms.near.loss=NearCentroids"), "+stage1.terms.near.weight=0.1")
    run_here(tmp_path / "run", *term, project=tmp_path)


def test_a_loss_that_surveys_is_not_said_to_be_cross_entropy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(tmp_path / "run", *of(tmp_path, f"{LOSS}=WeightedByDifficulty"), VALIDATION, project=tmp_path)
    assert "the same as cross-entropy" not in capsys.readouterr().out


REFUSED = {
    "no validation images for a sampler": (f"{SAMPLER}=Difficult", "stage1.sampler: it surveys validation images, and"),
    "no validation images for a loss": (f"{LOSS}=WeightedByDifficulty", "stage1.loss: it surveys validation images,"),
    "a hook that nothing calls": (f"{SAMPLER}=Unsurveyed", "Unsurveyed.before_epoch is never called: set surveys"),
    "half a linear form": (
        f"{CLASSIFIER}=Tempered",
        "new_parts.Tempered.linear_form is not its forward: later stages",
    ),
    "no teachers": (f"{LOSS}=Taught", "stage1: its loss reads teachers_logits and names no teacher in its `teachers`"),
    "a field that is not there": (
        f"{CLASSIFIER}=Silent",
        "new_parts.Silent.gives names group_logits, and its output",
    ),
}


@pytest.mark.parametrize(("part", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_has_one_line_before_anything_is_trained(part: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        run_here(tmp_path / "run", *of(tmp_path, part), project=tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "stage1").exists()


@pytest.mark.parametrize(
    ("key", "name", "attribute"), [(LOSS, "EachExpert", "needs"), (SAMPLER, "Difficult", "surveys")]
)
def test_a_text_in_the_place_of_names_is_refused(
    key: str, name: str, attribute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getattr(new_parts, name), attribute, "validation")
    with pytest.raises(ConfigError, match=rf"{name}\.{attribute} is 'validation': expected a set of names"):
        run_here(tmp_path / "run", *of(tmp_path, f"{key}={name}"), project=tmp_path)


def test_lost_state_and_hooks_of_other_parts_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = of(tmp_path, f"{LOSS}=Remembers", "step@stage1.step=Hoarding")
    run_here(tmp_path / "run", *words, project=tmp_path)
    said = capsys.readouterr().out
    assert "note: stage1.loss: nothing asks Remembers for after_step, which is of modules and classifiers" in said
    assert "note: stage1.loss: new_parts.Remembers keeps seen_so_far as a tensor, which no checkpoint holds" in said
    assert "note: stage1.step: new_parts.Hoarding keeps mine as an optimizer, whose state no checkpoint holds" in said


def differing(each: float) -> str:
    """What is said of a module of two buffers, of which one differs by `each` between the processes."""
    module = nn.Module()
    module.register_buffer("same", torch.arange(4))
    module.register_buffer("own", torch.ones(4) + each * rank())
    with redirect_stdout(io.StringIO()) as said:
        note_unequal_state("stage1", module)
    return said.getvalue()


def test_state_that_processes_do_not_share_is_noted(run_on_ranks: Any) -> None:
    assert run_on_ranks(differing, 2, 1e-6) == ["", ""]
    first, second = run_on_ranks(differing, 2, 0.5)
    assert first.startswith("note: stage1: own differ between processes")
    assert second == ""


@pytest.mark.slow
def test_a_loss_that_leaves_the_classifier_out_says_what_several_devices_need(
    tmp_path: Path, run_on_ranks: Any
) -> None:
    words = (*of(tmp_path, f"{LOSS}=FeaturesAlone"), "trainer.devices=2")
    with pytest.raises(ConfigError, match=r"stage1: its loss .* set trainer\.strategy=ddp_find_unused_parameters_true"):
        run_on_ranks(run_and_note, 2, str(tmp_path / "run"), words, tmp_path)


ALIKE = {
    "residual branches": (RESIDUAL, ()),
    "difficulty": ((f"{SAMPLER}=Difficult", f"{LOSS}=WeightedByDifficulty"), (VALIDATION,)),
    "two optimizers": (("step@stage1.step=Alternating",), ("+stage1.lr_factors.classifier=0",)),
    "centroids": (("+loss@stage1.terms.near.loss=NearCentroids",), ("+stage1.terms.near.weight=0.1",)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "further"), ALIKE.values(), ids=ALIKE)
def test_killed_and_resumed_equals_uninterrupted(
    parts: tuple[str, ...], further: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume_in_each(["stage1"], (*of(tmp_path, *parts), *further), tmp_path, monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "further"), ALIKE.values(), ids=ALIKE)
def test_two_processes_train_what_one_trains(
    parts: tuple[str, ...], further: tuple[str, ...], tmp_path: Path, run_on_ranks: Any
) -> None:
    words = (*of(tmp_path, *parts), *further, "stage1.batch_norm=frozen", "stage1.optimizer.lr=0.005")
    compare(tmp_path, 2, words, run_on_ranks, tmp_path)


def test_the_loss_of_residual_branches_is_as_written() -> None:
    logits = torch.randn(3, 1, 4)
    loss = new_parts.ResidualBranches(COUNTS, weight=0.5)
    target = torch.tensor([2])  # 7 images: of all three groups
    value = loss(ModelOutput(logits.sum(0), extra={"group_logits": logits}), target)
    heads = sum(F.cross_entropy(each, target) for each in logits) / 3
    torch.testing.assert_close(value, 0.5 * F.cross_entropy(logits.sum(0), target) + 0.5 * heads)
