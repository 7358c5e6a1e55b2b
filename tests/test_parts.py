"""Views, streams and steps: a stage's parts beside loss and sampler, each a user's own class in a config node."""

import gc
import weakref
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from choices import load, names
from pytorch_lightning.core.optimizer import LightningOptimizer
from runs import assert_equal_weights, composed, run_here, weights
from test_distributed_run import run_on_rank
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config import to_config
from ltexp.config.build import build
from ltexp.data.augmentation import NoAugmentation, Views
from ltexp.data.images.augmentation import CropFlip
from ltexp.data.images.loader import ImageLoader
from ltexp.data.loader import Batch, Stretched
from ltexp.data.samplers import Reversed
from ltexp.data.types import ImageSplit
from ltexp.errors import ConfigError
from ltexp.evaluation.record import read_record
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.models.module import StageModule
from ltexp.outputs import ModelOutput
from ltexp.training.batches import train_loader
from ltexp.training.callbacks.monitor import Monitor
from ltexp.training.session import Session
from ltexp.training.stage import Stage
from ltexp.training.steps import Closure, SharpnessAware, Step, statistics_at_rest

HERE = __name__


class Projection(StageModule):
    """Unit rows of a linear map of every view's features."""

    reads = ("view_features",)
    gives = ("projections",)

    def __init__(self, feature_dim: int, width: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_dim, width)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.linear(features), dim=-1)

    def after_step(self, model: nn.Module) -> None:
        self.steps += 1


class Agreement(Loss):
    """1 - the cosine of an image's first two projections."""

    needs: ClassVar[frozenset[str]] = frozenset({"projections"})
    reads_labels = False

    def per_sample(self, output: ModelOutput, target: Tensor) -> Tensor:
        first, second = output.extra["projections"][:2]
        return 1 - (first * second).sum(1)


class LearnedWeights(Step):
    """Weights of samples by one virtual step on a held-out stream (Ren et al., ICML 2018), of the classifier alone."""

    streams = ("meta",)
    seen: ClassVar[list[Tensor]] = []

    def __call__(self, stage: Stage, optimizer: LightningOptimizer, batch: Batch, closure: Closure) -> Tensor:
        weight = self.weights(stage, batch)
        self.seen.append(weight)
        optimizer.zero_grad()
        loss = closure(sample_weights=weight)
        optimizer.step()
        return loss

    def weights(self, stage: Stage, batch: Batch) -> Tensor:
        model, meta = stage.model, batch.streams["meta"]
        learned = {f"classifier.{name}": p for name, p in model.classifier.named_parameters()}
        epsilon = torch.zeros(len(batch.labels), requires_grad=True)

        def loss(parameters: dict[str, Tensor], of: Batch, weights: Tensor | None) -> Tensor:
            with statistics_at_rest(model):
                output = torch.func.functional_call(model, parameters, (of.inputs,))
            return stage.objective(output, of.labels, BatchContext(sample_weights=weights))

        gradients = torch.autograd.grad(loss(learned, batch, epsilon), list(learned.values()), create_graph=True)
        ahead = {name: p - 0.1 * g for (name, p), g in zip(learned.items(), gradients, strict=True)}
        (slope,) = torch.autograd.grad(loss(ahead, meta, None), epsilon)
        positive = (-slope).clamp_min(0)
        return positive * (len(positive) / positive.sum().clamp_min(1e-12))


CONTRASTIVE = (
    "method=ce",
    "augmentation@stage1.augmentation=two_views",
    f"+stage1.modules.projection._target_={HERE}.Projection",
    f"+stage1.terms.agreement={{weight: 0.5, loss: {{_target_: {HERE}.Agreement}}}}",
)
REVERSED = (
    "method=ce",
    "+sampler@stage1.streams.rare.sampler=reversed",
    "+augmentation@stage1.streams.rare.augmentation=none",
    "+stage1.streams.rare.batch_size=32",
    "+loss@stage1.terms.rare.loss=balanced_softmax",
    "+stage1.terms.rare.stream=rare",
)
SAM = ("method=ce", "step@stage1.step=sam")
META = (
    "method=ce",
    "+sampler@stage1.streams.meta.sampler=class_balanced",
    "+stage1.streams.meta.held_out.per_class=1",
    f"stage1.step={{_target_: {HERE}.LearnedWeights}}",
)
METHODS = {"two views": CONTRASTIVE, "a stream": REVERSED, "sam": SAM, "learned weights": META}
FROZEN = ("stage1.batch_norm=frozen", "stage1.optimizer.lr=0.01", "stage_cache.enabled=false")


