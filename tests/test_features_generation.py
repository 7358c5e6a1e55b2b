"""AFG's mathematics: statistics, calibration, and draws whose mean and covariance are those of Eqs. 8-9."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ltexp.distributed import rank, world_size
from ltexp.features.bank import FeatureBank
from ltexp.features.calibration import Support, calibrated_covariance, calibrated_mean, nearest_richer
from ltexp.features.confidence import Confidence
from ltexp.features.generation import Generation, balancing_counts, draw_sources
from ltexp.features.statistics import ClassStatistics
from ltexp.randomness import generator

DIM, K = 5, 2
COUNTS = torch.tensor([40, 1, 9, 25, 3])
TAIL = COUNTS < 20


def features_and_labels() -> tuple[Tensor, Tensor]:
    """Correlated features, in no order of class."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(COUNTS)[torch.randperm(int(COUNTS.sum()), generator=draws)]
    mixing = torch.randn(len(COUNTS), DIM, DIM, generator=draws)
    centers = 3 * torch.rand(len(COUNTS), DIM, generator=draws)
    noise = torch.randn(len(labels), DIM, generator=draws)
    return centers[labels] + torch.einsum("nd,nde->ne", noise, mixing[labels]), labels


def statistics_of(features: Tensor, labels: Tensor, **keywords: Any) -> ClassStatistics:
    """Of this process's share of the features, merged."""
    found = ClassStatistics(len(COUNTS), DIM, **keywords)
    own = slice(rank(), None, world_size())
    for some_features, some_labels in zip(features[own].split(7), labels[own].split(7), strict=True):
        found.update(some_features, some_labels)
    found.merge()
    return found


def merged_statistics() -> tuple[Tensor, Tensor, Tensor]:
    found = statistics_of(*features_and_labels(), covariance=True)
    return found.counts, found.mean(), found.covariance()


def test_statistics_are_numpys(run_on_ranks: Any) -> None:
    features, labels = features_and_labels()
    counts, mean, covariance = merged_statistics()
    assert torch.equal(counts, COUNTS)
    for label in range(len(COUNTS)):
        own = features[labels == label].double().numpy()
        np.testing.assert_allclose(mean[label], own.mean(0), rtol=1e-12)
        expected = np.cov(own.T) if len(own) > 1 else np.zeros((DIM, DIM))
        np.testing.assert_allclose(covariance[label], expected, rtol=1e-9, atol=1e-12)
    for merged in run_on_ranks(merged_statistics, 2):
        torch.testing.assert_close(merged, (counts, mean, covariance), rtol=1e-12, atol=1e-12)


def test_the_nearest_richer_classes_one_by_one() -> None:
    features, labels = features_and_labels()
    means = statistics_of(features, labels).mean().float()
    chosen = TAIL[labels]
    support = nearest_richer(features[chosen], labels[chosen], means, COUNTS, COUNTS, K)
    for row, label, classes, weights in zip(features[chosen], labels[chosen], *support, strict=True):
        richer = [k for k in range(len(COUNTS)) if COUNTS[k] > COUNTS[label]]
        distance = {k: float((row - means[k]).norm()) for k in richer}
        nearest = sorted(richer, key=distance.__getitem__)[:K]
        assert classes.tolist() == nearest
        omega = torch.tensor([COUNTS[k] / distance[k] for k in nearest])
        torch.testing.assert_close(weights, omega / omega.sum(), rtol=1e-5, atol=1e-6)


def test_a_feature_on_a_class_mean_learns_from_that_class_alone() -> None:
    means = torch.eye(3)
    support = nearest_richer(means[:1], torch.tensor([2]), means, torch.tensor([9, 8, 1]), torch.tensor([9, 8, 1]), 2)
    assert support.classes.tolist() == [[0, 1]]
    assert support.weights[0].tolist() == pytest.approx([1.0, 0.0])


