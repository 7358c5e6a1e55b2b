"""BALMS' meta sampler: its start, its draws, the gradient of its rates, limit cases, resuming, several processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import assert_equal_weights, composed, run_here, tiny, weights
from test_distributed_methods import compare
from test_every_method import resume_in_each
from test_meta_steps import COUNTS, FEATURES, LABELS, META, ToyStage, batch_of, finite_differences, toy_model
from torch import Tensor
from torch.nn import functional as F

from ltexp.errors import ConfigError
from ltexp.evaluation.record import read_record
from ltexp.losses.logit_adjustment import BalancedSoftmax
from ltexp.randomness import generator
from ltexp.training.bilevel import Adam, LookAhead
from ltexp.training.meta_sampler import MetaSampler, start_of


@pytest.mark.parametrize(
    ("power", "expected"),
    [(0.0, [0.5, 0.5, 0.5]), (0.1, [0.44269, 0.47446, 0.55731]), (0.3, [0.33386, 0.41103, 0.66614])],
)
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_rates_start_as_in_the_authors_code(power: float, expected: list[float], order: list[int]) -> None:
    found = start_of(COUNTS[order], power).sigmoid()
    torch.testing.assert_close(found, torch.tensor(expected)[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_is_drawn_as_often_as_its_class_and_rate_say(dtype: torch.dtype) -> None:
    """However unevenly the batch was loaded: shares of classes are σ(g) n, and rows of a class are alike."""
    step, draws = MetaSampler(COUNTS), generator("test", 0)
    labels = torch.tensor([0, 1, 1, 1, 2, 2] * 8)
    rates = torch.tensor([-1.0, 0.0, 2.0], dtype=dtype)
    rows = torch.cat([step.draw(labels, rates, draws)[0] for _ in range(400)])
    wanted = rates.sigmoid() * COUNTS
    wanted = (wanted / wanted.sum()).double()
    found = torch.bincount(labels[rows], minlength=3) / len(rows)
    spread = (wanted * (1 - wanted) / len(rows)).sqrt()
    assert ((found - wanted).abs() < 4 * spread).all(), (found, wanted)
    of_rows = torch.bincount(rows, minlength=len(labels))[labels == 1].double()
    assert of_rows.std() < 2 * of_rows.mean().sqrt()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_gradient_of_the_rates_is_that_of_finite_differences(momentum: float, nesterov: bool) -> None:
    """The virtual step is torch.optim.SGD's own, on a copy, after two real steps: momentum and weight decay included.

    Draws stay as they are, and each counts for the softmax of its perturbed weight over what that is at the rates.
    """
    if nesterov and momentum == 0:
        pytest.skip("torch has no such optimizer")
    stage, step = ToyStage(toy_model(), BalancedSoftmax(COUNTS)), MetaSampler(COUNTS, power=0.3)
    settings: dict[str, Any] = {"lr": 0.5, "momentum": momentum, "weight_decay": 0.1, "nesterov": nesterov}
    optimizer: Any = torch.optim.SGD(stage.model.parameters(), **settings)
    features, labels = FEATURES.repeat(2, 1) * torch.tensor([[1.0], [0.5]]).repeat_interleave(3, 0), LABELS.repeat(2)
    batch = batch_of(features, labels, meta=batch_of(META, LABELS))
    prior = COUNTS.double().log()
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(stage.model(features).logits + prior.float(), labels).backward()
        optimizer.step()
    rates = step.rates.clone().requires_grad_()
    rows, chosen = step.draw(labels, rates, generator("test", 1))
    given = torch.bincount(rows, minlength=6).float().requires_grad_()
    ahead = LookAhead(stage, optimizer, batch, "meta", None, as_optimizer=True)  # type: ignore[arg-type]
    slope = ahead.slope(ahead.objective(ahead.output(), given), given)
    (found,) = torch.autograd.grad((chosen * slope[rows]).sum(), rates)

    def value(at: Tensor) -> float:
        _, there = step.draw(labels, at, generator("test", 1))
        own = [p.detach().double().requires_grad_() for p in stage.model.classifier.parameters()]  # type: ignore[union-attr]
        copy = torch.optim.SGD(own, **settings)
        velocities = [optimizer.state[p].get("momentum_buffer") for p in stage.model.classifier.parameters()]  # type: ignore[union-attr]
        for parameter, velocity in zip(own, velocities, strict=True):
            if velocity is not None:
                copy.state[parameter]["momentum_buffer"] = velocity.double().clone()
        losses = F.cross_entropy(F.linear(features.double(), *own)[rows] + prior, labels[rows], reduction="none")
        ((1 + there - chosen.detach().double()) * losses).mean().backward()
        copy.step()
        return F.cross_entropy(F.linear(META.double(), *own), LABELS).item()

    expected = finite_differences(rates.detach(), value, step=1e-3)
    torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=1e-6)
    assert found.abs().max() > 1e-3


def test_the_real_step_is_balanced_softmax_of_the_drawn_rows_and_adam_moves_the_rates() -> None:
    """Sample weights are how often a row was drawn, so the objective is that of the drawn batch itself."""
    stage, step = ToyStage(toy_model(), BalancedSoftmax(COUNTS)), MetaSampler(COUNTS, outer_lr=0.1)
    optimizer: Any = torch.optim.SGD(stage.model.parameters(), lr=0.5)
    batch = batch_of(FEATURES, LABELS, meta=batch_of(META, LABELS))
    ahead = LookAhead(stage, optimizer, batch, "meta", None, as_optimizer=True)  # type: ignore[arg-type]
    rows, _ = step.draw(LABELS, step.rates, generator("meta_sampler", 0, 0, 0))
    before, seen = step.rates.clone(), []

    def closure(*, sample_weights: Tensor, again: bool = False) -> Tensor:
        seen.append(ahead.objective(ahead.output(), sample_weights))
        return seen[-1].detach()

    step.look_and_step(ahead, closure)  # type: ignore[arg-type]
    drawn = stage.model(FEATURES).logits[rows] + COUNTS.log()
    torch.testing.assert_close(seen[0], F.cross_entropy(drawn, LABELS[rows]))
    assert len(set(rows.tolist())) < 3  # or it would be the batch as it was
    moved = (step.rates - before).abs()
    torch.testing.assert_close(moved[moved > 0], torch.full_like(moved[moved > 0], 0.1), rtol=1e-3, atol=1e-4)
    assert moved.any()  # Adam's first step is the rate itself


def test_adam_is_that_of_torch() -> None:
    tensor, gradients = torch.randn(5), torch.randn(4, 5)
    mine, theirs = tensor.clone(), tensor.clone().requires_grad_()
    own, other = Adam(mine, 0.1), torch.optim.Adam([theirs], lr=0.1)
    for gradient in gradients:
        own.step(mine, gradient)
        theirs.grad = gradient
        other.step()
    torch.testing.assert_close(mine, theirs.detach())


def small(*keys: str, epochs: int = 2) -> tuple[str, ...]:
    return (*tiny("balms", epochs=epochs), "stage1.epochs=1", *keys)


@pytest.mark.slow
def test_without_an_outer_or_an_inner_rate_the_rates_stay(tmp_path: Path) -> None:
    """Either way the same draws, bit for bit; with both rates other ones. And none of it is plain balanced softmax."""
    keys = {"outer": ("stage2.step.outer_lr=0",), "inner": ("stage2.step.inner_lr=0",), "moved": ()}
    for name, key in keys.items():
        run_here(tmp_path / name, *small("stage2.step.outer_lr=3" if name != "outer" else key[0], *key))
    outer, inner, moved = (weights(tmp_path / name, "stage2") for name in keys)
    assert_equal_weights(outer, inner)
    assert not torch.equal(outer["classifier.weight"], moved["classifier.weight"])


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates and their moments are kept; at a rate at which losing them would show."""
    resume_in_each(["stage2"], small("stage2.step.outer_lr=1"), tmp_path, monkeypatch)


