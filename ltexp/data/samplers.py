"""Samplers: which images an epoch shows, as one global stream of indices drawn from a keyed generator.

A sampler knows nothing of processes. The stream of an epoch depends on (seed, epoch) alone; the loader cuts it into
global batches and gives every process its rows of each, so the union over processes is the stream, however many there
are. A new sampler is usually one method, `class_probabilities`: the class is drawn first, then an image of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ltexp.config.require import is_number, is_whole, require
from ltexp.counts import checked_class_counts, inverse_effective_number
from ltexp.errors import ConfigError
from ltexp.randomness import generator

if TYPE_CHECKING:  # data knows nothing of models
    from ltexp.losses.context import Survey


class Sampler(ABC):
    """Independent draws with replacement: a class by its probability, then one of its images uniformly.

    Args:
        labels: (N,) int64 label of each training image, in any order.
        class_counts: (C,) int64, how often each class occurs in `labels`.
        epoch_length: images an epoch shows; null (default): N.

    Attributes:
        surveys: the splits, `train` or `validation`, that it surveys before an epoch (`before_epoch`).

    Raises:
        ConfigError: unusable labels or class counts, counts that are not the labels', or an epoch length below 1.
    """

    surveys: Collection[str] = ()

    def __init__(self, labels: Tensor, class_counts: Tensor, epoch_length: int | None = None) -> None:
        self.class_counts = checked_class_counts(class_counts).cpu()
        labels = _checked_labels(labels)
        if not torch.equal(torch.bincount(labels, minlength=len(self.class_counts)), self.class_counts):
            raise ConfigError("class_counts are not the counts of the labels")
        whole = epoch_length is None or is_whole(epoch_length, 1)
        require(whole, "epoch_length", epoch_length, "a whole number of 1 or more, or null")
        self.size = len(labels)
        self.epoch_length = epoch_length if epoch_length is not None else self.size
        # Images of class c are by_class[starts[c] : starts[c] + counts[c]].
        self.by_class = labels.argsort(stable=True)
        self.starts = self.class_counts.cumsum(0) - self.class_counts

    @abstractmethod
    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        """(C,) float64, the expected share of each class in the images of `epoch` (from 0) of `max_epochs`."""

    def before_epoch(self, epoch: int, max_epochs: int, survey: "Survey") -> None:  # noqa: B027 - a hook
        """Called before the order of every epoch is made, on every process, where it `surveys` a split.

        A resumed stage calls it with its weights of that moment: what is learned of a survey is in no checkpoint. The
        length of the epoch stays.

        Args:
            epoch: from 0.
            max_epochs: epochs of the stage.
            survey: of the model as it is then.
        """

    def check_data(self) -> None:  # noqa: B027 - a hook
        """Refuses the labels of a real training set, which it was built with, before anything is trained.

        Raises:
            ConfigError: saying what to change.
        """

    def indices(self, seed: int, epoch: int, max_epochs: int) -> Tensor:
        """(epoch_length,) int64 positions in `labels`, in the order in which the epoch shows them."""
        draws = generator("order", seed, epoch)
        cumulative = self.class_probabilities(epoch, max_epochs).cumsum(0)
        cumulative /= cumulative[-1].clone()  # exactly 1 at the end, so that every draw below 1 finds a class
        shape = (2, self.epoch_length)
        which_class, which_image = torch.rand(shape, generator=draws, dtype=torch.float64)
        classes = torch.searchsorted(cumulative, which_class, right=True)
        within = (which_image * self.class_counts[classes]).long()
        return self.by_class[self.starts[classes] + within]

    def __iter__(self) -> Iterator[int]:
        """What torch's `DataLoader` asks for; the order of which epoch, only an `EpochSampler` around it knows.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"{type(self).__name__} does not know the epoch: give the DataLoader "
            "sampler=ltexp.samplers.EpochSampler(sampler, epochs=...)"
        )


def _checked_labels(labels: Tensor) -> Tensor:
    """Labels (N,) on the CPU, once it is sure that they are int64, not negative, and at least one."""
    if not isinstance(labels, Tensor):
        kind = type(labels).__name__
        raise ConfigError(f"labels must be an int64 tensor of shape (N,), got {kind}: torch.as_tensor makes one of it")
    if labels.dtype != torch.int64 or labels.ndim != 1:
        got = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise ConfigError(f"labels must be an int64 tensor of shape (N,), got {got}")
    if not len(labels) or labels.min() < 0:
        found = "a label below 0" if len(labels) else "no label"
        raise ConfigError(f"labels hold {found}: expected those of the training images, from 0 on")
    return labels.cpu()


