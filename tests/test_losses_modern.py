"""Losses, steps, mixings and classifiers since 2021: against numbers that the authors' codes give for fixed inputs.

All inputs are built from I_ij = 3 i + 5 j, class counts (40, 5, 100, 10) and the labels (0, 2, 1, 2).
"""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from runs import composed
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config import to_config
from ltexp.data.loader import Batch
from ltexp.errors import ConfigError
from ltexp.losses.base import Loss
from ltexp.losses.bessel import log_bessel_over_power
from ltexp.losses.class_balanced_bce import ClassBalancedBce, _LogLikelihoods
from ltexp.losses.context import BatchContext
from ltexp.losses.cross_entropy import CrossEntropy
from ltexp.losses.global_local import CumulativeHeads, ViewAgreement
from ltexp.losses.label_smoothing import LabelSmoothing
from ltexp.losses.nested_collaborative import NestedCollaborative
from ltexp.losses.parametric_contrastive import GeneralParametricContrastive, ParametricContrastive
from ltexp.losses.probabilistic_contrastive import ProbabilisticContrastive
from ltexp.losses.skill_diverse import SkillDiverse, inverse_prior
from ltexp.losses.supervised_contrastive import BalancedContrastive, SupervisedContrastive
from ltexp.models.cifar_resnet import CifarResNet
from ltexp.models.classifier import Linear
from ltexp.models.max_norm import MaxNorm
from ltexp.models.model import Model
from ltexp.models.module import Wiring
from ltexp.models.projection import BalancedHead
from ltexp.outputs import ModelOutput
from ltexp.training.composition import check_composition
from ltexp.training.cutmix import Box, ContextRichMinorityOversampling, CutMix, MixupAndCutMix, box_around
from ltexp.training.mixing import Mixture
from ltexp.training.steps import ImbalancedSharpnessAware, SharpnessAware

COUNTS, LABELS = torch.tensor([40, 5, 100, 10]), torch.tensor([0, 2, 1, 2])


def grid(rows: int, columns: int) -> Tensor:
    return (3 * torch.arange(rows)[:, None] + 5 * torch.arange(columns)).double()


def unit(angles: Tensor) -> Tensor:
    return F.normalize(angles, dim=1).float().requires_grad_()


def logits(shift: float, rows: int = 4) -> Tensor:
    return (2 * torch.sin(torch.arange(rows)[:, None] + 2.0 * torch.arange(4) + shift)).requires_grad_()


def queries() -> tuple[Tensor, Tensor]:
    return unit(grid(4, 3).sin()), unit((grid(4, 3) + 1).sin())


def with_queue(loss: ParametricContrastive) -> ParametricContrastive:
    loss.queue = F.normalize((grid(6, 3) + 2).sin(), dim=1).float()
    loss.queue_labels = torch.tensor([0, 1, 2, 3, 0, 2])
    return loss


def close(found: Tensor, expected: Any, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=tolerance, atol=2e-6)


def test_paco() -> None:
    (q, k), z = queries(), logits(0)
    loss = with_queue(ParametricContrastive(COUNTS, alpha=0.05, temperature=0.2, queue=6, width=3))
    value = loss(ModelOutput(logits=z, extra={"projections": q[None], "keys": k}), LABELS)
    close(value, 6.513312)
    by_q, by_z = torch.autograd.grad(value, [q, z])
    close(by_q[0], [-0.345606, -1.813034, -0.682972])
    close(by_z[0], [-0.217017, 0.000289, 0.000206, 0.000054])
    sharper = with_queue(ParametricContrastive(COUNTS, alpha=0.01, temperature=0.05, queue=6, width=3))
    close(sharper(ModelOutput(logits=z, extra={"projections": q[None], "keys": k}), LABELS), 20.392801)


def test_pacos_queue_is_a_ring_of_the_last_keys() -> None:
    loss, (q, k) = ParametricContrastive(COUNTS, queue=6, width=3), queries()
    output = ModelOutput(logits=logits(0), extra={"projections": q[None], "keys": k})
    empty = loss(output, LABELS)  # the part that is not filled does not count
    assert empty.isfinite()
    assert loss.queue_labels.tolist() == [0, 2, 1, 2, -1, -1]
    loss(output, LABELS)
    assert loss.queue_labels.tolist() == [1, 2, 1, 2, 0, 2]
    assert torch.equal(loss.queue[4:], k[:2].detach())
    none = ParametricContrastive(COUNTS, queue=0, width=3)
    torch.testing.assert_close(none(output, LABELS), empty)