STEPS = 2 * 5  # two epochs of 321 images, 64 at a time


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("overrides", METHODS.values(), ids=METHODS)
def test_resumed_equals_uninterrupted(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*overrides, "stage_cache.enabled=false")
    run_here(tmp_path / "whole", *settings)
    ended = Monitor.on_train_epoch_start

    def dying(self: Monitor, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            raise Killed
        ended(self, trainer, module)

    with monkeypatch.context() as context:
        context.setattr(Monitor, "on_train_epoch_start", dying)
        with pytest.raises(Killed):
            run_here(tmp_path / "resumed", *settings)
    assert (tmp_path / "resumed" / "stage1" / "resume.ckpt").exists()
    run_here(tmp_path / "resumed", *settings, "resume=true")
    assert_equal_weights(weights(tmp_path / "resumed", "stage1"), weights(tmp_path / "whole", "stage1"))
    resumed, whole = (
        torch.load(tmp_path / run / "stage1" / "checkpoint.pt")["modules"] for run in ("resumed", "whole")
    )
    for name in whole:
        torch.testing.assert_close(resumed[name]["state"], whole[name]["state"], rtol=0, atol=0)
    if overrides is CONTRASTIVE:
        assert whole["projection"]["state"]["steps"] == STEPS


@pytest.mark.parametrize("overrides", [CONTRASTIVE, REVERSED, SAM], ids=["two views", "a stream", "sam"])
def test_two_processes_train_as_one(overrides: tuple[str, ...], tmp_path: Path, run_on_ranks: Any) -> None:
    settings = (*overrides, *FROZEN)
    run_here(tmp_path / "one", *settings)
    run_on_ranks(run_on_rank, 2, str(tmp_path / "two"), (*settings, "trainer.devices=2"))
    one, two = (weights(tmp_path / name, "stage1") for name in ("one", "two"))
    assert_equal_weights(one, two, tolerance=2e-5)


def test_a_stream_trains_and_its_parts_are_the_whole(tmp_path: Path) -> None:
    """Against the same run without it, a control that must differ; and cut into four parts, which must not."""
    run_here(tmp_path / "plain", "method=ce", *FROZEN)
    for parts in (1, 4):
        run_here(tmp_path / str(parts), *REVERSED, *FROZEN, f"trainer.accumulate={parts}")
    plain, one, four = (weights(tmp_path / name, "stage1") for name in ("plain", "1", "4"))
    assert not torch.allclose(plain["classifier.weight"], one["classifier.weight"], atol=1e-4)
    assert_equal_weights(one, four, tolerance=2e-5)


def test_the_first_view_is_what_its_augmentation_makes_alone() -> None:
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (9, 6, 6, 3), dtype=np.uint8)
    split = ImageSplit(images=images, labels=rng.randint(0, 3, 9), index=np.arange(9))
    settings: dict[str, Any] = {"batch_size": 4, "device": "cpu", "channel_mean": (0.5,) * 3, "channel_std": (0.2,) * 3}
    both = ImageLoader(split, augmentation=Views([CropFlip(padding=2), NoAugmentation()]), **settings)
    alone, plain = (ImageLoader(split, augmentation=one, **settings) for one in (CropFlip(padding=2), NoAugmentation()))
    for batch, first, second in zip(both, alone, plain, strict=True):
        assert batch.views is not None
        assert torch.equal(batch.inputs, first.inputs)
        assert torch.equal(batch.views, torch.stack([first.inputs, second.inputs]))
        assert batch.views.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert first.views is None


def session_of(folder: Path, *overrides: str) -> Session:
    config = to_config(composed(*overrides))
    data = build(config.dataset, root=config.paths.data)
    return Session(config, folder, data, torch.device("cpu")).for_stage(config.stage1)


def test_a_split_lives_as_long_as_the_loader_that_is_kept_for_it(tmp_path: Path) -> None:
    """Else another split could get its id, and its loader."""
    session = session_of(tmp_path, "method=ce")
    split = session.data.test.take(np.arange(4))
    loader, still = session.evaluation_loader(split), weakref.ref(split)
    del split
    gc.collect()
    assert loader.rows == 4
    assert still() is not None