def _normalized(weights: Tensor) -> Tensor:
    """`weights` as float64 probabilities."""
    weights = weights.double()
    return weights / weights.sum()


class InstanceBalanced(Sampler):
    """Ordinary shuffling: every image once an epoch, reshuffled each epoch. P(class) is proportional to n."""

    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        """(C,) n / N."""
        return _normalized(self.class_counts)

    def indices(self, seed: int, epoch: int, max_epochs: int) -> Tensor:
        """A permutation of all images; a longer epoch goes through further permutations."""
        draws = generator("order", seed, epoch)
        rounds = -(-self.epoch_length // self.size)
        return torch.cat([torch.randperm(self.size, generator=draws) for _ in range(rounds)])[: self.epoch_length]


class ClassBalanced(Sampler):
    """Independent draws, every class as likely as any other: weight 1 / n_c per image."""

    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        """(C,) 1 / C."""
        return _normalized(torch.ones_like(self.class_counts))


class ClassAware(Sampler):
    """Classes in turn, some images of each: the class-balanced sampler of Kang et al. (ICLR 2020) and MiSLAS.

    A cycle visits every class once, in an order that is new each cycle. A visit shows the next images of the class's
    own cycle, which goes through all its images in an order that is new each time round. Both kinds of cycle begin anew
    with each epoch, so that an epoch depends on nothing before it.

    Args:
        labels: (N,) int64.
        class_counts: (C,) int64.
        images_per_class: consecutive images a visit shows. Default 4 (the authors' code).
        epoch_length: null (default): N. MiSLAS's code runs one batch more than N images need in each epoch.

    Raises:
        ConfigError: fewer than 1 image per class, and as `Sampler`.
    """

    def __init__(
        self, labels: Tensor, class_counts: Tensor, images_per_class: int = 4, epoch_length: int | None = None
    ) -> None:
        super().__init__(labels, class_counts, epoch_length)
        require(is_whole(images_per_class, 1), "images_per_class", images_per_class, "a whole number of 1 or more")
        self.images_per_class = images_per_class

    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        """(C,) 1 / C."""
        return _normalized(torch.ones_like(self.class_counts))

    def indices(self, seed: int, epoch: int, max_epochs: int) -> Tensor:
        """The stream of class visits, `images_per_class` images each, cut at the epoch's length."""
        draws = generator("order", seed, epoch)
        num_classes, take = len(self.class_counts), self.images_per_class
        visits = -(-self.epoch_length // take)
        cycles = -(-visits // num_classes)
        # A row is one cycle over the classes; within it each class occurs once, so cycle q is a class's visit q.
        order = torch.rand(cycles, num_classes, generator=draws, dtype=torch.float64).argsort(dim=1)
        classes = order.flatten()[:visits]
        visit = torch.arange(visits) // num_classes
        stream, starts = self._image_cycles(cycles * take, draws)
        positions = (starts[classes] + visit * take)[:, None] + torch.arange(take)
        return stream[positions.flatten()[: self.epoch_length]]

    def _image_cycles(self, length: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """For each class its images in reshuffled rounds, at least `length` of them; and where each class begins.

        Sorting by (class, round, random number) shuffles each round of each class in one go.
        """
        rounds = (length + self.class_counts - 1) // self.class_counts
        sizes = rounds * self.class_counts
        starts = sizes.cumsum(0) - sizes
        classes = torch.repeat_interleave(sizes)
        offset = torch.arange(len(classes)) - starts[classes]
        counts = self.class_counts[classes]
        block = (rounds.cumsum(0) - rounds)[classes] + offset // counts
        # Integer keys: with floats a draw close to 1 could round into the next round.
        keys = (block << 32) + torch.randint(1 << 32, (len(classes),), generator=draws)
        # Sorting only moves places within a round, whose images are `offset % counts` in some order.
        images = self.by_class[self.starts[classes] + offset % counts]
        return images[keys.argsort()], starts


class SquareRoot(Sampler):
    """P(class) proportional to the square root of n (Kang et al., ICLR 2020, Eq. 1 with q = 1/2)."""

    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        """(C,) sqrt(n) / sum sqrt(n)."""
        return _normalized(self.class_counts.double().sqrt())


class Power(Sampler):
    """Independent draws, P(class) proportional to n^q (Kang et al., ICLR 2020, Eq. 1).

    Args:
        labels: (N,) int64.
        class_counts: (C,) int64.
        exponent: q. Default 1: as classes are; 0: class-balanced, 1/2: `SquareRoot`, -1: `Reversed`. An image weight of
            n^-ρ is q = 1 - ρ.
        epoch_length: see `Sampler`.

    Raises:
        ConfigError: as `Sampler`.
    """

    def __init__(
        self, labels: Tensor, class_counts: Tensor, exponent: float = 1.0, epoch_length: int | None = None
    ) -> None:
        super().__init__(labels, class_counts, epoch_length)
        require(is_number(exponent), "exponent", exponent, "a number")
        self.probabilities = _normalized(self.class_counts.double() ** exponent)

    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        """(C,) n^q / sum n^q."""
        return self.probabilities


class ProgressivelyBalanced(Sampler):
    """From instance-balanced to class-balanced (Kang et al., ICLR 2020, Eq. 2): (1 - t/T) n/N + (t/T) / C.

    t is the epoch from 0 and T the number of epochs, so the first epoch is instance-balanced and the last one almost
    class-balanced.
    """

    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        """(C,) the mixture of the two at t = epoch, T = max_epochs."""
        progress = epoch / max_epochs
        return (1 - progress) * _normalized(self.class_counts) + progress * _normalized(
            torch.ones_like(self.class_counts)
        )


class EffectiveNumber(Sampler):
    """Every image weighs (1 - β) / (1 - β^n_c), one over the effective number of its class (Cui et al., CVPR 2019).

    P(class) is therefore proportional to n_c times that.

    Args:
        labels: (N,) int64.
        class_counts: (C,) int64.
        beta: β in [0, 1). Default 0.9999 (the code of LDAM-DRW and its successors); 0: proportional to n.
        epoch_length: see `Sampler`.

    Raises:
        ConfigError: β out of range, and as `Sampler`.
    """

    def __init__(
        self, labels: Tensor, class_counts: Tensor, beta: float = 0.9999, epoch_length: int | None = None
    ) -> None:
        super().__init__(labels, class_counts, epoch_length)
        require(0 <= beta < 1, "beta", beta, "a number of 0 or more and below 1")
        self.probabilities = _normalized(self.class_counts * inverse_effective_number(self.class_counts, beta))

    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        """(C,) proportional to n (1 - β) / (1 - β^n)."""
        return self.probabilities


class ClassBasedEffectiveNumber(Sampler):
    """Effective number with a β of each class's own (CBEN, the sampler of GCL): β_c = base + slope δ_c.

    δ_c is log n_max - log n_c scaled to [0, 1] (0 for all classes if all counts are equal): that of GCL's default
    cloud, whatever cloud the loss has, though Eq. 5.15 writes one δ for both. The weight (1 - β_c) / (1 - β_c^n_c) is
    an image's, so P(class) is proportional to n_c times it.

    Args:
        labels: (N,) int64.
        class_counts: (C,) int64.
        base: a in β_c = a + b δ_c. Default 0.999 (the thesis on GCL, Sec. 5.4.1); the authors' code has 0.9999.
        slope: b. Default 0.0009 (the same); the authors' code has 1e-5, which is close to class-balanced.
        epoch_length: see `Sampler`.

    Raises:
        ConfigError: not 0 <= base <= base + slope < 1, and as `Sampler`.
    """

    def __init__(
        self,
        labels: Tensor,
        class_counts: Tensor,
        base: float = 0.999,
        slope: float = 0.0009,
        epoch_length: int | None = None,
    ) -> None:
        super().__init__(labels, class_counts, epoch_length)
        require(0 <= base < 1, "base", base, "a number of 0 or more and below 1")
        require(0 <= slope < 1 - base, "slope", slope, f"a number of 0 or more and below 1 - base = {1 - base:g}")
        rarity = self.class_counts.max().double().log() - self.class_counts.double().log()
        rarity = rarity / rarity.max() if rarity.max() > 0 else rarity
        beta = base + slope * rarity
        self.probabilities = _normalized(self.class_counts * inverse_effective_number(self.class_counts, beta))

    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        """(C,) proportional to n (1 - β_c) / (1 - β_c^n)."""
        return self.probabilities


class Reversed(Sampler):
    """P(class) proportional to 1 / n: the reversed sampler of BBN (Zhou et al., CVPR 2020)."""

    def class_probabilities(self, epoch: int, max_epochs: int) -> Tensor:
        """(C,) (1/n) / sum(1/n)."""
        return _normalized(1 / self.class_counts.double())
