"""BBN, TDE, DisAlign and Remix against numbers of their authors' code and against each other's limits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from choices import build
from runs import assert_equal_weights, composed, run_here, tiny, weights
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.config import to_config
from ltexp.config.identity import config_hash
from ltexp.data.loader import Batch
from ltexp.errors import CheckpointError, ConfigError
from ltexp.evaluation.record import read_record
from ltexp.losses.context import BatchContext, StreamBatch
from ltexp.models.branches import run_last_blocks
from ltexp.models.cifar_resnet import CifarResNet
from ltexp.models.classifier import Cosine, Linear
from ltexp.models.model import Model
from ltexp.models.torchvision_resnet import TorchvisionResNet
from ltexp.outputs import ModelOutput
from ltexp.training.composition import check_composition

# the inputs of the numbers here, which the public codes gave for them
ROWS, COLUMNS = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
FIRST, SECOND = 1 + torch.sin(3 * ROWS + 5 * COLUMNS), 1 + torch.cos(3 * ROWS + 5 * COLUMNS)  # features (3, 4)
BIAS = torch.tensor([0.0, 0.1, 0.2])
LABELS, OTHERS = torch.tensor([0, 1, 2]), torch.tensor([2, 2, 1])
COUNTS = torch.tensor([100, 50, 10])
UNSORTED = torch.tensor([10, 100, 50])
IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def weight(width: int) -> Tensor:
    """W (3, width)."""
    classes, places = torch.meshgrid(torch.arange(3.0), torch.arange(float(width)), indexing="ij")
    return torch.sin(2 * classes + 7 * places) / 2


def linear(width: int) -> Linear:
    classifier = Linear(width, 3)
    with torch.no_grad():
        classifier.weight.copy_(weight(width))
        assert classifier.bias is not None
        classifier.bias.copy_(BIAS)
    return classifier


class Flat(nn.Module):
    """A last block that gives fixed maps whose means are `features`."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = nn.Parameter(features)

    def forward(self, trunk: Tensor) -> Tensor:
        return self.features[:, :, None, None].expand(-1, -1, 2, 2)


# BBN


def bbn_loss(epoch: int, counts: Tensor = COUNTS) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """(loss, logits, gradients of features and head) of the two batches through blocks and head, of 200 epochs."""
    blocks = nn.ModuleList([Flat(FIRST), Flat(SECOND)])
    head, loss = linear(8), build("loss", "cumulative", class_counts=counts)
    trunk = torch.zeros(3, 4, 2, 2)
    own, other = (ModelOutput(head(run_last_blocks(trunk, blocks, branch)[0])) for branch in (0, 1))
    context = BatchContext(epoch=epoch, max_epochs=200, streams={"reversed": StreamBatch(other, OTHERS)})
    value = loss(own, LABELS, context)
    mixed = loss.weight_in(epoch, 200) * own.logits + (1 - loss.weight_in(epoch, 200)) * other.logits
    value.backward()
    return value.detach(), mixed.detach(), [blocks[0].features.grad, blocks[1].features.grad, head.weight.grad]


@pytest.mark.parametrize("counts", [COUNTS, UNSORTED])
def test_cumulative_learning_has_the_numbers_of_the_authors_code(counts: Tensor) -> None:
    """In the 101st epoch of 200; the gradients are those of their own form, 2 [λ f_u; (1 - λ) f_r] under one head."""
    loss, logits, gradients = bbn_loss(100, counts)
    assert loss.item() == pytest.approx(1.492869, rel=1e-6)
    torch.testing.assert_close(logits[0], torch.tensor([1.29842, -1.01073, -0.17397]), atol=1e-5, rtol=0)
    f, h, w = (part.clone().requires_grad_() for part in (FIRST, SECOND, weight(8)))
    z = 2 * torch.cat([0.75 * f, 0.25 * h], dim=1) @ w.T + BIAS
    (0.75 * F.cross_entropy(z, LABELS) + 0.25 * F.cross_entropy(z, OTHERS)).backward()
    torch.testing.assert_close(gradients, [f.grad, h.grad, w.grad])


def test_at_test_both_branches_count_by_half() -> None:
    blocks = nn.ModuleList([Flat(FIRST), Flat(SECOND)])
    features, _ = run_last_blocks(torch.zeros(3, 4, 2, 2), blocks)
    torch.testing.assert_close(features, torch.cat([FIRST, SECOND], dim=1))
    found = linear(8)(features)[0]
    torch.testing.assert_close(found, torch.tensor([0.73744, -1.5199, 0.81079]), atol=1e-5, rtol=0)


