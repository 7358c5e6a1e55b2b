"""KPS, FBL and GCL against their equations, at their limits, and their methods on a small run."""

import math

import pytest
import torch
from choices import build
from runs import composed
from torch import Tensor

from ltexp.config import to_config
from ltexp.config.build import build as build_node
from ltexp.distributed import rank, world_size
from ltexp.errors import ConfigError
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext
from ltexp.losses.feature_balanced import FeatureBalanced
from ltexp.losses.gaussian_clouded import GaussianClouded, cloud_sizes
from ltexp.losses.key_point import KeyPoint
from ltexp.outputs import ModelOutput
from ltexp.training.composition import check_composition
from ltexp.training.mixing import Mixture

CIFAR10 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]  # imbalance ratio 100
COUNTS = {
    "sorted": torch.tensor(CIFAR10),
    "unsorted": torch.tensor([83, 5000, 50, 645, 139, 2997, 387, 1077, 232, 1796]),
    "equal": torch.full((10,), 40),
}
METHODS = ["ldam", "cosface", "arcface", "kps", "kps_mixup", "mislas_kps", "fbl", "gcl"]


def batch(rows: int, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines, non-negative features of width 6 as after a ReLU, and targets."""
    draws = torch.Generator().manual_seed(rows)
    cosines = 1.8 * torch.rand(rows, num_classes, generator=draws) - 0.9
    features = torch.randn(rows, 6, generator=draws).abs()
    return cosines, features, torch.randint(num_classes, (rows,), generator=draws)


def row_loss(logits: list[Tensor], c: int) -> Tensor:
    """-log of the softmax by its definition."""
    return -(logits[c].exp() / sum(z.exp() for z in logits)).log()


def assert_close_to(
    loss: Loss, rows: list[Tensor], exact: tuple[Tensor, Tensor], data: tuple[Tensor, Tensor, Tensor]
) -> None:
    """The loss and its gradients (of logits and features) against the mean of `rows`, written in `exact`."""
    expected = torch.stack(rows).mean()
    expected.backward()
    logits, features = data[0].clone().requires_grad_(), data[1].clone().requires_grad_()
    value = loss(ModelOutput(logits=logits, features=features), data[2])
    value.backward()
    torch.testing.assert_close(value, expected.float(), rtol=1e-5, atol=1e-6)
    for one, other in zip((logits, features), exact, strict=True):
        if other.grad is None:
            assert one.grad is None
        else:
            torch.testing.assert_close(one.grad, other.grad.float(), rtol=2e-4, atol=1e-6)
    assert torch.equal(logits.detach(), data[0])


def exact_copies(data: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return data[0].double().requires_grad_(), data[1].double().requires_grad_()


# --- KPS ---------------------------------------------------------------------------------------------------------


def kps_lists(n: list[int], max_margin: float, base_count: float) -> tuple[list[float], list[float], list[float]]:
    """r, m and s / s_base, Eqs. 3.27-3.30 as the thesis prints them."""
    raw = [math.log(k * base_count / min(n)) for k in n]
    r = [value / min(raw) for value in raw]
    m_raw = [max(r) + 1 - value for value in r]
    return r, [value * max_margin / max(m_raw) for value in m_raw], m_raw


@pytest.mark.parametrize("order", COUNTS)
@pytest.mark.parametrize(
    ("settings", "epoch", "adjusted"),
    [({}, 119, False), ({}, 120, True), ({"gradient_adjustment": False}, 199, False), ({"start": 10}, 10, True)],
)
@pytest.mark.parametrize("free", [{}, {"max_margin": 0.2, "base_count": 20.0, "scale": 4.0, "max_scale": None}])
def test_key_point(settings: dict[str, object], epoch: int, adjusted: bool, free: dict[str, float], order: str) -> None:
    n = COUNTS[order].tolist()
    data = batch(25, len(n))
    exact = exact_copies(data)
    r, m, relative = kps_lists(n, free.get("max_margin", 0.5), free.get("base_count", 50))
    rows = []
    for row, c in zip(exact[0], data[2].tolist(), strict=True):
        s = free.get("scale", 15.0) * (relative[c] if adjusted else 1.0)
        rows.append(row_loss([s * (r[j] * row[j] - (m[j] if j == c else 0)) for j in range(len(n))], c))
    loss = build("loss", "key_point", class_counts=COUNTS[order], **settings, **free)
    loss.set_progress(epoch, 200)
    assert_close_to(loss, rows, exact, data)


def test_key_point_of_cifar10() -> None:
    """Values worked out apart from this code, in the order of the classes."""
    loss = KeyPoint(COUNTS["sorted"])
    ends = torch.tensor([0, 9])
    torch.testing.assert_close(loss.radii[ends], torch.tensor([2.1772, 1.0]), rtol=0, atol=6e-5)
    torch.testing.assert_close(loss.margins[ends], torch.tensor([0.2297, 0.5]), rtol=0, atol=6e-5)
    torch.testing.assert_close(loss.scales[ends], torch.tensor([15.0, 32.66]), rtol=0, atol=6e-3)
    order = COUNTS["sorted"].argsort()
    unsorted = KeyPoint(COUNTS["unsorted"])
    torch.testing.assert_close(unsorted.margins[COUNTS["unsorted"].argsort()], loss.margins[order])


def test_key_point_scales_are_bounded() -> None:
    extreme = torch.tensor([10**8, 1])
    assert KeyPoint(extreme).scales.tolist() == [15.0, 50.0]
    assert KeyPoint(extreme, max_scale=None).scales[1] > 80


@pytest.mark.parametrize("epoch", [0, 9])
def test_key_point_with_equal_counts_is_cosface(epoch: int) -> None:
    cosines, _, y = batch(16, 10)
    loss = build("loss", "key_point", class_counts=COUNTS["equal"])
    loss.set_progress(epoch, 10)
    expected = build("loss", "cosface", class_counts=COUNTS["equal"], margin=0.5, scale=15.0)
    torch.testing.assert_close(loss(ModelOutput(logits=cosines), y), expected(ModelOutput(logits=cosines), y))


# --- FBL ---------------------------------------------------------------------------------------------------------

TABLE_4_4 = {
    "linear_decrease": lambda x: 1 - x,
    "linear": lambda x: x,
    "sine": lambda x: math.sin(x * math.pi / 2),
    "cosine": lambda x: 1 - math.cos(x * math.pi / 2),
    "parabolic": lambda x: x**2,
}


@pytest.mark.parametrize("order", COUNTS)
@pytest.mark.parametrize("growth", TABLE_4_4)
@pytest.mark.parametrize("reach", [0.95, 1.0])
def test_feature_balanced(growth: str, reach: float, order: str) -> None:
    """Eq. 4.6 with λ over its maximum; the gradient of the features is that through their norm."""
    n = COUNTS[order].tolist()
    cosines, features, y = batch(25, len(n))
    data = (6 * cosines, features, y)
    exact = exact_copies(data)
    alpha = 60 * TABLE_4_4[growth](130 / (reach * 200))
    rarest = max(math.log(max(n) / k) for k in n) or 1.0
    rows = []
    for row, feature, c in zip(*exact, y.tolist(), strict=True):
        norm = feature.square().sum().sqrt()
        rows.append(row_loss([row[j] - alpha * math.log(max(n) / n[j]) / rarest / norm for j in range(len(n))], c))
    loss = build("loss", "feature_balanced", class_counts=COUNTS[order], growth=growth, reach=reach)
    loss.set_progress(130, 200)
    assert_close_to(loss, rows, exact, data)


@pytest.mark.parametrize(
    ("growth", "last"),
    [("linear_decrease", 0.005), ("linear", 0.995), ("sine", 0.99997), ("cosine", 0.99215), ("parabolic", 1.09698)],
)
def test_the_parabola_alone_reaches_its_height_before_the_end(growth: str, last: float) -> None:
    """Table 4.4 on CIFAR, in epoch 199 of 200: of the authors' curves only the parabola's T is 190."""
    loss = build_node(
        composed("method=fbl", "dataset=cifar10_lt", f"stage1.loss.growth={growth}")["stage1"]["loss"],
        class_counts=COUNTS["sorted"],
    )
    assert loss.alpha(199, 200) / 60 == pytest.approx(last, abs=6e-6)


@pytest.mark.parametrize(("epoch", "curve"), [(0, 0.0), (100, 0.27701), (190, 1.0), (199, 1.09698)])
def test_feature_balanced_curriculum(epoch: int, curve: float) -> None:
    loss = FeatureBalanced(COUNTS["sorted"])
    assert loss.alpha(epoch, 200) / 60 == pytest.approx(curve, abs=6e-6)


def test_feature_balanced_decrease_ends_at_zero() -> None:
    loss = FeatureBalanced(COUNTS["sorted"], growth="linear_decrease", reach=0.95)
    assert loss.alpha(199, 200) == 0


@pytest.mark.parametrize(("order", "epoch"), [("unsorted", 0), ("equal", 8)])
def test_feature_balanced_is_cross_entropy_at_first_and_with_equal_counts(order: str, epoch: int) -> None:
    z, features, y = batch(16, 10)
    loss = build("loss", "feature_balanced", class_counts=COUNTS[order])
    loss.set_progress(epoch, 10)
    expected = build("loss", "cross_entropy", class_counts=COUNTS[order])(ModelOutput(logits=z), y)
    torch.testing.assert_close(loss(ModelOutput(logits=z, features=features), y), expected)


def test_feature_balanced_grows_the_norm_of_rare_classes() -> None:
    """A step down the gradient lengthens the feature of the rarest class and shortens that of the most frequent."""
    features = torch.ones(2, 4, requires_grad=True)
    loss = FeatureBalanced(COUNTS["sorted"])
    loss.set_progress(9, 10)
    loss(ModelOutput(logits=torch.zeros(2, 10), features=features), torch.tensor([0, 9])).backward()
    assert features.grad is not None
    frequent, rare = features.grad.sum(dim=1)
    assert rare < 0 < frequent


def test_feature_balanced_takes_a_feature_of_zero() -> None:
    features = torch.zeros(2, 4, requires_grad=True)
    loss = FeatureBalanced(COUNTS["sorted"])
    loss.set_progress(9, 10)
    value = loss(ModelOutput(logits=torch.zeros(2, 10), features=features), torch.tensor([0, 9]))
    value.backward()
    assert value.isfinite()
    assert features.grad is not None
    assert features.grad.isfinite().all()


# --- GCL ---------------------------------------------------------------------------------------------------------

TABLE_5_4 = {
    "cosine": lambda k, largest: math.cos(k / largest * math.pi / 2),
    "cube_root": lambda k, largest: largest ** (1 / 3) - k ** (1 / 3),
    "fourth_root": lambda k, largest: largest**0.25 - k**0.25,
    "logarithm": lambda k, largest: math.log(largest) - math.log(k),
}


def table_5_4(cloud: str, n: list[int]) -> list[float]:
    raw = [TABLE_5_4[cloud](k, max(n)) for k in n]
    return [value / max(raw) for value in raw] if len(set(n)) > 1 else [0.0] * len(n)


@pytest.mark.parametrize("order", COUNTS)
@pytest.mark.parametrize("cloud", TABLE_5_4)
def test_cloud_sizes(cloud: str, order: str) -> None:
    expected = torch.tensor(table_5_4(cloud, COUNTS[order].tolist()))
    torch.testing.assert_close(cloud_sizes(COUNTS[order], cloud), expected)  # type: ignore[arg-type]


def test_cloud_sizes_of_cifar10() -> None:
    expected = [0, 0.1111, 0.2223, 0.3334, 0.4447, 0.5556, 0.6667, 0.7780, 0.8900, 1]
    torch.testing.assert_close(cloud_sizes(COUNTS["sorted"], "logarithm"), torch.tensor(expected), rtol=0, atol=6e-5)


@pytest.mark.parametrize("order", COUNTS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"cloud": "cosine", "amplitude": 1.0}, {"margin": 0.1, "focal": 1.0, "scale": 20.0}, {"focal": 2.5}],
)
def test_gaussian_clouded(settings: dict[str, float], order: str) -> None:
    """Eqs. 5.11 and 5.12 with the noise that the loss draws, and the margin and focal factor of stage 2."""
    n = COUNTS[order].tolist()
    data = batch(25, len(n))
    exact = exact_copies(data)
    loss = build("loss", "gaussian_clouded", class_counts=COUNTS[order], **settings)
    loss.set_progress(3, 10, step=7)
    noise = loss.noise(data[0], BatchContext(epoch=3, max_epochs=10, step=7)).double()
    loss.set_progress(3, 10, step=7)
    delta = table_5_4(settings.get("cloud", "logarithm"), n)
    k, m, s = settings.get("amplitude", 0.5), settings.get("margin", 0.0), settings.get("scale", 30.0)
    rows = []
    for row, eps, c in zip(exact[0], noise, data[2].tolist(), strict=True):
        z = [s * (row[j] - k * eps[j] * delta[j] - (m if j == c else 0)) for j in range(len(n))]
        plain = row_loss(z, c)
        rows.append(plain * (1 - math.exp(-plain.item())) ** settings.get("focal", 0.0))
    assert_close_to(loss, rows, exact, data)


def test_gaussian_clouded_noise_is_a_clamped_half_normal() -> None:
    """Against the half-normal of scale 1/3: mean, second moment, the share at the bound 1, no correlation."""
    loss = GaussianClouded(COUNTS["sorted"])
    noise = loss.noise(torch.empty(100_000, 10), BatchContext()).double()
    assert noise.min() >= 0
    assert noise.max() == 1
    assert noise.mean().item() == pytest.approx(math.sqrt(2 / math.pi) / 3, rel=0.005)
    assert noise.square().mean().item() == pytest.approx(1 / 9, rel=0.01)
    assert (noise == 1).double().mean().item() == pytest.approx(0.0027, rel=0.1)
    for bound, share in ((1 / 3, 0.6827), (2 / 3, 0.9545)):
        assert (noise < bound).double().mean().item() == pytest.approx(share, abs=0.002)
    between = torch.corrcoef(noise.T) - torch.eye(10)
    along = torch.corrcoef(torch.stack([noise[:-1].flatten(), noise[1:].flatten()]))[0, 1]
    assert between.abs().max() < 0.02
    assert abs(along) < 0.01


@pytest.mark.parametrize("order", ["unsorted", "equal"])
def test_gaussian_clouded_without_cloud_and_margin_is_the_cosine_softmax(order: str) -> None:
    cosines, _, y = batch(16, 10)
    amplitude = {"amplitude": 0.0} if order == "unsorted" else {}
    loss = build("loss", "gaussian_clouded", class_counts=COUNTS[order], **amplitude)
    expected = build("loss", "cross_entropy", class_counts=COUNTS[order], scale=30.0)
    torch.testing.assert_close(loss(ModelOutput(logits=cosines), y), expected(ModelOutput(logits=cosines), y))


def test_gaussian_clouded_with_a_margin_alone_is_cosface() -> None:
    cosines, _, y = batch(16, 10)
    loss = build("loss", "gaussian_clouded", class_counts=COUNTS["sorted"], amplitude=0.0, margin=0.2)
    expected = build("loss", "cosface", class_counts=COUNTS["sorted"], margin=0.2)
    torch.testing.assert_close(loss(ModelOutput(logits=cosines), y), expected(ModelOutput(logits=cosines), y))


def drawn(seed: int, epoch: int, step: int, calls: int) -> Tensor:
    context = BatchContext(seed, epoch, 10, step, call=calls - 1)
    return GaussianClouded(COUNTS["sorted"]).noise(torch.empty(4, 10), context)


def test_gaussian_clouded_draws_are_keyed() -> None:
    """Equal keys draw the same, whatever was drawn before; a change of any of them draws apart."""
    first = drawn(0, 2, 3, 1)
    torch.manual_seed(1)
    assert torch.equal(drawn(0, 2, 3, 1), first)
    for other in ((1, 2, 3, 1), (0, 1, 3, 1), (0, 2, 4, 1), (0, 2, 3, 2)):
        assert not torch.equal(drawn(*other), first)


def test_gaussian_clouded_draws_anew_for_the_partner_labels() -> None:
    cosines, _, y = batch(8, 10)
    loss = GaussianClouded(COUNTS["sorted"])
    mixed = Mixture(y, y, 0.5).objective(loss, ModelOutput(logits=cosines), BatchContext(max_epochs=10, step=5))
    loss.set_progress(0, 10, 5)
    one, other = (loss(ModelOutput(logits=cosines), y) for _ in range(2))
    assert one != other
    torch.testing.assert_close(mixed, 0.5 * one + 0.5 * other)


def rows_of_noise(total: int) -> Tensor:
    """This process's rows of the noise of a global batch of `total` rows."""
    rows = len(range(rank(), total, world_size()))
    loss = GaussianClouded(COUNTS["sorted"])
    return loss.noise(torch.empty(max(rows, 1), 10), BatchContext(share=rows * world_size() / total))[:rows]


@pytest.mark.parametrize("total", [6, 5, 1])
def test_gaussian_clouded_noise_of_two_processes_is_that_of_one(run_on_ranks, total: int) -> None:
    parts = run_on_ranks(rows_of_noise, 2, total)
    whole = rows_of_noise(total)
    assert torch.equal(parts[0], whole[0::2])
    assert torch.equal(parts[1], whole[1::2])


# --- all of them -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 9])
@pytest.mark.parametrize("name", ["key_point", "feature_balanced", "gaussian_clouded"])
def test_half_precision_and_many_classes_stay_finite(name: str, epoch: int) -> None:
    n = torch.linspace(1000, 2, 8142).long()  # iNaturalist 2018: 2 to 1,000 images a class
    cosines, features, y = batch(8, 8142)
    half = (cosines if name != "feature_balanced" else 100 * cosines).bfloat16().requires_grad_()
    loss = build("loss", name, class_counts=n)
    values = []
    for z in (half, half.detach().float()):
        loss.set_progress(epoch, 10)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            values.append(loss(ModelOutput(logits=z, features=features.bfloat16()), y))
    values[0].backward()
    assert values[0].dtype == torch.float32
    assert values[0].isfinite()
    assert half.grad is not None
    assert half.grad.isfinite().all()
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize(
    ("loss", "settings", "message"),
    [
        (KeyPoint, {"max_margin": 2.5}, "invalid max_margin=2.5: expected a number of 0 or more and below 2"),
        (KeyPoint, {"base_count": 1.0}, "invalid base_count=1.0: expected a number above 1"),
        (
            KeyPoint,
            {"start": 1.5},
            "invalid start=1.5: expected a fraction of the stage, 0 or more and below 1, or a whole epoch",
        ),
        (KeyPoint, {"max_scale": 10.0}, "invalid max_scale=10.0: expected null, or a number of at least scale=15.0"),
        (FeatureBalanced, {"strength": -1.0}, "invalid strength=-1.0: expected a number of 0 or more"),
        (
            FeatureBalanced,
            {"growth": "parabola"},
            r"invalid growth=parabola: expected parabolic \| linear \| sine \| cosine \| linear_decrease;",
        ),
        (FeatureBalanced, {"reach": 0.0}, "invalid reach=0.0: expected a fraction of the stage above 0, at most 1"),
        (GaussianClouded, {"amplitude": -0.5}, "invalid amplitude=-0.5: expected a number of 0 or more"),
        (
            GaussianClouded,
            {"cloud": "log"},
            r"invalid cloud=log: expected logarithm \| fourth_root \| cube_root \| cosine; did you mean",
        ),
        (GaussianClouded, {"margin": -0.1}, "invalid margin=-0.1: expected a number of 0 or more and below 2"),
        (GaussianClouded, {"focal": -1.0}, "invalid focal=-1.0: expected a number of 0 or more"),
        (GaussianClouded, {"scale": -1.0}, "invalid scale=-1.0: expected a number above 0"),
    ],
)
def test_settings_out_of_range(loss: type[Loss], settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loss(class_counts=COUNTS["sorted"], **settings)


@pytest.mark.parametrize("loss", [KeyPoint, FeatureBalanced, GaussianClouded])
def test_refuses_a_class_without_images(loss: type[Loss]) -> None:
    with pytest.raises(ConfigError, match="no training images for class 1"):
        loss(class_counts=torch.tensor([5, 0, 3]))


def test_feature_balanced_needs_features_and_epochs() -> None:
    loss = FeatureBalanced(COUNTS["sorted"])
    with pytest.raises(ConfigError, match=r"reads more than logits: .*features="):
        loss(ModelOutput(logits=torch.zeros(2, 10)), torch.tensor([0, 1]))
    with pytest.raises(ConfigError, match="there are 0"):
        loss.set_progress(0, 0)


# --- methods -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["digits_lt", "cifar10_lt", "cifar100_lt"])
@pytest.mark.parametrize("method", METHODS)
def test_method_composes(method: str, dataset: str) -> None:
    check_composition(to_config(composed(f"method={method}", f"dataset={dataset}", small=False)))


@pytest.mark.parametrize("dataset", ["cifar10_lt", "cifar100_lt"])
def test_settings_of_the_papers(dataset: str) -> None:
    """What each system differs in from the CIFAR recipe: batch size, decay, and GCL's second stage."""
    kps, fbl, gcl = (composed(f"method={name}", f"dataset={dataset}", small=False) for name in ("kps", "fbl", "gcl"))
    for config, decay in ((kps, 0.1), (fbl, 0.01), (gcl, 0.1)):
        stage = config["stage1"]
        assert (stage["epochs"], stage["batch_size"], stage["schedule"]["decay"]) == (200, 64, decay)
        assert stage["optimizer"]["lr"] == 0.1
    stage = gcl["stage2"]
    assert (stage["epochs"], stage["optimizer"]["lr"], stage["batch_norm"]) == (30, 0.002, "frozen")
    assert (stage["trainable"]["backbone"], stage["trainable"]["classifier"]) == (False, True)
    assert (stage["init"]["backbone"], stage["init"]["classifier"]) == ("stage1", "stage1")
    assert (stage["loss"]["margin"], stage["loss"]["scale"], stage["loss"]["focal"]) == (0.1, 20.0, 1.0)
    assert stage["sampler"]["_target_"].endswith("ClassBasedEffectiveNumber")
    assert gcl["stage1"]["loss"]["margin"] == gcl["stage1"]["loss"]["focal"] == 0


def test_ablations_are_one_key() -> None:
    assert (
        composed("method=kps", "stage1.loss.gradient_adjustment=false")["stage1"]["loss"]["gradient_adjustment"]
        is False
    )
    assert composed("method=fbl", "stage1.loss.growth=sine")["stage1"]["loss"]["growth"] == "sine"
    gcl = composed("method=gcl", "stage1.loss.cloud=cosine")
    for stage in ("stage1", "stage2"):  # Table 5.4 is about both
        assert gcl[stage]["loss"]["cloud"] == "cosine"
    assert composed("method=gcl", "stage2=null")["stage2"] is None
    other = composed("method=gcl", "loss@stage1.loss=cosface")
    assert other["stage2"]["loss"]["cloud"] == "logarithm"
