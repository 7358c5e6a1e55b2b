"""M2m: the authors' probabilities, the images made against a plain computation, limit cases, several processes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from runs import assert_equal_weights, composed, run_here, tiny, weights
from test_distributed_methods import compare
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.data.loader import Batch
from ltexp.errors import ConfigError
from ltexp.outputs import ModelOutput
from ltexp.randomness import generator
from ltexp.training.major_to_minor import MajorToMinor

CIFAR10 = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])
COUNTS = torch.tensor([10, 100, 50])
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
IMAGES = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def step_of(counts: Tensor = COUNTS, **settings: Any) -> MajorToMinor:
    return MajorToMinor(counts, MEAN, STD, **settings)


@pytest.mark.parametrize("order", [list(range(10)), [3, 9, 0, 7, 1, 5, 8, 2, 6, 4]])
def test_rows_and_seeds_are_drawn_as_in_the_authors_code(order: list[int]) -> None:
    """1 - n_k / n_max of its rows, times the p of its seeds, whose shares are in proportion to p as well."""
    counts, likely = CIFAR10[order], {(0, 9): 0.99293, (5, 6): 0.14365, (8, 9): 0.03248}
    wanted = torch.tensor([0, 0.4006, 0.6408, 0.7846, 0.871, 0.9226, 0.9536, 0.9722, 0.9834, 0.99])[order].double()
    labels = torch.arange(10).repeat(13)
    step, rows = step_of(counts), torch.zeros(10, 10, dtype=torch.float64)
    for seed in range(600):
        asked, seeds = step.draw(labels, generator("test", seed))
        rows.index_put_((labels[asked], labels[seeds[asked]]), torch.ones(()).double(), accumulate=True)
    p = 1 - 0.999 ** (counts[None] - counts[:, None]).clamp_min(0).double()
    for (source, target), value in likely.items():
        assert p[order.index(target), order.index(source)].item() == pytest.approx(value, abs=1e-5)
    expected = 600 * 13 * wanted[:, None] * p * p / p.sum(1, keepdim=True).clamp_min(1e-300)
    assert ((rows - expected).abs() <= 5 * expected.sqrt() + 1e-9).all(), (rows, expected)


class Toy(nn.Module):
    """A linear network of images that remembers the mode that it was asked in."""

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 48, generator=torch.Generator().manual_seed(seed)))
        self.scale, self.modes = scale, set[bool]()

    def forward(self, inputs: Tensor) -> ModelOutput:
        self.modes.add(self.training)
        return ModelOutput(F.linear(inputs.flatten(1), self.weight), logit_scale=self.scale)


def test_images_go_down_the_gradient_of_teacher_and_model_within_0_and_1() -> None:
    """Against the slope worked out by hand of two linear networks: g's softmax minus the target, and f's row."""
    model, teacher, step = Toy(1), Toy(2, scale=0.5), step_of(steps=3, step_size=0.7, weight=0.3, gamma=0.5)
    sources, targets = torch.tensor([1, 1, 2, 1, 2, 2]), torch.tensor([0, 2, 0, 0, 0, 0])
    pixels = IMAGES.clone()
    pixels[0] = IMAGES[0].round()  # starts at the ends of its range, and leaves them
    made, kept = step.make(cast(Any, model), cast(Any, teacher), pixels.clone(), sources, targets)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    theirs, own = teacher.weight.detach(), model.weight.detach()
    expected = pixels
    for _ in range(3):
        shares = (0.5 * ((expected - mean) / std).flatten(1) @ theirs.T).softmax(1) - F.one_hot(targets, 3)
        slope = ((0.5 * shares @ theirs + 0.3 * own[sources]).view(6, 3, 4, 4)) / std
        expected = (expected - 0.7 * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(0, 1)
    torch.testing.assert_close(made, (expected - mean) / std, rtol=1e-4, atol=1e-5)
    assert ((expected[0] > 0) & (expected[0] < 1)).any()
    sure = (0.5 * made.flatten(1) @ theirs.T).softmax(1)[torch.arange(6), targets]
    assert torch.equal(kept, sure >= 0.5)
    assert model.modes == {False}
    assert model.training
    assert model.weight.grad is None


def translated(step: MajorToMinor, labels: Tensor) -> Any:
    stage = SimpleNamespace(model=Toy(1), teacher=SimpleNamespace(model=Toy(2)), seed=0)
    inputs = (IMAGES - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    batch = Batch(inputs, labels, torch.arange(6), 1.0, 6, 0, 0)
    return inputs, step.translated(cast(Any, stage), batch)


def test_made_images_take_their_rows_place_and_keep_its_label() -> None:
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    inputs, mixed = translated(step_of(beta=0.0, gamma=0.0), labels)
    moved = (mixed.inputs != inputs).flatten(1).any(1)
    asked, _ = step_of(beta=0.0).draw(labels, generator("major_to_minor", 0, 0, 0))
    assert torch.equal(moved, asked)
    assert moved.any()
    assert not moved[labels == 1].any()  # the largest class
    assert torch.equal(mixed.targets.labels, labels)
    _, unsure = translated(step_of(beta=0.0, gamma=1.0, steps=1, step_size=1e-4), labels)
    assert torch.equal(unsure.inputs, inputs)


def test_a_batch_without_seeds_stays() -> None:
    assert translated(step_of(), torch.zeros(6, dtype=torch.int64))[1] is None
    assert translated(step_of(torch.tensor([7, 7, 7])), torch.tensor([0, 1, 2, 0, 1, 2]))[1] is None


SMALL = ("stage2.step.beta=0.5", "stage2.step.gamma=0.2", "stage2.step.start=1", "stage2.step.steps=2")


@pytest.mark.slow
def test_where_no_image_is_kept_it_is_the_standard_step(tmp_path: Path) -> None:
    """The same bits as long as no image is kept; and then other ones."""
    common = (*tiny("m2m"), "stage1.epochs=1", "sampler@stage2.sampler=class_balanced")
    keys = {
        "standard": ("step@stage2.step=standard", "stage2.teacher=null"),
        "never sure": (*SMALL[2:], "stage2.step.gamma=1", "stage2.step.step_size=1e-6", "stage2.step.noise=0"),
        "sure": SMALL,
    }
    for name, own in keys.items():
        run_here(tmp_path / name, *common, *own)
    standard, never, sure = (weights(tmp_path / name, "stage2") for name in keys)
    assert_equal_weights(standard, never)
    assert not torch.equal(standard["classifier.weight"], sure["classifier.weight"])


@pytest.mark.slow
def test_two_processes_make_the_images_of_one(tmp_path: Path, run_on_ranks: Any) -> None:
    overrides = tiny("m2m", "batch_norm=frozen", "optimizer.lr=0.005", epochs=1)
    compare(tmp_path, 2, (*overrides, "stage2.step.start=0", *SMALL[:2], SMALL[3]), run_on_ranks)


def test_both_stages_have_the_authors_settings() -> None:
    for method in ("m2m", "m2m_ldam"):
        stages = composed(f"method={method}", "dataset=cifar10_lt", small=False)
        for stage in (stages["stage1"], stages["stage2"]):
            assert (stage["epochs"], stage["batch_size"], stage["schedule"]["decay"]) == (200, 128, 0.01)
            assert stage["optimizer"]["weight_decay"] == 2e-4
        assert stages["stage2"]["sampler"]["start"] == stages["stage2"]["step"]["start"] == 0.8
        assert stages["stage2"]["teacher"] == "stage1"


REFUSED = {
    "no teacher": (("stage2.teacher=null",), "stage2: its step makes images for a teacher: set stage2.teacher"),
    "mixing": (("mixing@stage2.mixing=mixup",), "stage2: its step makes images of images as they are: set mixing"),
    "beta": (("stage2.step.beta=1",), "invalid stage2.step.beta=1: expected a number of 0 or more and below 1"),
    "gamma": (("stage2.step.gamma=90",), "invalid stage2.step.gamma=90"),
    "start": (("stage2.step.start=500",), "start"),
    "texts": (("dataset=ag_news_lt",), "M2m is for images and the dataset holds none"),
    "nobody asks": (("step@stage2.step=standard",), "stage2: no loss or term reads its teacher"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_has_one_line(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run_here(tmp_path / "run", "method=m2m", *overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "stage1").exists()