def test_in_its_first_epoch_bbn_is_the_uniform_branch() -> None:
    """λ = 1: the loss is cross-entropy of the first branch alone, and nothing of the second moves."""
    loss, _, (_, of_second, of_head) = bbn_loss(0)
    plain = F.cross_entropy(2 * FIRST @ weight(8)[:, :4].T + BIAS, LABELS)
    torch.testing.assert_close(loss, plain)
    assert not of_second.any()
    assert not of_head[:, 4:].any()


def test_the_weight_moves_as_the_authors_code_has_it() -> None:
    loss = build("loss", "cumulative", class_counts=COUNTS)
    found = [loss.weight_in(epoch - 1, 200) for epoch in (1, 51, 101, 121, 161, 200)]
    assert found == pytest.approx([1, 0.9375, 0.75, 0.64, 0.36, 0.009975])
    for epochs, ends in ((180, 200), (90, 100)):  # on iNaturalist 2018
        loss = build("loss", "cumulative", class_counts=COUNTS, length=ends / epochs)
        assert loss.weight_in(60, epochs) == pytest.approx(1 - (60 / ends) ** 2)


@pytest.mark.parametrize(
    ("network", "each", "maps"),
    [
        (lambda: CifarResNet(8, branches=2), 64, [16, 32, 128]),
        (lambda: CifarResNet(20, branches=2), 64, [16, 32, 128]),
        (lambda: TorchvisionResNet("resnet18", branches=2), 512, [64, 128, 256, 1024]),
        (lambda: TorchvisionResNet("resnet10", branches=2), 512, [64, 128, 256, 1024]),
    ],
)
def test_branches_share_all_but_the_last_block(network: Any, each: int, maps: list[int]) -> None:
    """Each branch alone is twice its half of the features of both; the other's batch norms do not see the batch."""
    net = network().eval()
    both, found = net.forward_maps(IMAGES)
    assert [level.shape[1] for level in found] == net.map_channels == maps
    assert both.shape == (6, net.feature_dim) == (6, 2 * each)
    torch.testing.assert_close(net(IMAGES), both)
    assert not torch.allclose(both[:, :each], both[:, each:])  # each starts in its own way
    for branch, own in enumerate((slice(0, each), slice(each, None))):
        features, levels = net.forward_branch(IMAGES, branch)
        torch.testing.assert_close(features[:, own], 2 * both[:, own])
        assert torch.count_nonzero(features[:, own]) == torch.count_nonzero(features)
        torch.testing.assert_close(levels[-1][:, own], found[-1][:, own])
    net.train().forward_branch(IMAGES, 1)
    seen = [block.bn1.num_batches_tracked.item() for block in net.last_blocks]
    assert (seen, net.bn1.num_batches_tracked.item()) == ([0, 1], 1)


def test_the_networks_are_as_large_as_the_authors() -> None:
    """ResNet-32: 5, 5 and 4 shared blocks and one a branch; ResNet-50: two shared bottlenecks of stage 4."""
    cifar = CifarResNet(32, branches=2)
    assert sum(parameter.numel() for parameter in cifar.parameters()) == 537_488
    assert [len(stage) for stage in (cifar.layer1, cifar.layer2, cifar.layer3, cifar.last_blocks)] == [5, 5, 4, 2]
    with torch.device("meta"):
        large = TorchvisionResNet("resnet50", branches=2)
    assert (len(large.layer4), large.feature_dim) == (2, 4096)


