"""mixup: what is mixed with what, by how much, and that two processes mix as one does."""

import pytest
import torch
from choices import build
from torch import Tensor

from ltexp.distributed import rank, world_size
from ltexp.errors import ConfigError
from ltexp.losses.cross_entropy import CrossEntropy
from ltexp.outputs import ModelOutput
from ltexp.training.mixing import Mixed, Mixup, NoMixing

KEY = {"seed": 0, "epoch": 1, "step": 2}


def batch(rows: int) -> tuple[Tensor, Tensor]:
    """Images that tell which row they are, and as many labels."""
    images = torch.randn(rows, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last), torch.arange(rows)


def test_images_and_labels_are_mixed_alike() -> None:
    """Row i is λ x_i + (1 - λ) x_j, where j is the partner that the labels name; partners are a permutation."""
    images, labels = batch(64)
    mixed, (own, partners, weight) = Mixup()(images, labels, size=64, **KEY)
    torch.testing.assert_close(mixed, weight * images + (1 - weight) * images[partners])
    assert torch.equal(own, labels)
    assert sorted(partners.tolist()) == labels.tolist()
    assert 0 < weight < 1
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_objective_is_the_convex_combination() -> None:
    images, labels = batch(6)
    targets = Mixup()(images, labels, size=6, **KEY).targets
    loss, z = CrossEntropy(class_counts=torch.tensor([9, 5, 2, 2, 2, 2])), torch.randn(6, 6)
    soft = torch.zeros(6, 6).scatter_(1, targets.labels[:, None], targets.weight)
    soft.scatter_add_(1, targets.partner_labels[:, None], torch.full((6, 1), 1 - targets.weight))
    expected = -(soft * z.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(targets.objective(loss, ModelOutput(logits=z)), expected)


def test_draws_depend_on_the_key_alone() -> None:
    images, labels = batch(16)
    before = torch.random.get_rng_state()
    first, again = Mixup()(images, labels, size=16, **KEY), Mixup()(images, labels, size=16, **KEY)
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(torch.random.get_rng_state(), before)
    for part in KEY:
        other = Mixup()(images, labels, size=16, **{**KEY, part: 7})
        assert other.targets.weight != first.targets.weight
        assert not torch.equal(other.targets.partner_labels, first.targets.partner_labels)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_weights_follow_the_beta_distribution(alpha: float) -> None:
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1))."""
    draws = torch.tensor([Mixup(alpha).draw_weight(0, 0, step) for step in range(4000)])
    assert draws.mean().item() == pytest.approx(0.5, abs=0.025)
    assert draws.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_a_batch_of_one_is_its_own_partner() -> None:
    images, labels = batch(1)
    mixed, targets = Mixup()(images, labels, size=1, **KEY)
    torch.testing.assert_close(mixed, images)
    assert torch.equal(targets.partner_labels, labels)


def test_no_mixing_is_the_batch_itself() -> None:
    images, labels = batch(5)
    mixed, targets = NoMixing()(images, labels, size=5, **KEY)
    assert mixed is images
    assert targets.labels is labels
    assert targets.weight == 1.0


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_alpha_must_be_positive(alpha: float) -> None:
    with pytest.raises(ConfigError, match="choose mixing none"):
        Mixup(alpha)


def mix_own_rows(rows: int) -> tuple[list[int], Mixed]:
    images, labels = batch(rows)
    mine = torch.arange(rows)[rank() :: world_size()]
    mine = mine if len(mine) else torch.tensor([rows - 1])  # a stand-in for a process without rows
    return mine.tolist(), build("mixing", "mixup")(images[mine], labels[mine], size=rows, **KEY)


@pytest.mark.parametrize("rows", [8, 7, 1])
def test_two_processes_mix_as_one(run_on_ranks, rows: int) -> None:
    _, whole = mix_own_rows(rows)
    for mine, part in run_on_ranks(mix_own_rows, 2, rows):
        assert part.targets.weight == whole.targets.weight
        assert torch.equal(part.inputs, whole.inputs[mine])
        assert torch.equal(part.targets.labels, whole.targets.labels[mine])
        assert torch.equal(part.targets.partner_labels, whole.targets.partner_labels[mine])