def test_held_out_images_are_the_streams_alone(tmp_path: Path) -> None:
    session, whole = session_of(tmp_path, *META), session_of(tmp_path, "method=ce")
    held, train = session.held_out["meta"], session.data.train
    assert np.bincount(held.labels).tolist() == [1] * 10
    assert session.data.class_counts.tolist() == (whole.data.class_counts - 1).tolist()
    assert sorted([*held.index, *train.index]) == sorted(whole.data.train.index)
    model = session.fresh_model("stage1", session.config.stage1)
    loader = train_loader(session, "stage1", session.config.stage1, model)
    shown = [(batch.index.tolist(), batch.streams["meta"]) for batch in loader]
    assert len(shown) == len(loader)
    assert all(len(stream.labels) == len(index) and int(stream.index.max()) < len(held) for index, stream in shown)
    assert [stream.step for _, stream in shown] == list(range(len(shown)))


@pytest.mark.parametrize("name", names("stream"))
def test_a_stream_by_its_name_feeds_a_term(name: str, tmp_path: Path) -> None:
    """Its choices are told; its batches are as large as the stage's to the last, and of its own sampler's classes."""
    chosen = (
        *("method=ce", f"+stream@stage1.streams.rare={name}", "stage1.epochs=1"),
        *("+loss@stage1.terms.rare.loss=balanced_softmax", "+stage1.terms.rare.stream=rare"),
    )
    plain = composed(*chosen)
    sampler = plain["choices"]["sampler@stage1.streams.rare.sampler"]
    assert plain["choices"]["stream@stage1.streams.rare"] == name
    assert plain["stage1"]["streams"]["rare"]["sampler"] == load("sampler", sampler)
    session = session_of(tmp_path, *chosen)
    model = session.fresh_model("stage1", session.config.stage1)
    batches = list(train_loader(session, "stage1", session.config.stage1, model))
    assert [batch.size for batch in batches] == [batch.streams["rare"].size for batch in batches]
    assert batches[-1].size != batches[0].size
    labels = torch.cat([batch.streams["rare"].labels for batch in batches])
    assert (labels >= 5).float().mean() > 0.3  # of the stage's own images 0.09 are of these classes
    run_here(tmp_path / "with", *chosen, *FROZEN)
    run_here(tmp_path / "without", *chosen, *FROZEN, "+stage1.terms.rare.weight=0")
    trained, plainly = (weights(tmp_path / run, "stage1")["classifier.weight"] for run in ("with", "without"))
    assert not torch.allclose(trained, plainly, atol=1e-4)


def test_a_stream_of_another_size_keeps_it(tmp_path: Path) -> None:
    session = session_of(tmp_path, *REVERSED)
    stage = session.config.stage1
    loader = train_loader(session, "stage1", stage, session.fresh_model("stage1", stage))
    assert [batch.streams["rare"].size for batch in loader] == [32] * len(loader)


def test_a_stream_goes_on_with_further_orders_where_its_own_ends() -> None:
    labels = torch.arange(3).repeat_interleave(torch.tensor([5, 3, 2]))
    sampler = Reversed(labels, labels.bincount())
    long = Stretched(sampler, lambda: 25).indices(3, 0, 1)
    assert torch.equal(long[:10], sampler.indices(3, 0, 1))
    assert not torch.equal(long[:10], long[10:20])
    assert torch.equal(long, Stretched(sampler, lambda: 25).indices(3, 0, 1))


def test_learned_weights_depend_on_the_held_out_images(tmp_path: Path) -> None:
    """The seam for a step that looks ahead: no sample's weight is negative, their mean is 1, and they differ."""
    LearnedWeights.seen.clear()
    run_here(tmp_path / "run", *META, "stage1.epochs=1", "stage_cache.enabled=false")
    assert read_record(tmp_path / "run")["status"] == "finished"
    assert LearnedWeights.seen
    for weight in LearnedWeights.seen:
        assert weight.min() >= 0
        assert weight.mean().item() == pytest.approx(1, abs=1e-4)
        assert weight.std() > 0.1