def test_paco_without_contrast_is_balanced_softmax() -> None:
    q, k = queries()
    loss = ParametricContrastive(COUNTS, alpha=0.0, gamma=0.0, queue=0, width=3)
    z = logits(0)
    expected = F.cross_entropy(z + (COUNTS / COUNTS.sum()).log(), LABELS)
    torch.testing.assert_close(loss(ModelOutput(logits=z, extra={"projections": q[None], "keys": k}), LABELS), expected)


@pytest.mark.parametrize(("smoothing", "expected"), [(0.0, 6.653357), (0.1, 6.670309)])
def test_gpaco(smoothing: float, expected: float) -> None:
    (q, k), z = queries(), logits(0, rows=8)
    loss = with_queue(GeneralParametricContrastive(COUNTS, temperature=0.2, queue=6, width=3, smoothing=smoothing))
    extra = {"projections": torch.stack([q, k]), "view_logits": z.view(2, 4, 4)}
    value = loss(ModelOutput(logits=z[:4], extra=extra), LABELS)
    close(value, expected)
    if not smoothing:
        close(torch.autograd.grad(value, k)[0][0], [0.481212, -0.185200, -0.586280])


@pytest.mark.parametrize(("temperature", "expected"), [(0.1, 5.642471), (0.07, 8.268821)])
def test_bcl(temperature: float, expected: float) -> None:
    (q, k), prototypes = queries(), unit(grid(4, 3).cos())
    loss = BalancedContrastive(COUNTS, temperature, first_view=0)
    extra = {"projections": torch.stack([q, k]), "prototypes": prototypes}
    value = loss(ModelOutput(logits=logits(0), extra=extra), LABELS)
    close(value, expected)
    if temperature == 0.1:
        by_q, by_prototypes = torch.autograd.grad(value, [q, prototypes])
        close(by_q[0], [-1.712980, -2.114775, 0.513216])
        close(by_prototypes[3], [-0.831617, 0.665875, 1.209384])


def test_supervised_contrastive_by_its_equation() -> None:
    q, k = queries()
    rows, labels, total = torch.cat([q, k]).detach(), LABELS.repeat(2), torch.zeros(())
    for i in range(8):
        others = [j for j in range(8) if j != i]
        denominator = sum((rows[i] @ rows[j] / 0.1).exp() for j in others)
        positive = [j for j in others if labels[j] == labels[i]]
        total += -sum(((rows[i] @ rows[j] / 0.1).exp() / denominator).log() for j in positive) / len(positive) / 8
    extra = {"projections": torch.stack([q, k])}
    close(SupervisedContrastive(COUNTS)(ModelOutput(logits=logits(0), extra=extra), LABELS), total, 1e-5)