def generation(
    covariance: str, beta: float, gamma: float = 0.0, everywhere: bool = False, copies: int = 1
) -> tuple[Generation, Tensor, Tensor]:
    """(how features come about, true means (N, D) and covariances (N, D, D) of what starts from each feature)."""
    features, labels = features_and_labels()
    found = statistics_of(features, labels, covariance=True)
    bank = FeatureBank(features, labels, found, covariance)
    betas = torch.where(TAIL, beta, 0.0)
    rare = TAIL[bank.labels]
    support = Support(torch.zeros(len(labels), K, dtype=torch.int64), torch.zeros(len(labels), K))
    near = nearest_richer(bank.features[rare], bank.labels[rare], bank.means, COUNTS, COUNTS, K)
    support.classes[rare], support.weights[rare] = near
    sources = torch.arange(len(labels)).repeat_interleave(copies)
    made = Generation(bank, bank.labels[sources], sources, TAIL, betas, support, gamma, everywhere)
    own_beta = betas[bank.labels]
    mean = calibrated_mean(bank.features, own_beta, support, bank.means)
    spread = calibrated_covariance(bank.labels, own_beta, support, found.covariance(), gamma)
    if everywhere:
        spread += gamma * (1 - torch.eye(DIM, dtype=torch.float64))
    mean[~rare], spread[~rare] = bank.means[bank.labels[~rare]], found.covariance()[bank.labels[~rare]]
    return made, mean, spread


COPIES = 20_000


