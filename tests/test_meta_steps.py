"""Steps that look ahead to a held-out batch: fixtures, the second-order gradient, limit cases, what they refuse."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import assert_equal_weights, composed, run_here, tiny, weights
from test_distributed_methods import compare
from test_every_method import resume_in_each
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config import to_config
from ltexp.config.build import build
from ltexp.config.schema import HeldOut
from ltexp.data.held_out import held_out_of
from ltexp.data.loader import Batch
from ltexp.data.types import ImageSplit, LongTailedData
from ltexp.errors import ConfigError
from ltexp.evaluation.record import read_record
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.losses.cross_entropy import CrossEntropy
from ltexp.losses.implicit_augmentation import ImplicitAugmentation
from ltexp.models.class_covariance import ClassCovariance
from ltexp.models.classifier import Linear
from ltexp.models.model import Model
from ltexp.models.module import Wiring
from ltexp.outputs import ModelOutput
from ltexp.training.bilevel import LookAhead
from ltexp.training.fingerprint import fingerprint_of
from ltexp.training.meta_weights import MetaSampleWeights, MetaWeightNet
from ltexp.training.session import Session

COUNTS = torch.tensor([100, 50, 10])
ROWS, COLUMNS = torch.arange(3.0)[:, None], torch.arange(4.0)
FEATURES = 1 + torch.sin(3 * ROWS + 5 * COLUMNS)  # f and h, the toy batches of the fixtures
META = 1 + torch.cos(3 * ROWS + 5 * COLUMNS)
LABELS = torch.arange(3)


def toy_weight(rows: int = 3, width: int = 4) -> Tensor:
    return torch.sin(2 * torch.arange(float(rows))[:, None] + 7 * torch.arange(float(width))) / 2


def toy_model(module: nn.Module | None = None) -> Model:
    """A linear classifier W, b on the features themselves."""
    classifier = Linear(4, 3)
    with torch.no_grad():
        classifier.weight.copy_(toy_weight())
        classifier.bias.copy_(torch.tensor([0.0, 0.1, 0.2]))
    wiring = Wiring(tuple(ClassCovariance.reads), tuple(ClassCovariance.gives))
    attached = {} if module is None else {"covariance": module}
    return Model(nn.Identity(), classifier, attached, dict.fromkeys(attached, wiring))  # type: ignore[arg-type]


def batch_of(features: Tensor, labels: Tensor, epoch: int = 0, **streams: Batch) -> Batch:
    rows = len(labels)
    return Batch(features, labels, torch.arange(rows), 1.0, rows, epoch, 0, None, streams)


class ToyStage:
    """What a step reads of its stage, around a model and a loss."""

    def __init__(self, model: Model, loss: Loss, epochs: int = 200) -> None:
        self.model, self.objective, self.epochs = model, loss, epochs
        self.needs: dict[str | None, frozenset[str]] = {None: loss.needs}
        self.seed, self.dropouts = 0, []

    def context_of(self, batch: Batch, again: bool = False) -> BatchContext:
        return BatchContext(epoch=batch.epoch, max_epochs=self.epochs, share=batch.share, size=batch.size, again=again)

    def ahead(self, batch: Batch, lr: float) -> LookAhead:
        optimizer: Any = torch.optim.SGD(self.model.parameters(), lr=lr)
        return LookAhead(self, optimizer, batch, "meta", None)  # type: ignore[arg-type]


def toy_batch(epoch: int = 0) -> Batch:
    return batch_of(FEATURES, LABELS, epoch, meta=batch_of(META, LABELS, epoch))


def ahead_by_hand(model: Model, inner: Callable[[Tensor], Tensor], lr: float, features: Tensor) -> float:
    """The meta cross-entropy after a virtual step, in float64 and without second order."""
    weight = model.classifier.weight.detach().double().requires_grad_()  # type: ignore[union-attr, operator]
    bias = model.classifier.bias.detach().double().requires_grad_()  # type: ignore[union-attr, operator]
    slopes = torch.autograd.grad(inner(F.linear(features.double(), weight, bias)), (weight, bias))
    moved = [p - lr * g for p, g in zip((weight, bias), slopes, strict=True)]
    return F.cross_entropy(F.linear(META.double(), *moved), LABELS).item()


def finite_differences(at: Tensor, value: Callable[[Tensor], float], step: float = 1e-4) -> Tensor:
    slopes = torch.zeros_like(at, dtype=torch.float64)
    for place in range(at.numel()):
        there = at.double().flatten().repeat(2, 1)
        there[0, place] += step
        there[1, place] -= step
        slopes.view(-1)[place] = (value(there[0].view_as(at)) - value(there[1].view_as(at))) / (2 * step)
    return slopes


def test_sample_weights_are_those_of_the_authors_code() -> None:
    """Class weights, and their correction at a virtual rate of 0.1."""
    step = MetaSampleWeights(COUNTS, start=0)
    torch.testing.assert_close(step.of_classes, torch.tensor([0.23165751, 0.46215957, 2.30618292]))
    stage = ToyStage(toy_model(), CrossEntropy(COUNTS))
    moved = step.weights(stage.ahead(toy_batch(), 0.1)) - step.of_classes
    torch.testing.assert_close(moved, torch.tensor([-1.310e-4, -6.823e-4, 6.852e-4]), rtol=1e-3, atol=3e-7)
    still = step.weights(stage.ahead(toy_batch(), 0.0)) - step.of_classes
    assert not still.any()


def test_the_slope_is_that_of_finite_differences() -> None:
    """Second order by autograd against the difference of two first-order looks ahead, weight by weight."""
    stage = ToyStage(toy_model(), CrossEntropy(COUNTS))
    ahead = stage.ahead(toy_batch(), 0.5)
    start = torch.tensor([0.3, 1.2, 2.0], requires_grad=True)
    slope = ahead.slope(ahead.objective(ahead.output(), start * 3), start)

    def value(given: Tensor) -> float:
        losses = lambda logits: F.cross_entropy(logits, LABELS, reduction="none")  # noqa: E731
        return ahead_by_hand(stage.model, lambda logits: (given * losses(logits)).sum(), 0.5, FEATURES)

    torch.testing.assert_close(slope.double(), finite_differences(start.detach(), value), rtol=1e-4, atol=1e-6)
    assert slope.abs().min() > 1e-3


def test_the_slope_of_covariances_is_that_of_finite_differences() -> None:
    covariance = ClassCovariance(4, 3)
    draws = torch.Generator().manual_seed(0)
    half = torch.randn(3, 4, 4, generator=draws)
    covariance.covariance.copy_(half @ half.mT)
    loss = ImplicitAugmentation(COUNTS, start=0, strength=0.5)
    stage, epoch = ToyStage(toy_model(covariance), loss), 100
    ahead = stage.ahead(toy_batch(epoch), 0.5)
    outer = covariance.covariance.clone().requires_grad_()
    output = ahead.output({"attached.covariance.covariance": outer})
    slope = ahead.slope(ahead.objective(output), outer)

    def value(spread: Tensor) -> float:
        weight = stage.model.classifier.weight.detach().double().requires_grad_()  # type: ignore[union-attr, operator]
        bias = stage.model.classifier.bias.detach().double().requires_grad_()  # type: ignore[union-attr, operator]
        logits = F.linear(FEATURES.double(), weight, bias)
        rows = [
            [logits[i, j] + 0.125 * (weight[j] - weight[i]) @ spread[i] @ (weight[j] - weight[i]) for j in range(3)]
            for i in range(3)
        ]
        augmented = torch.stack([torch.stack(row) for row in rows]) - torch.diag(loss.margins.double())
        slopes = torch.autograd.grad(F.cross_entropy(augmented, LABELS), (weight, bias))
        moved = [p - 0.5 * g for p, g in zip((weight, bias), slopes, strict=True)]
        return F.cross_entropy(F.linear(META.double(), *moved), LABELS).item()

    torch.testing.assert_close(slope.double(), finite_differences(outer.detach(), value), rtol=1e-3, atol=1e-6)
    assert slope.abs().max() > 1e-3


def test_parameters_that_a_term_alone_reads_have_no_part_in_the_slope(tmp_path: Path) -> None:
    """A head beside the classifier, which the stream's cross-entropy does not see."""
    contrast = (
        "+module@stage1.modules.projection=projection_head",
        "+loss@stage1.terms.contrastive.loss=supervised_contrastive",
    )
    run_here(tmp_path / "run", *tiny("mw_net", epochs=1), *contrast)
    assert read_record(tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_augmented_logits_are_those_of_the_authors_code(precision: torch.dtype) -> None:
    """z, r/2 times the spread, and the margin, of row 2 with S_c = (c + 1) I and r = 0.5; counts unsorted, too."""
    covariance = ClassCovariance(4, 3)
    covariance.covariance.copy_(torch.arange(1.0, 4)[:, None, None] * torch.eye(4))
    loss = ImplicitAugmentation(COUNTS, strength=1.0, start=0)
    torch.testing.assert_close(loss.margins, torch.tensor([0.28117, 0.33437, 0.5]), rtol=1e-4, atol=1e-5)
    model = toy_model(covariance)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        output = model(FEATURES[2:], loss.needs, 1, LABELS[2:])
    torch.testing.assert_close(output.logits, torch.tensor([[1.12103, -0.452, -0.46161]]), rtol=1e-4, atol=1e-4)
    context = BatchContext(epoch=100, max_epochs=200)
    expected = F.cross_entropy(torch.tensor([[2.48799, 0.57812, -0.96161]]), LABELS[2:])
    torch.testing.assert_close(loss(output, LABELS[2:], context), expected, rtol=1e-4, atol=1e-4)
    turned = torch.tensor([2, 0, 1])  # the classes in another order: the same loss
    other, spread = ImplicitAugmentation(COUNTS[turned], strength=1.0, start=0), output.extra["logit_spread"]
    shuffled = ModelOutput(output.logits[:, turned], extra={"logit_spread": spread[:, turned]})
    torch.testing.assert_close(other(shuffled, torch.tensor([0]), context), expected, rtol=1e-4, atol=1e-4)


def test_before_its_start_and_without_strength_the_augmentation_is_cross_entropy() -> None:
    output = ModelOutput(FEATURES[:, :3], extra={"logit_spread": torch.ones(3, 3)})
    plain = F.cross_entropy(FEATURES[:, :3], LABELS)
    early = ImplicitAugmentation(COUNTS)(output, LABELS, BatchContext(epoch=159, max_epochs=200))
    none = ImplicitAugmentation(COUNTS, strength=0, max_margin=0, start=0)
    torch.testing.assert_close(early, plain)
    torch.testing.assert_close(none(output, LABELS, BatchContext(epoch=199, max_epochs=200)), plain)


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_running_covariances_are_those_of_all_samples_seen(form: Any) -> None:
    """The running estimate after batches of any composition, against NumPy's covariance of everything."""
    draws = np.random.default_rng(0)
    features, labels = draws.normal(size=(40, 5)).astype(np.float32), draws.integers(0, 3, 40)
    labels[:4] = 0  # a first batch without the other classes
    estimate = ClassCovariance(5, 4, form)
    for rows in (slice(0, 4), slice(4, 25), slice(25, 40)):
        estimate.update(torch.from_numpy(features[rows]), torch.from_numpy(labels[rows]))
    for label in range(3):
        of_class = features[labels == label].astype(np.float64)
        found = np.cov(of_class.T, bias=True)
        expected = found if form == "full" else np.diag(found)
        np.testing.assert_allclose(estimate.covariance[label].numpy(), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(estimate.mean[label].numpy(), of_class.mean(0), rtol=1e-4, atol=1e-5)
    assert not estimate.covariance[3].any()


def test_diagonal_spread_is_that_of_diagonal_matrices() -> None:
    full, diagonal = ClassCovariance(4, 3), ClassCovariance(4, 3, "diagonal")
    diagonal.covariance.copy_(META)
    full.covariance.copy_(torch.diag_embed(META))
    labels = torch.tensor([2, 0, 0, 1])
    torch.testing.assert_close(full(labels, toy_weight()), diagonal(labels, toy_weight()), rtol=1e-4, atol=1e-5)


def test_the_weight_net_learns_as_torch_would() -> None:
    """The look ahead written out with a graph through everything, and torch.optim.SGD, for two steps."""
    torch.manual_seed(0)
    step = MetaWeightNet(outer_lr=0.5, width=6)
    net = nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 1), nn.Sigmoid())
    net.load_state_dict(step.net.state_dict())
    own = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, nesterov=True, weight_decay=5e-4)
    stage = ToyStage(toy_model(), CrossEntropy(COUNTS))
    given: list[Tensor] = []

    def closure(*, sample_weights: Tensor, again: bool = False) -> Tensor:
        given.append(sample_weights)
        return torch.zeros(())

    for _ in range(2):
        step.look_and_step(stage.ahead(toy_batch(), 0.5), closure)
        weight, bias = (p.detach().requires_grad_() for p in stage.model.classifier.parameters())
        losses = F.cross_entropy(F.linear(FEATURES, weight, bias), LABELS, reduction="none")
        values = net(losses.detach()[:, None])[:, 0]
        slopes = torch.autograd.grad((values / values.sum() * losses).sum(), (weight, bias), create_graph=True)
        moved = [p - 0.5 * g for p, g in zip((weight, bias), slopes, strict=True)]
        own.zero_grad()
        F.cross_entropy(F.linear(META, *moved), LABELS).backward()
        own.step()
        for mine, theirs in zip(step.net.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs.detach(), rtol=1e-4, atol=1e-6)
        values = net(losses.detach()[:, None])[:, 0].detach()
        torch.testing.assert_close(given[-1], values / values.sum() * 3)