def test_the_bessel_function_where_it_has_a_closed_form() -> None:
    """I_{1/2}(k) = sqrt(2 / (pi k)) sinh k, and I_{3/2} / I_{1/2} = coth k - 1 / k."""
    k = torch.logspace(-1, 2.5, 40, dtype=torch.float64, requires_grad=True)
    found = log_bessel_over_power(0.5, k)
    expected = 0.5 * math.log(2 / math.pi) + k.sinh().log() - k.log()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=3e-9)
    (slope,) = torch.autograd.grad(found.sum(), k)
    torch.testing.assert_close(slope, 1 / k.tanh() - 1 / k, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("order", [15.0, 63.0, 511.0])
def test_bessel_functions_of_neighbouring_orders_obey_their_recurrence(order: float) -> None:
    k = torch.logspace(0, 5, 40, dtype=torch.float64)
    at = [log_bessel_over_power(p, k) + p * k.log() for p in (order - 1, order, order + 1)]
    shift = at[0]
    torch.testing.assert_close(
        (at[0] - shift).exp() - (at[2] - shift).exp(), 2 * order / k * (at[1] - shift).exp(), rtol=1e-6, atol=1e-9
    )


def test_proco_estimates_concentrations_and_contrasts_with_expectations() -> None:
    loss = ProbabilisticContrastive(COUNTS, 0.1, width=4, first_view=0)
    loss.used.mean, loss.used.amount = F.normalize(grid(4, 4).cos(), dim=1) / 2, torch.tensor([3.0, 0, 5, 2]).double()
    rows = F.normalize(grid(4, 4).sin(), dim=1)
    loss(ModelOutput(logits=logits(0), extra={"projections": rows[None]}), LABELS)
    close(loss.used.concentration()[0], [2.016863, 1e5, 2.688675, 2.666667], 1e-6)
    # in three dimensions: log E exp(f . x / T) over samples x of the class's distribution
    three = ProbabilisticContrastive(COUNTS, 0.5, width=3)
    three.used.mean = torch.tensor([[0.0, 0.0, 0.6]]).double().repeat(4, 1)
    kappa = float(three.used.concentration()[0][0])
    cosine = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    density = (kappa * cosine).exp()
    feature = torch.tensor([[0.0, 0.0, 1.0]])
    expected = ((density * (cosine / 0.5).exp()).mean() / density.mean()).log()
    torch.testing.assert_close(three.contrasts(feature)[0, 0], expected, rtol=1e-4, atol=0)


def test_procos_estimate_of_an_epoch_is_used_in_the_next() -> None:
    loss, (q, k) = ProbabilisticContrastive(COUNTS, width=3), queries()
    loss(ModelOutput(logits=logits(0), extra={"projections": torch.stack([q, k])}), LABELS)
    seen = loss.fresh.mean[:3]
    close(seen[2], ((k[1] + k[3]) / 2).detach().double(), 1e-6)
    loss.end_epoch()
    assert torch.equal(loss.used.mean[:3], seen)
    assert not loss.fresh.amount.any()
    close(torch.linalg.vector_norm(loss.fresh.mean, dim=1), [0.9] * 4)


def experts() -> Tensor:
    return torch.stack([logits(0), logits(1), logits(2)]).detach().requires_grad_()


@pytest.mark.parametrize(("number", "expected"), [(2, 12.052387), (3, 12.979821), (4, 15.014618)])
def test_ncl(number: int, expected: float) -> None:
    z = experts()
    value = NestedCollaborative(COUNTS, hardest=number / 4)(ModelOutput(logits=z.mean(0), expert_logits=z), LABELS)
    close(value, expected)
    if number == 2:
        close(torch.autograd.grad(value, z)[0][0, 0], [-0.620118, 0.560657, 0.069378, -0.019351])


def test_ncl_over_all_classes_is_the_same_whatever_becomes_of_the_others() -> None:
    z = experts()
    both = [NestedCollaborative(COUNTS, hardest=1.0, others=others) for others in ("zero", "exclude")]
    one, other = (loss(ModelOutput(logits=z.mean(0), expert_logits=z), LABELS) for loss in both)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("tau", "third"), [(1.0, 2.264948), (2.0, 3.059112)])
def test_sade(tau: float, third: float) -> None:
    z = experts()
    value = SkillDiverse(COUNTS, tau, scale=1.0)(ModelOutput(logits=z.mean(0), expert_logits=z), LABELS)
    close(value, 2.803427 + 2.140526 + third)
    close(inverse_prior(COUNTS), [0.064516, 0.645161, 0.032258, 0.258065], 1e-5)


def test_sade_is_for_three_experts() -> None:
    z = experts()[:2]
    with pytest.raises(ConfigError, match="skill_diverse is for 3 experts, and the network has 2"):
        SkillDiverse(COUNTS)(ModelOutput(logits=z.mean(0), expert_logits=z), LABELS)


def test_the_gradients_of_class_balanced_bce_are_those_of_its_value() -> None:
    """Of both orders, against differences; a class of probability 1 that is not the label's moves nothing."""
    logits, target = torch.arange(12.0, dtype=torch.float64).sin().view(3, 4).requires_grad_(), torch.tensor([0, 3, 1])

    def summed(values: Tensor) -> Tensor:
        return cast(Tensor, _LogLikelihoods.apply(values.log_softmax(1), target))

    assert torch.autograd.gradcheck(summed, (logits,))
    assert torch.autograd.gradgradcheck(summed, (logits,))
    sure = torch.tensor([[0.0, 200.0]], requires_grad=True)
    loss = ClassBalancedBce(torch.tensor([5, 5]))(sure, torch.tensor([0]))
    loss.backward()
    # -log p_0 = 200 and -log 1e-7, halved; only the first has a slope
    torch.testing.assert_close(loss.item(), (200 + 16.118096) / 2, rtol=1e-6, atol=0)
    torch.testing.assert_close(sure.grad, torch.tensor([[-0.5, 0.5]]))


