"""mixup: what is mixed with what, by how much, and that two processes mix as one does."""

import pytest
import torch
from choices import build, full_output, names
from torch import Tensor

from ltexp.data.loader import Batch
from ltexp.distributed import rank, world_size
from ltexp.errors import ConfigError
from ltexp.losses.context import BatchContext
from ltexp.losses.cross_entropy import CrossEntropy
from ltexp.outputs import ModelOutput
from ltexp.training.mixing import Mixed, Mixing, Mixture, Mixup, NoMixing

KEY = {"seed": 0, "epoch": 1, "step": 2}
COUNTS = torch.tensor([9, 5, 2, 2, 2, 2])


def batch(rows: int) -> tuple[Tensor, Tensor]:
    """Images that tell which row they are, and as many labels."""
    images = torch.randn(rows, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return images.contiguous(memory_format=torch.channels_last), torch.arange(rows)


def mix(
    mixing: Mixing, images: Tensor, labels: Tensor, size: int, seed: int = 0, epoch: int = 1, step: int = 2
) -> Mixed:
    """These rows of a global batch of `size`, mixed."""
    return mixing(Batch(images, labels, labels, 1.0, size, epoch, step), seed)


def mixup(alpha: float = 1.0) -> Mixup:
    return Mixup(COUNTS, alpha)


def test_images_and_labels_are_mixed_alike() -> None:
    """Row i is λ x_i + (1 - λ) x_j, where j is the partner that the labels name; partners are a permutation."""
    images, labels = batch(64)
    mixed, (own, partners, weight, *_) = mix(mixup(), images, labels, 64)
    torch.testing.assert_close(mixed, weight * images + (1 - weight) * images[partners])
    assert torch.equal(own, labels)
    assert sorted(partners.tolist()) == labels.tolist()
    assert 0 < weight < 1
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_objective_is_the_convex_combination() -> None:
    images, labels = batch(6)
    targets = mix(mixup(), images, labels, 6).targets
    loss, z = CrossEntropy(class_counts=COUNTS), torch.randn(6, 6)
    soft = torch.zeros(6, 6).scatter_(1, targets.labels[:, None], targets.weight)
    soft.scatter_add_(1, targets.partner_labels[:, None], torch.full((6, 1), 1 - targets.weight))
    expected = -(soft * z.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(targets.objective(loss, ModelOutput(logits=z)), expected)


def test_weights_of_rows_and_of_label_sides_enter_the_mean() -> None:
    """By hand: the mean over rows of s_i (a_i l(z_i, y_i) + b_i l(z_i, y'_i)), cut into parts as gradients are."""
    draws = torch.Generator().manual_seed(1)
    z, own, other = torch.randn(6, 6, generator=draws), torch.arange(6), torch.arange(6).flip(0)
    a, b, s = torch.rand(3, 6, generator=draws)
    log_p = z.log_softmax(1)
    each = -(a * log_p[own, own] + b * log_p[own, other])
    loss = CrossEntropy(class_counts=COUNTS)
    mixture = Mixture(own, other, a, b, s)
    torch.testing.assert_close(mixture.objective(loss, ModelOutput(logits=z)), (s * each).mean())
    for part in (slice(0, 2), slice(2, 6)):
        value = mixture.objective(loss, ModelOutput(logits=z[part]), BatchContext(part=part))
        torch.testing.assert_close(value, (s * each)[part].mean())
    torch.testing.assert_close(
        Mixture(own, other, 0.3, 0.9).objective(loss, ModelOutput(logits=z)),
        -(0.3 * log_p[own, own] + 0.9 * log_p[own, other]).mean(),
    )


@pytest.mark.parametrize("name", names("loss"))
def test_equal_weights_of_rows_are_one_number_with_every_loss(name: str) -> None:
    z, y = torch.randn(8, 4), torch.arange(8) % 4
    loss, output = build("loss", name, class_counts=COUNTS[:4]), full_output(z)
    one, each = Mixture(y, y.flip(0), 0.3), Mixture(y, y.flip(0), torch.full((8,), 0.3))
    torch.testing.assert_close(each.objective(loss, output), one.objective(loss, output))


def test_draws_depend_on_the_key_alone() -> None:
    images, labels = batch(16)
    before = torch.random.get_rng_state()
    first, again = mix(mixup(), images, labels, 16), mix(mixup(), images, labels, 16)
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(torch.random.get_rng_state(), before)
    for part in KEY:
        other = mix(mixup(), images, labels, 16, **{**KEY, part: 7})
        assert other.targets.weight != first.targets.weight
        assert not torch.equal(other.targets.partner_labels, first.targets.partner_labels)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_weights_follow_the_beta_distribution(alpha: float) -> None:
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1))."""
    draws = torch.tensor([mixup(alpha).draw_weight(0, 0, step) for step in range(4000)])
    assert draws.mean().item() == pytest.approx(0.5, abs=0.025)
    assert draws.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_a_batch_of_one_is_its_own_partner() -> None:
    images, labels = batch(1)
    mixed, targets = mix(mixup(), images, labels, 1)
    torch.testing.assert_close(mixed, images)
    assert torch.equal(targets.partner_labels, labels)


def test_no_mixing_is_the_batch_itself() -> None:
    images, labels = batch(5)
    mixed, targets = mix(NoMixing(COUNTS), images, labels, 5)
    assert mixed is images
    assert targets.labels is labels
    assert targets.weight == 1.0


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_alpha_must_be_positive(alpha: float) -> None:
    with pytest.raises(ConfigError, match="choose mixing none"):
        mixup(alpha)


def mix_own_rows(rows: int) -> tuple[list[int], Mixed]:
    images, labels = batch(rows)
    mine = torch.arange(rows)[rank() :: world_size()]
    mine = mine if len(mine) else torch.tensor([rows - 1])  # a stand-in for a process without rows
    return mine.tolist(), mix(build("mixing", "mixup", class_counts=COUNTS), images[mine], labels[mine], rows)


@pytest.mark.parametrize("rows", [8, 7, 1])
def test_two_processes_mix_as_one(run_on_ranks, rows: int) -> None:
    _, whole = mix_own_rows(rows)
    for mine, part in run_on_ranks(mix_own_rows, 2, rows):
        assert part.targets.weight == whole.targets.weight
        assert torch.equal(part.inputs, whole.inputs[mine])
        assert torch.equal(part.targets.labels, whole.targets.labels[mine])
        assert torch.equal(part.targets.partner_labels, whole.targets.partner_labels[mine])