FROM_THE_START = {
    "meta_learning_ce": ("stage1.step.start=0",),
    "meta_learning_ldam": ("stage1.step.start=0",),
    "mw_net": ("stage1.step.outer_lr=0.1",),
    "metasaug_ldam": ("stage1.step.start=0", "stage1.loss.start=0", "stage1.reweighting.start=0"),
}
OTHERS = ("meta_learning_focal", "metasaug")


@pytest.mark.parametrize("method", FROM_THE_START)
def test_killed_and_resumed_equals_uninterrupted(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the look ahead from the first step on: weights, moments of the network, and covariances are kept."""
    resume_in_each(["stage1"], (*tiny(method), *FROM_THE_START[method]), tmp_path, monkeypatch)


SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in FROM_THE_START if method != "mw_net"]


@pytest.mark.parametrize("method", ["mw_net", *SLOW])
def test_two_processes_look_ahead_as_one(method: str, tmp_path: Path, run_on_ranks: Any) -> None:
    overrides = (*tiny(method, "batch_norm=frozen", epochs=2), *FROM_THE_START[method], "stage1.optimizer.lr=0.02")
    compare(tmp_path, 2, overrides, run_on_ranks)


@pytest.mark.slow
def test_without_an_inner_rate_and_class_weights_it_is_cross_entropy(tmp_path: Path) -> None:
    """Bit for bit the control, a run of `ce` with the same streams aside; with both it is something else."""
    equal = ("stage1.step.start=0", "stage1.step.beta=0", "stage1.step.inner_lr=0", "dataset.max_per_class=20")
    run_here(tmp_path / "meta", *tiny("meta_learning_ce"), *equal)
    run_here(tmp_path / "moved", *tiny("meta_learning_ce"), *equal[:-2], "stage1.step.outer_lr=3", equal[-1])
    run_here(tmp_path / "ce", *tiny("ce"), equal[-1])
    one, moved, ce = (weights(tmp_path / name, "stage1") for name in ("meta", "moved", "ce"))
    assert_equal_weights(one, ce)
    assert not torch.allclose(moved["classifier.weight"], ce["classifier.weight"], atol=1e-4)


@pytest.mark.slow
def test_without_an_outer_rate_covariances_are_the_estimates(tmp_path: Path) -> None:
    start = (*FROM_THE_START["metasaug_ldam"], "stage1.epochs=3")
    for name, keys in {"none": ("stage1.step.inner_lr=0",), "rest": ("stage1.step.outer_lr=0",), "moved": ()}.items():
        rate = () if name == "rest" else ("stage1.step.outer_lr=10",)
        run_here(tmp_path / name, *tiny("metasaug_ldam"), *start, *keys, *rate)
    none, rest, moved = (weights(tmp_path / name, "stage1") for name in ("none", "rest", "moved"))
    assert_equal_weights(none, rest)
    assert not torch.equal(moved["classifier.weight"], rest["classifier.weight"])


def test_the_record_says_what_was_held_out_and_that_the_rest_is_the_usual_training_set(tmp_path: Path) -> None:
    run_here(tmp_path / "run", *tiny("mw_net", epochs=1))
    record = read_record(tmp_path / "run")
    assert record["held_out"] == {"stage1.meta": {"per_class": 10, "of": "unused"}}
    assert record["class_counts"] == [24, 13, 7, 4]


def test_images_held_out_are_a_part_of_what_a_stage_is(tmp_path: Path) -> None:
    """Of a validation set with other images another stage is trained; of an equal one the same."""
    config = to_config(composed(*tiny("mw_net"), "stage1.streams.meta.held_out={per_class: 1, of: validation}"))
    data = build(config.dataset, root=config.paths.data)
    found = []
    for pixel in (0, 0, 1):
        test = data.test.take(np.arange(len(data.test)))
        test.images[:] = pixel
        session = Session(config, tmp_path, replace(data, validation=test), torch.device("cpu"))
        found.append(fingerprint_of(session.for_stage(config.stage1), "stage1", config.stage1, None))
    assert found[0] == found[1] != found[2]


def toy_data(per_class: list[int], kept: list[int], **further: Any) -> LongTailedData:
    """Images of which a subset keeps the first of each class."""
    labels = np.repeat(np.arange(len(per_class)), per_class)
    images = np.zeros((len(labels), 1, 1, 3), dtype=np.uint8)
    whole = ImageSplit(images=images, labels=labels, index=np.arange(len(labels)))
    within = np.concatenate([np.arange(count) for count in per_class])
    train = whole.take(within < np.array(kept)[labels])
    last = lambda each: whole.take(within >= np.array(per_class)[labels] - each)  # noqa: E731
    facts = {"name": "toy", "imbalance": "longtail", "imbalance_ratio": 2.0, "class_names": ("a", "b", "c")}
    hashes = {"subset_hash": "", "content_hash": "", "preprocessing": {}}
    split = {"train": train, "validation": None, "test": whole}
    return LongTailedData(**{**facts, **hashes, **split, "last_drawn": last, **further})


def test_unused_images_come_first_and_a_class_gives_its_own_where_they_are_too_few() -> None:
    data = toy_data([8, 8, 8], [7, 4, 1])
    rest, held = held_out_of(data, "meta", HeldOut(per_class=3, of="unused"))
    assert np.bincount(held.labels).tolist() == [3, 3, 3]
    assert rest.class_counts.tolist() == [5, 4, 1]
    assert not set(held.index) & set(rest.train.index)
    assert set(rest.train.index) <= set(data.train.index)


def test_unused_images_are_no_validation_images() -> None:
    """Of classes that are taken whole both come from the end of their order."""
    words = ("dataset.imbalance=balanced", "dataset.max_per_class=100", "dataset.validation.fraction=0.2")
    data: LongTailedData = build(to_config(composed("method=ce", *words)).dataset, root="data")
    assert data.validation is not None
    rest, held = held_out_of(data, "meta", HeldOut(per_class=90, of="unused"))
    shown = [set(split.index) for split in (rest.train, held, data.validation)]
    assert len(set.union(*shown)) == sum(map(len, shown))


@pytest.mark.parametrize(
    ("data", "held", "message"),
    [
        (toy_data([8, 3, 8], [7, 3, 1]), HeldOut(3, "unused"), "stream meta holds out 3 images a class, and class 1"),
        (toy_data([8, 3, 8], [7, 2, 1]), HeldOut(4, "unused"), r"4 unused images a class, and class 1 \(b\) has 3"),
        (toy_data([8, 8, 8], [7, 4, 1]), HeldOut(1, "validation"), "toy has none: set its held_out.of=unused"),
        (toy_data([8, 8, 8], [7, 4, 1], last_drawn=None), HeldOut(1, "unused"), "toy knows none: set held_out.of"),
        (toy_data([8, 8, 8], [7, 4, 1]), HeldOut(1, "train"), r"class 2 \(c\) has 1: lower its held_out.per_class"),
    ],
)
def test_what_cannot_be_held_out_has_one_line(data: LongTailedData, held: HeldOut, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        held_out_of(data, "meta", held)
    assert "\n" not in str(caught.value)


MW = ("method=mw_net",)
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no stream": (
        ("method=ce", "step@stage1.step=meta_weight_net"),
        "unknown stream that its step reads",
    ),
    "no sampler": (
        ("method=ce", "step@stage1.step=meta_weight_net", "+stage1.streams.meta.batch_size=16"),
        "stage1.streams.meta has no sampler",
    ),
    "a class emptied": ((*MW, "stage1.streams.meta.held_out={per_class: 2, of: train}"), "meta holds out 2 images"),
    "an unknown source": ((*MW, "stage1.streams.meta.held_out.of=tests"), "stage1.streams.meta.held_out.of=tests"),
    "parts of a batch": ((*MW, "trainer.accumulate=2"), "stage1: its step looks ahead on whole batches"),
    "compiled": (
        (*MW, "trainer.compile=true", "trainer.compile_backend=eager"),
        "its step looks ahead through",
    ),
    "a loss of streams": (
        ("method=bbn", "step@stage1.step=meta_weight_net", "+stream@stage1.streams.meta=meta"),
        "stage1: its step looks ahead at the stage's own batch: choose another loss than CumulativeLearning",
    ),
    "several views": (
        ("method=supcon", "step@stage1.step=meta_weight_net", "+stream@stage1.streams.meta=meta"),
        "stage1: its step looks ahead at one view of each image: choose another augmentation@stage1.augmentation",
    ),
    "mixed": ((*MW, "mixing@stage1.mixing=mixup"), "stage1: its step looks ahead on images as they are"),
    "weighted twice": (
        ("method=meta_learning_ce", "reweighting@stage1.reweighting=deferred"),
        "stage1: its step weights by class itself",
    ),
    "a late start": ((*MW, "stage1.step.start=9"), "stage1.step.start=9"),
    "a negative rate": ((*MW, "stage1.step.inner_lr=-1"), "invalid stage1.step.inner_lr=-1: expected null or a number"),
    "no module": (
        ("method=metasaug_ldam", "stage1.step.module=other"),
        "unknown module that its step reads 'stage1.modules.other'",
    ),
    "two starts": (
        ("method=metasaug_ldam", "stage1.step.start=0"),
        "expected that of stage1.loss",
    ),
    "a cosine classifier": (
        ("method=metasaug_ldam", "classifier@stage1.classifier=cosine"),
        "stage1: ImplicitAugmentation needs a linear classifier",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_look_ahead_has_one_line(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run_here(tmp_path / "run", *overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "stage1").exists()