@pytest.mark.parametrize(
    ("loss", "expected"), [(LabelSmoothing(COUNTS, 0.98), 2.080380), (ClassBalancedBce(COUNTS), 0.938830)]
)
def test_over_smoothing_and_weight_balancings_loss(loss: Loss, expected: float) -> None:
    close(loss(ModelOutput(logits=logits(0)), LABELS), expected)


def test_rows_that_are_longer_than_the_radius_are_scaled_to_it() -> None:
    first, second = Linear(3, 4), MaxNorm(3, 4)
    with torch.no_grad():
        first.weight.copy_(grid(4, 3).sin())
    second.start_from(first)
    close(second.radius, 1.079973)
    with torch.no_grad():
        second.weight.copy_(grid(4, 3).cos())
    second.after_step(nn.Identity())
    close(second.weight[0].detach(), [0.808451, 0.229327, -0.678348])


class Regression(nn.Module):
    """Softmax regression of x = cos(I) with W = 0.1 sin(I), as a stage's model."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter((0.1 * grid(4, 3).sin()).float())


def stepped(step: SharpnessAware, lr: float, weight_decay: float) -> Tensor:
    """The first row of W after one step."""
    model, inputs = Regression(), grid(4, 3).cos().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay)
    batch = cast(Batch, SimpleNamespace(labels=LABELS))

    def closure(*, sample_weights: Tensor | None = None, again: bool = False) -> Tensor:
        losses = F.cross_entropy(inputs @ model.weight.T, LABELS, reduction="none")
        loss = (losses if sample_weights is None else losses * sample_weights).mean()
        loss.backward()
        return loss.detach()

    stage = SimpleNamespace(model=model, objective=SimpleNamespace(loss=CrossEntropy(COUNTS)))
    step(cast(Any, stage), cast(Any, optimizer), batch, closure)
    return model.weight[0].detach()


def test_sharpness_aware_steps() -> None:
    close(stepped(SharpnessAware(0.8), 0.1, 2e-4), [0.033303, -0.089704, -0.084194], 1e-4)
    close(stepped(ImbalancedSharpnessAware(0.05, 20), 0.01, 1e-3), [0.001744, -0.095358, -0.055844], 1e-3)


def test_a_step_for_the_tail_alone_takes_no_terms_of_streams() -> None:
    """Each of its passes would add them."""
    stream = ("+stream@stage1.streams.other=class_balanced", "+loss@stage1.terms.more.loss=cross_entropy")
    words = ("method=imbsam", *stream, "+stage1.terms.more.stream=other")
    with pytest.raises(
        ConfigError, match=r"stage1: its step takes .* and term more is of a stream: leave it out, or set"
    ):
        check_composition(to_config(composed(*words)))
    check_composition(to_config(composed(*words, "step@stage1.step=sam")))


def test_boxes_are_cut_off_at_the_border() -> None:
    """Those of the authors' code for λ = 0.449125 and 0.868409; the label's share is the area's."""
    box = box_around(19, 16, 32, 32, math.sqrt(1 - 0.449125))
    assert box == Box(8, 30, 5, 27)
    assert 1 - box.share(32, 32) == pytest.approx(0.527344, abs=1e-6)
    corner = box_around(0, 1, 32, 32, math.sqrt(1 - 0.868409))
    assert 1 - corner.share(32, 32) == pytest.approx(0.970703, abs=1e-6)


def small_batch(size: int = 8, **streams: Batch) -> Batch:
    images = torch.arange(size * 3 * 4 * 6).float().view(size, 3, 4, 6)
    labels = torch.arange(size)
    return Batch(images, labels, labels, 1.0, size, 5, 0, None, streams)


def test_cutmix_takes_a_box_of_the_partner_and_its_share_of_the_label() -> None:
    batch, mixing = small_batch(), CutMix(COUNTS, probability=1.0)
    shares = set()
    for seed in range(40):
        mixed = mixing(batch, seed)
        from_partner = (mixed.inputs == batch.inputs.roll(-4, 0)) & (mixed.inputs != batch.inputs)
        assert bool((from_partner | (mixed.inputs == batch.inputs)).all())
        share = from_partner[0, 0].double().mean().item()
        assert mixed.targets.weight == pytest.approx(1 - share)
        assert torch.equal(mixed.targets.partner_labels, batch.labels.roll(-4))
        shares.add(round(share, 4))
    assert len(shares) > 5
    plain = [CutMix(COUNTS, probability=0.5)(batch, seed).targets.weight == 1.0 for seed in range(200)]
    assert 60 < sum(plain) < 140  # a box may be empty, too