class Recorded:
    """An optimizer of one parameter group that does as SGD with a learning rate of 1."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.param_groups = [{"params": parameters}]

    def zero_grad(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    def step(self) -> None:
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter -= parameter.grad


def test_sam_steps_by_the_gradient_uphill_and_moves_statistics_once() -> None:
    """By hand for f(a, b) = a^4 + 3 b^2: the gradient at w + rho g / ||g||, the norm over both parameters."""
    a, b = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(-0.5))
    norm = nn.BatchNorm1d(2)
    batch, calls = torch.randn(4, 2), Counter[bool]()

    def closure(*, sample_weights: Tensor | None = None, again: bool = False) -> Tensor:
        calls[again] += 1
        norm(batch)
        loss = a**4 + 3 * b**2
        loss.backward()
        return loss.detach()

    stage = type("", (), {"model": nn.ModuleList([norm])})()
    loss = SharpnessAware(rho=0.1)(stage, Recorded([a, b]), None, closure)  # type: ignore[arg-type]
    slope_a, slope_b = 4 * 1.5**3, -3.0
    length = (slope_a**2 + slope_b**2) ** 0.5
    up_a, up_b = 1.5 + 0.1 * slope_a / length, -0.5 + 0.1 * slope_b / length
    assert loss.item() == pytest.approx(1.5**4 + 3 * 0.25)
    assert (a.item(), b.item()) == pytest.approx((1.5 - 4 * up_a**3, -0.5 - 6 * up_b), rel=1e-5)
    assert calls == {False: 1, True: 1}
    once = nn.BatchNorm1d(2)
    once(batch)
    assert torch.equal(norm.running_mean, once.running_mean)
    assert norm.training
    assert norm.track_running_stats


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "an unread stream": (REVERSED[:-1], r"stage1: nothing reads its stream rare"),
    "a stream without sampler": (("method=ce", "+stage1.streams.rare.batch_size=32"), r"streams.rare has no sampler"),
    "an unknown stream": (
        (*REVERSED, "stage1.terms.rare.stream=rar"),
        r"invalid stage1.terms.rare.stream=rar: expected",
    ),
    "an unread view": (CONTRASTIVE[:2], r"stage1: nothing reads the further views of its images"),
    "mixed views": ((*CONTRASTIVE, "mixing@stage1.mixing=mixup"), r"stage1: its mixing mixes one view"),
    "views in parts": ((*CONTRASTIVE, "trainer.accumulate=2"), r"stage1: losses over several views need the whole"),
    "too few views": (
        ("method=bcl", "augmentation@stage1.augmentation=crop_flip"),
        r"stage1: its terms.contrastive.loss needs 2 views of each image and has 1: choose another augm",
    ),
    "a view too few": (
        ("method=proco", "augmentation@stage1.augmentation=crop_flip"),
        r"stage1: its terms.contrastive.loss needs 2 views",
    ),
    "a view that is not there": (
        ("method=supcon", "stage1.terms.contrastive.loss.first_view=2"),
        r"stage1: its terms.contrastive.loss needs 3 views of each image and has 2",
    ),
    "views of a stream": (
        (
            *("method=supcon", "+stream@stage1.streams.more=class_balanced", "+stage1.terms.contrastive.stream=more"),
            *("+augmentation@stage1.streams.more.augmentation=none", "stage1.terms.contrastive.loss.first_view=1"),
        ),
        r"needs 2 views of each image .* choose another augmentation@stage1.streams.more.augmentation, such as",
    ),
    "an agreement of one view": (
        ("method=ce", "+module@stage1.modules.siamese=siamese", "+loss@stage1.terms.agreement.loss=view_agreement"),
        r"stage1: its terms.agreement.loss needs 2 views of each image and has 1",
    ),
    "images compared in parts": (
        ("method=supcon", "augmentation@stage1.augmentation=crop_flip", "trainer.accumulate=2"),
        r"stage1: its terms.contrastive.loss needs the whole batch at once: set trainer.accumulate=1",
    ),
    "too many held out": (
        (*META, "stage1.streams.meta.held_out.per_class=5000"),
        r"stream meta holds out 5000 images a class, and class 9 has 2: lower",
    ),
    "an unread module": (CONTRASTIVE[:3], r"stage1: nothing reads what its module projection gives \(projections\)"),
    "a missing module": ((*CONTRASTIVE[:2], CONTRASTIVE[3]), r"term agreement needs projections, and no module gives"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_has_one_line_before_training(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run_here(tmp_path / "run", *overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "stage1").exists()


def test_fp16_with_a_step_of_two_passes_is_refused() -> None:
    from ltexp.training.composition import check_composition

    with pytest.raises(ConfigError, match=r"stage1: its step does not work with trainer.precision=16-mixed"):
        check_composition(to_config(composed(*SAM, "trainer.accelerator=auto", "trainer.precision=16-mixed")))