def test_branches_start_from_the_weights_of_a_file(tmp_path: Path) -> None:
    """Both from its last block, or both at random; the trunk from its trunk, and frozen where that is asked for."""
    plain = TorchvisionResNet("resnet18")
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    net = TorchvisionResNet("resnet18", weights=str(tmp_path / "plain.pt"), frozen_trunk=True, branches=2)
    for block in net.last_blocks:
        assert all(torch.equal(a, b) for a, b in zip(block.parameters(), plain.layer4[1].parameters(), strict=True))
    torch.testing.assert_close(net.eval()(IMAGES), plain.eval()(IMAGES).repeat(1, 2))
    model = Model(net, Linear(1024, 3))
    model.set_trainable()
    learning = {name.split(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learning == {"last_blocks"}
    fresh = TorchvisionResNet("resnet18", weights=str(tmp_path / "plain.pt"), fresh_last_block=True, branches=2)
    starts = [block.conv1.weight for block in (*fresh.last_blocks, plain.layer4[1])]
    assert not any(torch.equal(starts[a], starts[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_each_batch_takes_its_own_branch_in_a_run(tmp_path: Path) -> None:
    """With one epoch λ is 1: what the second block has learned is weight decay alone, and its statistics have moved."""
    run_here(tmp_path / "run", *tiny("bbn", epochs=1), "stage1.optimizer.weight_decay=0")
    run_here(tmp_path / "still", *tiny("bbn", epochs=1), "stage1.optimizer.weight_decay=0", "stage1.optimizer.lr=1e-30")
    run, still = (weights(tmp_path / name, "stage1") for name in ("run", "still"))
    for name, value in run.items():
        if "last_blocks.1" in name and "running" not in name:
            torch.testing.assert_close(value, still[name], rtol=0, atol=1e-12)
    for block in (0, 1):  # 48 images in batches of 16: each block has seen three of them
        assert run[f"backbone.last_blocks.{block}.bn1.num_batches_tracked"].item() == 3
    assert run["backbone.bn1.num_batches_tracked"].item() == 6
    moved = run["backbone.last_blocks.0.conv2.weight"] - still["backbone.last_blocks.0.conv2.weight"]
    assert moved.abs().max() > 1e-4


# TDE


def tde(**settings: Any) -> Any:
    classifier = build("classifier", "multi_head_normalized", feature_dim=4, num_classes=3, **settings)
    with torch.no_grad():
        classifier.weight.copy_(weight(4))
    return classifier


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_tde_has_the_numbers_of_the_authors_code(precision: torch.dtype) -> None:
    """Logits in training, and at test after two steps have moved the mean; the same under autocast."""
    classifier = tde(alpha=1.0)
    with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
        trained = classifier(FIRST)
        classifier.after_step(classifier)
        classifier(SECOND)
        classifier.after_step(classifier)
        torch.testing.assert_close(trained[0], torch.tensor([6.59941, -0.48543, -8.02035]), atol=1e-5, rtol=0)
        mean = torch.tensor([2.1819, 1.65666, 1.48004, 1.90509])
        torch.testing.assert_close(classifier.mean, mean, atol=1e-5, rtol=0)
        classifier.eval()
        tested = torch.tensor([-3.9284, 0.02517, 3.06758])
        torch.testing.assert_close(classifier(FIRST)[0], tested, atol=1e-5, rtol=0)
        classifier.alpha = 1.5
        tested = torch.tensor([-9.1923, 0.28047, 8.61155])
        torch.testing.assert_close(classifier(FIRST)[0], tested, atol=1e-5, rtol=0)


def test_tdes_gradient_is_that_of_its_formula() -> None:
    features, own = FIRST.clone().requires_grad_(), tde()
    F.cross_entropy(own(features), LABELS).backward()
    f, w = FIRST.clone().requires_grad_(), weight(4).requires_grad_()
    logits = sum(
        8
        * (f[:, half] / f[:, half].norm(dim=1, keepdim=True))
        @ (w[:, half] / (w[:, half].norm(dim=1, keepdim=True) + 1 / 32)).T
        for half in (slice(0, 2), slice(2, 4))
    )
    F.cross_entropy(logits, LABELS).backward()
    torch.testing.assert_close((features.grad, own.weight.grad), (f.grad, w.grad))


def test_tde_at_alpha_0_is_its_normalised_classifier_and_a_zero_mean_takes_out_nothing() -> None:
    classifier = tde(alpha=0.0)
    trained = classifier(FIRST)
    classifier.after_step(classifier)
    assert classifier.mean.any()
    torch.testing.assert_close(classifier.eval()(FIRST), trained)
    torch.testing.assert_close(tde(alpha=3.0).eval()(FIRST), trained)


def test_the_logits_are_the_linear_form_of_features_in_parts_of_norm_1() -> None:
    """Also of parts of unequal width: of 4 places three parts are 2, 2 and none."""
    for heads, parts in ((1, [4]), (2, [2, 2]), (3, [2, 2]), (4, [1, 1, 1, 1])):
        classifier = tde(heads=heads)
        classifier(SECOND)
        classifier.after_step(classifier)
        unit = torch.cat([F.normalize(part, dim=1) for part in FIRST.split(parts, dim=1)], dim=1)
        torch.testing.assert_close(classifier.eval()(FIRST), unit @ classifier.linear_form()[0].T)


def test_a_frozen_classifier_keeps_its_mean_and_a_continued_one_takes_it_over() -> None:
    classifier = tde()
    classifier(FIRST)
    classifier.after_step(classifier)
    other = tde(alpha=1.0)
    other.start_from(classifier)
    assert torch.equal(other.mean, classifier.mean)
    other.requires_grad_(False)(SECOND)
    other.after_step(other)
    assert torch.equal(other.mean, classifier.mean)
    with pytest.raises(CheckpointError, match="has 2 heads and this one 1"):
        tde(heads=1).start_from(classifier)
    with pytest.raises(ConfigError, match="a MultiHeadNormalized classifier cannot continue a Cosine one"):
        tde().start_from(Cosine(4, 3))


def test_accumulating_does_not_change_the_mean(tmp_path: Path) -> None:
    frozen = tiny("tde", "batch_norm=frozen", epochs=1)
    run_here(tmp_path / "whole", *frozen)
    run_here(tmp_path / "parts", *frozen, "trainer.accumulate=3")
    whole, parts = (weights(tmp_path / name, "stage1")["classifier.mean"] for name in ("whole", "parts"))
    assert whole.any()
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_a_finished_run_is_evaluated_at_another_alpha(tmp_path: Path) -> None:
    """Its stage is taken as it is: the same weights and mean, other predictions."""
    words = tiny("tde", epochs=1)
    run_here(tmp_path / "run", *words)
    run_here(tmp_path / "plain", *words, f"stage1.checkpoint={tmp_path / 'run'}", "stage1.classifier.alpha=0")
    assert_equal_weights(weights(tmp_path / "run", "stage1"), weights(tmp_path / "plain", "stage1"))
    run, plain = (read_record(tmp_path / name)["metrics"] for name in ("run", "plain"))
    assert run["ece"] != plain["ece"]


# DisAlign


def aligned(**settings: Any) -> Any:
    classifier = build("classifier", "distribution_alignment", feature_dim=4, num_classes=3, **settings)
    with torch.no_grad():
        classifier.confidence.bias.zero_()
    classifier.start_from(linear(4))
    return classifier


def test_disalign_has_the_numbers_of_the_authors_code() -> None:
    """z, the logits at the start, the weights at ρ = 1.2, the loss; in any order of the classes."""
    z = linear(4)(FIRST)
    torch.testing.assert_close(z[0], torch.tensor([0.9297, -0.20078, -0.47937]), atol=1e-5, rtol=0)
    logits = aligned()(FIRST)
    torch.testing.assert_close(logits[0], torch.tensor([1.46711, -0.31684, -0.75646]), atol=1e-5, rtol=0)
    loss = build("loss", "weighted_cross_entropy", class_counts=COUNTS, power=1.2)
    weights_of = torch.tensor([0.15669, 0.35997, 2.48334])
    torch.testing.assert_close(loss.class_weights, weights_of, atol=1e-5, rtol=0)
    assert loss(ModelOutput(logits), LABELS).item() == pytest.approx(2.386574, rel=1e-6)
    order = torch.tensor([2, 0, 1])
    shuffled = build("loss", "weighted_cross_entropy", class_counts=COUNTS[order], power=1.2)
    moved = shuffled(ModelOutput(logits[:, order]), order.argsort()[LABELS])
    assert moved.item() == pytest.approx(2.386574, rel=1e-6)


def test_the_weights_on_cifar_10_are_those_of_the_authors_code() -> None:
    counts = torch.tensor([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])
    found = build("loss", "weighted_cross_entropy", class_counts=counts, power=1.2).class_weights
    expected = [0.01827, 0.03377, 0.06244, 0.11533, 0.21338, 0.39388, 0.72784, 1.34587, 2.49877, 4.59045]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_disalign_starts_one_and_sigma_times_as_large_and_its_other_form_at_z() -> None:
    z, sigma = linear(4)(FIRST), torch.sigmoid(0.1 * FIRST.sum(1, keepdim=True))
    torch.testing.assert_close(aligned()(FIRST), (1 + sigma) * z)
    torch.testing.assert_close(aligned(form="segmentation")(FIRST), z)


@pytest.mark.parametrize("form", ["classification", "segmentation"])
def test_disalign_learns_scale_shift_and_confidence_by_its_formula(form: str) -> None:
    own = aligned(form=form)
    z = linear(4)(FIRST).detach()
    s, t = torch.tensor([0.5, 2.0, 1.5]).requires_grad_(), torch.tensor([0.3, -0.2, 0.1]).requires_grad_()
    u, v = torch.full((4,), 0.1, requires_grad=True), torch.zeros(1, requires_grad=True)
    with torch.no_grad():
        own.scale.copy_(s)
        own.shift.copy_(t)
    sigma = torch.sigmoid(FIRST @ u + v)[:, None]
    logits = (1 + sigma * s) * z + sigma * t if form == "classification" else sigma * (s * z + t) + (1 - sigma) * z
    F.cross_entropy(logits, LABELS).backward()
    F.cross_entropy(own(FIRST), LABELS).backward()
    found = (own.scale.grad, own.shift.grad, own.confidence.weight.grad[0], own.confidence.bias.grad)
    torch.testing.assert_close(found, (s.grad, t.grad, u.grad, v.grad))
    assert {name.split(".")[0] for name, _ in own.named_parameters()} == {"scale", "shift", "confidence"}


def test_disaligns_second_stage_leaves_the_first_as_it_is(tmp_path: Path) -> None:
    run_here(tmp_path / "run", *tiny("disalign"))
    first, second = (weights(tmp_path / "run", stage) for stage in ("stage1", "stage2"))
    for name, value in first.items():
        assert torch.equal(second[name], value), name
    assert not torch.equal(second["classifier.scale"], torch.ones(4))


# Remix


@pytest.mark.parametrize(
    ("own", "partner", "mixed", "expected"),
    [
        (300, 100, 0.4, 0),
        (300, 100, 0.5, 0.5),
        (299, 100, 0.4, 0.4),
        (100, 300, 0.6, 1),
        (100, 300, 0.5, 0.5),
        (100, 299, 0.6, 0.6),
    ],
)
def test_remix_gives_the_rarer_class_the_label(own: int, partner: int, mixed: float, expected: float) -> None:
    """By hand of the rule: three times as large, and less than half of the image."""
    mixing = build("mixing", "remix", class_counts=torch.tensor([own, partner]))
    found = mixing.label_weight(torch.tensor([own]), torch.tensor([partner]), mixed)
    assert found.tolist() == pytest.approx([expected])


def batch() -> Batch:
    labels = torch.tensor([0, 1, 2, 2, 0, 1])
    return Batch(inputs=IMAGES, labels=labels, index=torch.arange(6), epoch=0, step=0, share=1.0, size=6)


def test_remix_with_an_infinite_kappa_is_mixup() -> None:
    """Images always, and label weights where no class is that much larger."""
    plain = build("mixing", "mixup", class_counts=UNSORTED)(batch(), seed=3)
    same = build("mixing", "remix", class_counts=UNSORTED, kappa=float("inf"))(batch(), seed=3)
    other = build("mixing", "remix", class_counts=UNSORTED)(batch(), seed=3)
    for mixed in (same, other):
        assert torch.equal(mixed.inputs, plain.inputs)
        assert torch.equal(mixed.targets.partner_labels, plain.targets.partner_labels)
    torch.testing.assert_close(same.targets.weight, torch.full((6,), plain.targets.weight))
    assert not torch.equal(other.targets.weight, same.targets.weight)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_remix_drw_divides_by_the_batch(precision: torch.dtype) -> None:
    """(1/B) Σ λ_i w_yi ce(z, y_i) + (1 - λ_i) w_yj ce(z, y_j) with effective-number weights, and its gradient."""
    from ltexp.training.objective import Objective

    plain = to_config(composed("method=remix_drw")).stage1
    objective = Objective(plain, UNSORTED)
    mixed = build("mixing", "remix", class_counts=UNSORTED)(batch(), seed=3).targets
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).to(precision).requires_grad_()
    found = objective.of_mixture(ModelOutput(z.float()), mixed, BatchContext(epoch=90, max_epochs=100))
    by_class = (1 - 0.9999) / (1 - 0.9999 ** UNSORTED.double())
    by_class = (3 * by_class / by_class.sum()).float()
    other = z.detach().clone().requires_grad_()
    sides = ((mixed.labels, mixed.weight), (mixed.partner_labels, 1 - mixed.weight))
    each = [share * by_class[y] * F.cross_entropy(other.float(), y, reduction="none") for y, share in sides]
    expected = sum(each).sum() / 6
    found.backward()
    expected.backward()
    torch.testing.assert_close((found, z.grad), (expected, other.grad))
    early = objective.of_mixture(ModelOutput(z.float()), mixed, BatchContext(epoch=79, max_epochs=100))
    each = [share * F.cross_entropy(z.float(), y, reduction="none") for y, share in sides]
    torch.testing.assert_close(early, sum(each).mean())


# what the methods are composed of


def rates(*overrides: str, epochs: int = 200) -> list[float]:
    """The learning rate of each epoch of stage 1."""
    from ltexp.training.schedules import build_schedule

    stage = to_config(composed(*overrides, small=False)).stage1
    assert stage.epochs == epochs
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=stage.optimizer["lr"])
    scheduler, *_ = build_schedule(stage.schedule, optimizer, epochs, steps_per_epoch=1)
    return [stage.optimizer["lr"] * scheduler.factor(epoch) for epoch in range(epochs)]  # type: ignore[attr-defined]


def test_bbn_and_tde_warm_up_and_drop_where_the_authors_code_does() -> None:
    for method, base in (("bbn", 0.1), ("tde", 0.2)):
        found = rates(f"method={method}", "dataset=cifar10_lt")
        first = [base * factor for factor in (0.46667, 0.6, 0.73333, 0.86667, 1.0)]
        assert found[:5] == pytest.approx(first, rel=1e-4)
        assert found[118:120] == pytest.approx([base, 0.01 * base])
        assert found[158:160] == pytest.approx([0.01 * base, 0.0001 * base])
    large = rates("method=bbn", "dataset=inat18", epochs=180)
    assert (large[0], large[118:120], large[158:160]) == (
        0.05,
        pytest.approx([0.05, 0.005]),
        pytest.approx([0.005, 0.0005]),
    )
    short = rates("method=bbn", "dataset=inat18", "stage1.epochs=90", epochs=90)
    assert short[59:61] == pytest.approx([0.05, 0.005])
    assert short[79:81] == pytest.approx([0.005, 0.0005])


def test_remix_at_300_epochs_drops_where_its_code_does() -> None:
    words = ("method=remix_drw", "dataset=cifar10_lt", "paper=remix")
    found = rates(*words, epochs=300)
    assert (found[149:151], found[249:251]) == (pytest.approx([0.1, 0.01]), pytest.approx([0.01, 0.001]))
    stage = to_config(composed(*words, small=False)).stage1
    reweighting = build("reweighting", "deferred", start=stage.reweighting["start"])
    assert [reweighting.holds(epoch, 300) for epoch in (249, 250)] == [False, True]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "method=bbn dataset=cifar100_lt",
            {"optimizer.nesterov": True, "batch_size": 128, "classifier.init": "default"},
        ),
        ("method=bbn dataset=inat18", {"optimizer.weight_decay": 1e-4, "batch_size": 128, "loss.length": 1.1111111111}),
        ("method=tde dataset=cifar10_lt", {"classifier.alpha": 1.0, "batch_size": 256, "optimizer.weight_decay": 5e-4}),
        ("method=tde dataset=cifar100_lt", {"classifier.alpha": 1.5, "optimizer.nesterov": False}),
        ("method=tde dataset=imagenet_lt", {"classifier.alpha": 3.0, "batch_size": 512, "epochs": 90}),
        (
            "method=disalign dataset=imagenet_lt",
            {"batch_size": 256, "optimizer.lr": 0.1, "optimizer.weight_decay": 5e-4},
        ),
        ("method=remix dataset=imagenet_lt", {"mixing.alpha": 1.0}),
    ],
)
def test_settings_are_the_authors(words: str, expected: dict[str, Any]) -> None:
    stage = composed(*words.split(), small=False)["stage1"]
    for key, value in expected.items():
        found: Any = stage
        for name in key.split("."):
            found = found[name]
        assert found == pytest.approx(value) if isinstance(value, float) else found == value, key


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("method=bbn backbone.branches=1", "stage1: its loss is for a network of 2 branches: set backbone.branches=2"),
        ("method=bbn backbone.branches=3", "stage1: its loss is for a network of 2 branches: set backbone.branches=2"),
        ("method=bbn ~stage1.streams.reversed", "unknown stream that its objective reads 'stage1.streams.reversed'"),
        ("method=bbn ~stage1.streams.reversed.sampler", "stage1.streams.reversed has no sampler: choose"),
        (
            "method=bbn stage1.streams.reversed.batch_size=32",
            "invalid stage1.streams.reversed.batch_size=32: expected null: its loss pairs rows with the stage's own",
        ),
        ("method=bbn loss@stage1.loss=cross_entropy", "stage1: nothing reads its stream reversed"),
        ("method=bbn classifier@stage1.classifier=cosine", "stage1: CumulativeLearning needs a linear classifier"),
        ("method=bbn reweighting@stage1.reweighting=deferred", "stage1: CumulativeLearning cannot take class weights"),
        ("method=bbn stage1.loss.length=0.5", "invalid stage1.loss.length=0.5: expected a number of 1 or more"),
        (
            "method=bbn loss@stage1.loss=cross_entropy +loss@stage1.terms.more.loss=cumulative",
            "stage1: term more is of branches, as the stage's own loss alone can be",
        ),
        ("method=tde backbone.experts=2", "stage1: a backbone of 2 experts needs heads for as many"),
        ("method=tde loss@stage1.loss=ldam", "stage1: LDAM needs a cosine classifier and this one is normalized"),
        ("method=tde stage1.classifier.heads=0", "invalid stage1.classifier.heads=0: expected a whole number of 1 or"),
        ("method=tde stage1.classifier.alpha=-1", "invalid stage1.classifier.alpha=-1: expected a number of 0 or more"),
        ("method=tde stage1.classifier.momentum=1", "invalid stage1.classifier.momentum=1: expected"),
        ("method=disalign stage2.classifier.form=both", "invalid stage2.classifier.form=both: expected classification"),
        ("method=disalign stage2.init.classifier=fresh", "stage2: its classifier continues that of another stage"),
        ("method=disalign stage2.classifier.bias=false", "the previous stage's classifier has a bias and this Distrib"),
        (
            "method=disalign classifier@stage1.classifier=cosine",
            "a DistributionAlignment classifier cannot continue a Cosine one",
        ),
        ("method=remix stage1.mixing.kappa=0.5", "invalid stage1.mixing.kappa=0.5: expected a number of 1 or more"),
        ("method=remix stage1.mixing.tau=2", "invalid stage1.mixing.tau=2: expected a number from 0 to 1"),
        (
            "method=remix_drw stage1.reweighting.divide_by=batches",
            "invalid stage1.reweighting.divide_by=batches: expec",
        ),
        (
            "method=bbn stage1.schedule.warmup_start=2",
            "invalid stage1.schedule.warmup_start=2: expected a number from 0",
        ),
    ],
)
def test_what_cannot_work_is_one_line_before_data_is_read(words: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_composition(to_config(composed(*words.split())))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_older_records_keep_their_hashes() -> None:
    """Their configs have not the keys that came with these methods."""
    plain = composed("method=ldam_drw", small=False)
    older = composed("method=ldam_drw", small=False)
    del older["backbone"]["branches"]
    del older["stage1"]["schedule"]["warmup_start"]
    del older["stage1"]["reweighting"]["divide_by"]
    assert config_hash(to_config(older)) == config_hash(to_config(plain))
    for key in ("backbone.branches=2", "stage1.schedule.warmup_start=0.5", "stage1.reweighting.divide_by=batch"):
        other = composed("method=ldam_drw", key, small=False)
        assert config_hash(to_config(other)) != config_hash(to_config(plain))


@pytest.mark.parametrize("branches", [0, 1.5, True])
def test_a_number_of_branches_that_is_none_is_refused(branches: Any) -> None:
    with pytest.raises(ConfigError, match=r"^invalid branches=.*: expected a whole number of 1 or more$"):
        CifarResNet(8, branches=branches)
    with pytest.raises(ConfigError, match=r"^invalid branches=2: expected 1 for a network of experts$"):
        TorchvisionResNet("resnet10", experts=2, branches=2)


def test_a_joined_network_is_one_feature_for_any_classifier(tmp_path: Path) -> None:
    """The authors' own CIFAR network of TDE."""
    run_here(tmp_path / "run", *tiny("tde", epochs=1), "backbone.branches=2")
    assert weights(tmp_path / "run", "stage1")["classifier.weight"].shape == (4, 128)
    assert read_record(tmp_path / "run")["status"] == "finished"