def test_cmos_patches_are_of_the_stream_and_not_in_the_first_and_last_epochs() -> None:
    minority = small_batch()._replace(inputs=torch.full((8, 3, 4, 6), -1.0), labels=torch.full((8,), 3))
    mixing = ContextRichMinorityOversampling(COUNTS, probability=1.0, plain_first=4, plain_last=3, epochs=10)
    batch, mixes = small_batch(minority=minority), []
    for epoch in range(10):
        weights = []
        for seed in range(10):
            mixed = mixing(batch._replace(epoch=epoch), seed)
            share = (mixed.inputs[0, 0] == -1).double().mean().item()
            assert mixed.targets.weight == pytest.approx(1 - share)
            weights.append(share > 0)
            assert not share or set(mixed.targets.partner_labels.tolist()) == {3}
        mixes.append(any(weights))
    assert mixes == [False] * 4 + [True] * 3 + [False] * 3


def test_glmc() -> None:
    """Both heads and the agreement of the views, mixed with other labels: parts and sum of the authors' code."""
    heads, agreement = CumulativeHeads(COUNTS, exponent=1.2), ViewAgreement(COUNTS)
    close(heads.weights, [0.213484, 2.588647, 0.071095, 1.126774])
    plain, balanced = torch.stack([logits(0), logits(2)]), torch.stack([logits(1), logits(3)])
    z1, p1, z2, p2 = ((grid(4, 3) + shift).sin().float().requires_grad_() for shift in range(4))
    extra = {"projections": torch.stack([z1, z2]), "predictions": torch.stack([p1, p2])}
    output = ModelOutput(logits=balanced[0], extra=extra | {"view_logits": plain, "balanced_logits": balanced})
    targets = Mixture(LABELS, torch.tensor([1, 3, 3, 0]), 0.3)

    def classified(epoch: int) -> Tensor:
        return targets.objective(heads, output, BatchContext(epoch=epoch, max_epochs=200))

    close(classified(0), 4.037204)  # the plain head alone
    close(classified(200), 5.653254)  # as it would be after the last epoch: the balanced one alone
    agreed = agreement(output, LABELS)
    close(agreed, 0.307098)
    close(classified(120) + 4 * agreed, 5.847374)
    by_z, by_p = torch.autograd.grad(agreed, [z1, p1], allow_unused=True)
    assert by_z is None or not bool(by_z.any())
    expected = -F.cosine_similarity(p1, z2.detach(), dim=1).mean() - F.cosine_similarity(p2, z1.detach(), dim=1).mean()
    torch.testing.assert_close(by_p, torch.autograd.grad(expected, p1)[0])