@pytest.mark.slow
def test_two_processes_draw_as_one(tmp_path: Path, run_on_ranks: Any) -> None:
    overrides = (*small(), "stage1.batch_norm=frozen", "stage2.step.outer_lr=0.3", "stage1.optimizer.lr=0.02")
    compare(tmp_path, 2, overrides, run_on_ranks)


def test_the_large_sets_hold_out_validation_images_and_cifar_none() -> None:
    cifar = composed("method=balms", "dataset=cifar100_lt")["stage2"]
    assert cifar["streams"]["meta"]["held_out"] is None
    assert cifar["epochs"] * cifar["sampler"]["epoch_length"] == 2000 * cifar["batch_size"]
    for dataset, power, rows in (("imagenet_lt", 0.1, 1024), ("places_lt", 0.3, 512)):
        stage = composed("method=balms", f"dataset={dataset}")["stage2"]
        meta, step = stage["streams"]["meta"], stage["step"]
        assert (meta["batch_size"], meta["held_out"]) == (rows, {"per_class": 20, "of": "validation"})
        assert (step["power"], step["outer_lr"], stage["optimizer"]["weight_decay"]) == (power, 0.001, 5e-4)


REFUSED = {
    "adam": (("optimizer@stage2.optimizer=adamw",), "stage2: its step looks ahead by a step of SGD: set optimizer"),
    "weighted twice": (("reweighting@stage2.reweighting=deferred",), "stage2: its step weights by class itself"),
    "a power": (("stage2.step.power=2",), "invalid stage2.step.power=2: expected a number from 0 to 1"),
    "a rate": (("stage2.step.outer_lr=-1",), "invalid stage2.step.outer_lr=-1"),
    "no stream": (
        ("~stream@stage2.streams.meta",),
        r"stream that its step reads 'stage2.streams.meta': add \+stream@stage2.streams.meta=CHOICE",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_has_one_line(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run_here(tmp_path / "run", "method=balms", *overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "stage1").exists()


def test_a_run_of_it_is_recorded(tmp_path: Path) -> None:
    run_here(tmp_path / "run", *small(epochs=1))
    stages = read_record(tmp_path / "run")["stages"]
    assert [stage["epochs"] for stage in stages] == [1, 1]
    assert np.isfinite(stages[-1]["train_loss"])