def moments(covariance: str, beta: float, gamma: float, everywhere: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(sources, mean, covariance) of many draws from some features, on this process's share of them."""
    made, _, _ = generation(covariance, beta, gamma, everywhere, COPIES)
    chosen = torch.tensor([0, 40, 41, 50, 60, 76])  # features of every class, the bank being sorted
    wanted = (chosen[:, None] * COPIES + torch.arange(COPIES)).flatten()
    mine = torch.arange(len(wanted))[rank() :: world_size()]
    drawn = made.generate(wanted, mine, generator("test")).double()
    source = made.sources[wanted[mine]]
    means = torch.stack([drawn[source == row].mean(0) for row in chosen])
    return chosen, means, torch.stack([drawn[source == row].T.cov() for row in chosen])


@pytest.mark.parametrize("covariance", ["implicit", "full", "auto"])
@pytest.mark.parametrize(
    ("beta", "gamma", "everywhere"), [(0.6, 0.1, False), (0.0, 0.0, False), (1.0, 0.0, False), (0.3, 0.2, True)]
)
def test_many_draws_have_the_mean_and_covariance_of_the_equations(
    covariance: str, beta: float, gamma: float, everywhere: bool
) -> None:
    _, true_mean, true_spread = generation(covariance, beta, gamma, everywhere)
    chosen, mean, spread = moments(covariance, beta, gamma, everywhere)
    _check_moments(true_mean[chosen].double(), true_spread[chosen], mean, spread, COPIES)


def _check_moments(true_mean: Tensor, true_spread: Tensor, mean: Tensor, spread: Tensor, count: int) -> None:
    """Within five standard errors: sqrt(Σ_dd / n) of a mean, sqrt((Σ_dd Σ_ee + Σ_de²) / n) of a covariance."""
    variance = true_spread.diagonal(dim1=1, dim2=2)
    error = (variance / count).sqrt()
    assert ((mean - true_mean).abs() <= 5 * error + 1e-5).all()
    error = ((variance[:, :, None] * variance[:, None, :] + true_spread.square()) / count).sqrt()
    assert ((spread - true_spread).abs() <= 5 * error + 1e-5).all()


@pytest.mark.parametrize("covariance", ["implicit", "full"])
def test_two_processes_draw_what_one_draws(covariance: str, run_on_ranks: Any) -> None:
    _, true_mean, true_spread = generation(covariance, 0.6, 0.1)
    for chosen, mean, spread in run_on_ranks(moments, 2, covariance, 0.6, 0.1, False):
        _check_moments(true_mean[chosen].double(), true_spread[chosen], mean, spread, COPIES // 2)
    shares = run_on_ranks(drawn_share, 2, covariance)
    together = torch.stack(shares, dim=1).flatten(0, 1)
    torch.testing.assert_close(together, drawn_share(covariance), rtol=1e-5, atol=1e-5)


def drawn_share(covariance: str) -> Tensor:
    made, _, _ = generation(covariance, 0.6, 0.1, copies=2)
    wanted = torch.arange(len(made.labels)).flip(0)
    return made.generate(wanted, torch.arange(len(wanted))[rank() :: world_size()], generator("test"))


def test_without_confidence_draws_lie_around_the_sample_itself() -> None:
    """β = 0: mean x_i, and the covariance of the sample's own class; a class of one image repeats it."""
    _, mean, spread = generation("implicit", 0.0)
    features, labels = features_and_labels()
    bank = FeatureBank(features, labels, statistics_of(features, labels))
    rare = TAIL[bank.labels]
    assert torch.equal(mean[rare], bank.features[rare])
    own = torch.from_numpy(np.cov(bank.of_class(2).double().numpy().T))
    torch.testing.assert_close(spread[bank.labels == 2][0], own)
    made, _, _ = generation("implicit", 0.0)
    single = int((bank.labels == 1).nonzero())
    drawn = made.generate(torch.tensor([single]), torch.tensor([0]), generator("test"))
    assert torch.equal(drawn[0], bank.features[single])


def test_counts_balance_exactly_and_sources_take_turns() -> None:
    counts = balancing_counts(COUNTS)
    assert (counts + COUNTS).tolist() == [40] * 5
    labels = torch.repeat_interleave(counts)
    starts = COUNTS.cumsum(0) - COUNTS
    sources = draw_sources(labels, COUNTS, starts, generator("test", 0))
    owners = torch.repeat_interleave(COUNTS)
    assert torch.equal(owners[sources], labels)
    times = torch.bincount(sources, minlength=len(owners))
    for label, (have, made) in enumerate(zip(COUNTS.tolist(), counts.tolist(), strict=True)):
        own = sorted(times[owners == label].tolist())
        assert own == sorted([made // have] * (have - made % have) + [made // have + 1] * (made % have))
    other = draw_sources(labels, COUNTS, starts, generator("test", 1))
    assert not torch.equal(other, sources)


def test_beta_follows_what_a_class_gained_over_stage_1() -> None:
    """Above stage 1's score it grows, whether or not the score rises any more; below it shrinks."""
    tail = torch.tensor([True, True, True, True, False])
    found = Confidence(tail, epochs=8, start=0.6)
    found.set_reference(torch.tensor([0.2, 0.5, 0.3, torch.nan, 0.1]))
    score = torch.tensor([0.4, 0.4, 0.303, 0.4, 0.9])  # above, below, within the threshold, unknown, no tail class
    for epoch in range(8):
        found.update(epoch, score)
    assert found.beta[1].tolist() == pytest.approx([0.65, 0.55, 0.6, 0.6, 0.0])
    assert found.beta[4].tolist() == pytest.approx([0.8, 0.4, 0.6, 0.6, 0.0])
    assert found.beta[8].tolist() == pytest.approx([0.9, 0.2, 0.6, 0.6, 0.0])


def test_beta_against_the_last_epoch_moves_with_the_score_and_stays_in_bounds() -> None:
    tail = torch.tensor([True, True, True, True, False])
    found = Confidence(tail, epochs=20, start=0.6, reference="last_epoch")
    assert found.beta[0].tolist() == pytest.approx([0.6, 0.6, 0.6, 0.6, 0.0])
    for epoch in range(20):  # rising, falling, within the threshold, unknown
        change = torch.tensor([0.01, -0.01, 0.004, torch.nan, 0.5])
        found.update(epoch, 0.5 + epoch * change)
    assert found.beta[1].tolist() == pytest.approx([0.6, 0.6, 0.6, 0.6, 0.0])  # one score says nothing yet
    assert found.beta[2].tolist() == pytest.approx([0.65, 0.55, 0.6, 0.6, 0.0])
    assert found.beta[20].tolist() == pytest.approx([0.9, 0.0, 0.6, 0.6, 0.0])
    assert (found.beta >= 0).all()
    assert (found.beta <= 0.9 + 1e-6).all()


def test_a_fixed_beta_stays() -> None:
    found = Confidence(torch.tensor([True, False]), epochs=3, start=0.4, adaptive=False)
    for epoch in range(3):
        found.update(epoch, torch.tensor([epoch / 3, 0.0]))
    assert found.beta.tolist() == [pytest.approx([0.4, 0.0])] * 4