def test_glmcs_views_are_mixed_each_in_its_own_way() -> None:
    draws = torch.Generator().manual_seed(0)
    views, others = torch.rand(2, 2, 8, 3, 32, 32, generator=draws).unbind(0)
    partner = small_batch()._replace(views=others, inputs=others[0], labels=torch.arange(8).flip(0))
    batch = small_batch(partner=partner)._replace(views=views, inputs=views[0])
    mixing, weights, at_the_border = MixupAndCutMix(COUNTS), [], 0
    for seed in range(60):
        mixed = mixing(batch, seed)
        weight = mixed.targets.weight
        torch.testing.assert_close(mixed.inputs[0], weight * views[0] + (1 - weight) * others[0])
        pasted = (mixed.inputs[1] == others[1]).all(1)
        assert torch.equal(mixed.inputs[1], torch.where(pasted[:, None], others[1], views[1]))
        assert bool((pasted == pasted[0]).all())  # one box for the batch
        rows, columns = (int(pasted[0].any(axis).sum()) for axis in (1, 0))
        side = 2 * (math.ceil(32 * math.sqrt(1 - weight)) // 2)  # of the authors' box, where no border cuts it
        assert max(rows, columns) <= side
        assert int(pasted[0].sum()) == rows * columns
        at_the_border += min(rows, columns) < side
        assert torch.equal(mixed.targets.partner_labels, partner.labels)
        weights.append(weight)
    assert 0 < at_the_border < 60
    assert min(weights) < 0.1  # uniform over [0, 1]
    assert max(weights) > 0.9
    assert sum(weights) / 60 == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("augmentation@stage1.augmentation=crop_flip",),
            r"takes 2 versions .* set augmentation@stage1.augmentation=two_",
        ),
        (
            ("+augmentation@stage1.streams.partner.augmentation=none",),
            r"takes 2 versions .* set augmentation@stage1.streams.partner.augmentation=two_views",
        ),
        (("stage1.streams.partner.batch_size=7",), r"invalid stage1.streams.partner.batch_size=7: expected null"),
        (("mixing@stage1.mixing=mixup",), r"its mixing mixes one view of each image"),
        (("trainer.accumulate=2",), r"set trainer.accumulate=1"),
    ],
)
def test_what_glmc_cannot_work_with_is_refused(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        check_composition(to_config(composed("method=glmc", *words)))


def test_glmcs_published_settings() -> None:
    found = {}
    for dataset, ratio in (("cifar100_lt", 100), ("cifar100_lt", 50), ("cifar10_lt", 100), ("cifar10_lt", 10)):
        stage = composed("method=glmc", f"dataset={dataset}", f"dataset.imbalance_ratio={ratio}", small=False)["stage1"]
        sampler, weight = stage["streams"]["partner"]["sampler"], stage["terms"]["agreement"]["weight"]
        found[dataset, ratio] = (stage["loss"]["exponent"], round(1 - sampler["exponent"], 9), weight)
        assert (stage["epochs"], stage["batch_size"], stage["optimizer"]["lr"]) == (200, 64, 0.01)
        assert (stage["optimizer"]["weight_decay"], stage["schedule"]["warmup_epochs"]) == (5e-3, 0)
    assert found == {
        ("cifar100_lt", 100): (1.2, 0, 4),
        ("cifar100_lt", 50): (1.2, 0.2, 6),
        ("cifar10_lt", 100): (1.2, 0, 1),
        ("cifar10_lt", 10): (1, 0.2, 2),
    }


@pytest.mark.parametrize(
    ("method", "dataset", "expected"),
    [
        ("paco", "imagenet_lt", (400, 128, 0.02, 5e-4, 10)),
        ("paco", "inat18", (400, 128, 0.02, 1e-4, 10)),
        ("glmc", "imagenet_lt", (135, 120, 0.1, 2e-4, 10)),
        ("glmc", "inat18", (120, 128, 0.1, 1e-4, 10)),
    ],
)
def test_published_settings_on_large_sets(method: str, dataset: str, expected: tuple[float, ...]) -> None:
    plain = composed(f"method={method}", f"dataset={dataset}", small=False)
    stage, kinds = plain["stage1"], []
    optimizer = stage["optimizer"]
    found = (stage["epochs"], stage["batch_size"], optimizer["lr"], optimizer["weight_decay"])
    assert (*found, stage["schedule"]["warmup_epochs"]) == expected
    for view in stage["augmentation"]["augmentations"].values():
        kinds.append(view["_target_"].rpartition(".")[2])
        assert view["jitter"] == 0.4
    assert kinds == ["ResizedRandAugment", "ResizedContrastive" if method == "paco" else "ResizedRandAugment"]
    if method == "glmc":
        weights = stage["loss"]["exponent"], stage["streams"]["partner"]["sampler"]["exponent"]
        assert (*weights, stage["terms"]["agreement"]["weight"]) == (1.0, 0.8, 10.0)
    else:
        assert (stage["loss"]["alpha"], stage["loss"]["temperature"], stage["loss"]["queue"]) == (0.05, 0.2, 8192)


def test_the_balanced_head_answers_and_the_plain_one_is_read_beside_it() -> None:
    node: dict[str, Any] = {"reads": ("view_features",), "gives": ("balanced_logits", "logits"), "keep": True}
    head = BalancedHead(64, 4)
    model = Model(CifarResNet(8), Linear(64, 4), {"balanced": head}, {"balanced": Wiring(**node)}).eval()
    images = torch.randn(3, 3, 8, 8)
    features = model.backbone(images)
    torch.testing.assert_close(model(images).logits, head.linear(features))
    both = model(torch.cat([images, images + 1]), {"view_logits", "balanced_logits"}, views=2)
    torch.testing.assert_close(both.extra["balanced_logits"][1], head.linear(model.backbone(images + 1)))
    torch.testing.assert_close(both.extra["view_logits"][0], model.classifier(features))
    torch.testing.assert_close(both.logits, both.extra["balanced_logits"][0])
