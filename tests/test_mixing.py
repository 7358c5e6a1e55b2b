"""mixup: what is mixed with what, by how much, and that two processes mix as one does."""

import numpy as np
import pytest
import torch
from choices import build, context_of, full_output, names
from torch import Tensor

from ltexp import distributed
from ltexp.data.images.loader import ImageLoader
from ltexp.data.loader import Batch
from ltexp.data.types import ImageSplit
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
    """Row i is λ x_i + (1 - λ) x_j, where j is the partner that the labels name, half a batch further on."""
    images, labels = batch(64)
    mixed, (own, partners, weight, *_), _ = mix(mixup(), images, labels, 64)
    torch.testing.assert_close(mixed, weight * images + (1 - weight) * images[partners])
    assert torch.equal(own, labels)
    assert torch.equal(partners, (labels + 32) % 64)
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
    # two of them, since some keep a queue or class means
    (loss, other), output = (build("loss", name, class_counts=COUNTS[:4]) for _ in range(2)), full_output(z)
    one, each = Mixture(y, y.flip(0), 0.3), Mixture(y, y.flip(0), torch.full((8,), 0.3))
    context = context_of(loss, output, y)
    torch.testing.assert_close(each.objective(loss, output, context), one.objective(other, output, context))


def test_draws_depend_on_the_key_alone() -> None:
    images, labels = batch(16)
    before = torch.random.get_rng_state()
    first, again = mix(mixup(), images, labels, 16), mix(mixup(), images, labels, 16)
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(torch.random.get_rng_state(), before)
    for part in KEY:
        other = mix(mixup(), images, labels, 16, **{**KEY, part: 7})
        assert other.targets.weight != first.targets.weight


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_weights_follow_the_beta_distribution(alpha: float) -> None:
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1))."""
    draws = torch.tensor([mixup(alpha).draw_weight(0, 0, step) for step in range(4000)])
    assert draws.mean().item() == pytest.approx(0.5, abs=0.025)
    assert draws.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_a_batch_of_one_is_its_own_partner() -> None:
    images, labels = batch(1)
    mixed, targets, _ = mix(mixup(), images, labels, 1)
    torch.testing.assert_close(mixed, images)
    assert torch.equal(targets.partner_labels, labels)


def test_no_mixing_is_the_batch_itself() -> None:
    images, labels = batch(5)
    mixed, targets, _ = mix(NoMixing(COUNTS), images, labels, 5)
    assert mixed is images
    assert targets.labels is labels
    assert targets.weight == 1.0


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_alpha_must_be_positive(alpha: float) -> None:
    with pytest.raises(ConfigError, match=f"^invalid alpha={alpha}: expected a number above 0; mixing none "):
        mixup(alpha)


class Keeping:
    """A sampler that shows the rows in their own order."""

    def indices(self, seed: int, epoch: int, max_epochs: int) -> Tensor:
        return torch.arange(48)


def mixed_batches(batch_size: int) -> tuple[list[tuple[list[int], Mixed]], int]:
    """(the rows shown and the mixed batch, for each step of an epoch of 48 images; bytes sent to other processes)."""
    draws = np.random.default_rng(0)
    images, labels = draws.integers(0, 256, (48, 6, 6, 3), dtype=np.uint8), np.arange(48)
    loader = ImageLoader(
        ImageSplit(images=images, labels=labels, index=labels),
        channel_mean=(0.5, 0.5, 0.5),
        channel_std=(0.25, 0.25, 0.25),
        batch_size=batch_size,
        device="cpu",
        sampler=Keeping(),
        augmentation=build("augmentation", "crop_flip"),
        shuffle_within=True,
        rank=rank(),
        world_size=world_size(),
    )
    mixing, sent = build("mixing", "mixup", class_counts=torch.ones(48, dtype=torch.int64)), 0
    gather = distributed.dist.all_gather

    def counting(parts: list[Tensor], local: Tensor) -> None:
        nonlocal sent
        sent += local.nbytes
        gather(parts, local)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(distributed.dist, "all_gather", counting)
        batches = [(batch.index.tolist() if batch.share else [], mixing(batch, 3)) for batch in loader]
    return batches, sent


# the last batch of 20 has 8 rows, that of 47 all 48, that of 7 has 6, and of 3 rows the fourth process holds none
@pytest.mark.parametrize(
    ("processes", "batch_size", "local"),
    [(2, 24, True), (2, 20, True), (2, 47, True), (2, 7, False), (4, 16, True), (4, 20, False), (4, 3, False)],
)
def test_several_processes_mix_as_one(run_on_ranks, processes: int, batch_size: int, local: bool) -> None:
    """The same images with the same partners; nothing is sent where every process holds its rows' partners."""
    whole, _ = mixed_batches(batch_size)
    shares = run_on_ranks(mixed_batches, processes, batch_size)
    for step, (order, mixed) in enumerate(whole):
        assert sorted(order) == sorted(row for batches, _ in shares for row in batches[step][0])
        where = {row: position for position, row in enumerate(order)}
        for batches, _ in shares:
            rows, part = batches[step]
            mine = [where[row] for row in rows]
            own = slice(len(mine))
            assert part.targets.weight == mixed.targets.weight
            assert torch.equal(part.inputs[own], mixed.inputs[mine])
            assert torch.equal(part.targets.labels[own], mixed.targets.labels[mine])
            assert torch.equal(part.targets.partner_labels[own], mixed.targets.partner_labels[mine])
    assert [sent == 0 for _, sent in shares] == [local] * processes


def test_every_epoch_draws_its_partners_anew_from_within_the_batch() -> None:
    """Partners would be the same each epoch if they followed from the sampler's order alone."""
    settings = {"batch_size": 16, "device": "cpu", "sampler": Keeping(), "shuffle_within": True}
    images = np.zeros((48, 6, 6, 3), np.uint8)
    split = ImageSplit(images=images, labels=np.arange(48), index=np.arange(48))
    loader = ImageLoader(split, channel_mean=(0.5,) * 3, channel_std=(0.5,) * 3, **settings)
    orders = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        orders.append([batch.index.tolist() for batch in loader])
    assert orders[0] == orders[2] != orders[1]
    assert [sorted(rows) for rows in orders[0]] == [[*range(16)], [*range(16, 32)], [*range(32, 48)]]
    assert all(rows != sorted(rows) for rows in orders[0])
