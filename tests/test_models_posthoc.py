"""Classifiers without training: tau-normalisation, nearest class mean, post-hoc logit adjustment."""

import json
from pathlib import Path

import pytest
import torch
from runs import run_here
from torch import Tensor

from ltexp.analysis.restored import restore
from ltexp.errors import CheckpointError, ConfigError, DataError
from ltexp.models import posthoc
from ltexp.models.classifier import Cosine, Linear
from ltexp.models.posthoc import LogitAdjusted, NearestClassMean, TauNormalized
from ltexp.randomness import generator

D, C = 6, 4


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator("draw", *shape))


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0, 2.0])
def test_tau_normalisation_divides_each_row_by_its_norm_to_the_tau_and_drops_the_bias(tau: float) -> None:
    source, head = Linear(D, C), TauNormalized(D, C, tau=tau)
    head.start_from(source)
    features = draw(3, D)
    expected = torch.empty(3, C)
    for i in range(3):
        for c in range(C):
            row = source.weight[c].detach()
            expected[i, c] = (features[i] @ row) / row.norm() ** tau
    torch.testing.assert_close(head(features), expected)
    assert not list(head.parameters())


def test_tau_zero_with_the_bias_kept_is_the_previous_stage() -> None:
    source, head = Linear(D, C), TauNormalized(D, C, tau=0.0, bias=True)
    head.start_from(source)
    assert torch.equal(head(draw(3, D)), source(draw(3, D)))


def test_a_weight_of_zero_stays_finite() -> None:
    source, head = Linear(D, C), TauNormalized(D, C, tau=2.0)
    with torch.no_grad():
        source.weight[1].zero_()
    head.start_from(source)
    assert torch.equal(head(draw(3, D))[:, 1], torch.zeros(3))


def test_nearest_class_mean_is_the_squared_distance_to_means_of_centred_unit_features() -> None:
    features, labels = draw(50, D) + 3, torch.arange(50) % C
    head = NearestClassMean(D, C)
    assert head(features).isnan().all()
    head.fit(features, labels)
    center = features.mean(0)
    unit = [(f - center) / (f - center).norm() for f in features]
    means = [torch.stack([u for u, y in zip(unit, labels, strict=True) if y == c]).mean(0) for c in range(C)]
    queries = draw(5, D) + 3
    expected = torch.empty(5, C)
    for i, query in enumerate(queries):
        for c in range(C):
            expected[i, c] = -((query - center) / (query - center).norm() - means[c]).square().sum()
    torch.testing.assert_close(head(queries), expected)


def test_nearest_class_mean_does_not_depend_on_order_or_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = 1e3 + draw(500, D), torch.arange(500) % C
    heads = [NearestClassMean(D, C) for _ in range(3)]
    heads[0].fit(features, labels)
    order = torch.randperm(500, generator=generator("order"))
    heads[1].fit(features[order], labels[order])
    monkeypatch.setattr(posthoc, "CHUNK", 7)
    heads[2].fit(features, labels)
    for head in heads[1:]:
        assert torch.equal(head.center, heads[0].center)
        assert torch.equal(head.means, heads[0].means)


def test_nearest_class_mean_names_a_class_without_features() -> None:
    with pytest.raises(DataError, match="1 of 4 classes have no training features, first class 2"):
        NearestClassMean(D, C).fit(draw(3, D), torch.tensor([0, 1, 3]))


def test_nearest_class_mean_follows_any_kind_of_classifier_of_its_shape() -> None:
    head = NearestClassMean(D, C)
    head.start_from(Cosine(D, C))
    head.start_from(Linear(D, C))
    with pytest.raises(CheckpointError, match="classes"):
        head.start_from(Linear(D, C + 1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5])
def test_logit_adjustment_takes_the_log_prior_off(tau: float, bias: bool) -> None:
    counts = torch.tensor([5, 40, 10, 1])  # not sorted by frequency
    source, head = Linear(D, C, bias=bias), LogitAdjusted(D, C, tau=tau, bias=bias)
    head.start_from(source)
    assert head(draw(3, D)).isnan().all()
    head.set_class_counts(counts)
    expected = source(draw(3, D)) - tau * torch.log(torch.tensor([5 / 56, 40 / 56, 10 / 56, 1 / 56]))
    torch.testing.assert_close(head(draw(3, D)), expected)
    torch.testing.assert_close(torch.nn.functional.linear(draw(3, D), *head.linear_form()), expected)


def test_logit_adjustment_is_of_the_scaled_logits(tmp_path: Path) -> None:
    """In a run's last stage and where it takes over from a finished run's classifier: s z - tau log pi."""
    config = run_here(tmp_path / "run", "method=la_posthoc", "stage1.loss.scale=4", "stage1.epochs=1")
    plain = restore(config, tmp_path / "run", "stage1", None)
    inputs, prior = plain.session.sample_inputs(), plain.session.class_counts / plain.session.class_counts.sum()
    expected = 4 * plain.model(inputs).logits - prior.log()
    node = {"_target_": "ltexp.models.posthoc.LogitAdjusted"}
    for stage, taken_over in (("stage2", None), ("stage1", node)):
        model = restore(config, tmp_path / "run", stage, taken_over).model
        torch.testing.assert_close(model.logit_scale * model(inputs).logits, expected)


def test_logit_adjustment_names_a_class_without_images() -> None:
    with pytest.raises(DataError, match="class 1 has no training images"):
        LogitAdjusted(D, C).set_class_counts(torch.tensor([5, 0, 10, 1]))


def test_logit_adjustment_refuses_a_cosine_source() -> None:
    with pytest.raises(ConfigError, match="cannot continue a Cosine"):
        LogitAdjusted(D, C).start_from(Cosine(D, C))


def trained_cosine() -> Cosine:
    """With norms as training leaves them: far from 1."""
    source = Cosine(D, C)
    with torch.no_grad():
        source.weight.mul_(torch.tensor([[4.0], [1.0], [0.5], [2.0]]))
    return source


@pytest.mark.parametrize("bias", [True, False])
def test_tau_1_gives_a_cosine_stage_back(bias: bool) -> None:
    source, head = trained_cosine(), TauNormalized(D, C, bias=bias)
    head.start_from(source)
    assert head.kind == "cosine"
    torch.testing.assert_close(head(draw(3, D)), source(draw(3, D)))


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.7])
def test_tau_of_a_cosine_stage_is_the_formula_on_its_raw_weights_up_to_one_factor(tau: float) -> None:
    """f . w_c / ||w_c||^tau with the unit feature; 4, 1, 1/2 and 2 have the geometric mean sqrt 2."""
    source, head = trained_cosine(), TauNormalized(D, C, tau=tau)
    head.start_from(source)
    weight, features = source.weight.detach(), draw(3, D)
    unit = features / features.norm(dim=1, keepdim=True)
    expected = unit @ weight.T / weight.norm(dim=1) ** tau
    torch.testing.assert_close(head(features) * 2 ** (0.5 * (1 - tau)), expected)


@pytest.mark.parametrize(("classifier", "scale"), [("tau_normalized", 30.0), ("nearest_class_mean", 1.0)])
def test_a_stage_that_trains_nothing_keeps_the_scale_of_its_source(
    classifier: str, scale: float, tmp_path: Path
) -> None:
    """tau = 1 over cosines is stage 1 itself, its calibration too, whatever scale the untrained stage's loss has."""
    chosen = (f"classifier@stage2.classifier={classifier}", "loss@stage2.loss=cross_entropy", "stage2.loss.scale=5")
    config = run_here(tmp_path / "run", "method=gcl", *chosen, "stage1.epochs=1", "stage2.epochs=0")
    read = torch.load(tmp_path / "run" / "stage2" / "checkpoint.pt", weights_only=True)
    assert read["logit_scale"] == scale
    one, two = json.loads((tmp_path / "run" / "record.json").read_text())["stages"]
    kept = restore(config, tmp_path / "run", "stage2", None).measure()
    assert two["metrics"].items() <= kept.items()
    if classifier == "tau_normalized":
        node = {"_target_": "ltexp.models.posthoc.TauNormalized", "tau": 1.0}
        again = restore(config, tmp_path / "run", "stage2", node).measure()
        for metric in ("all", "ece", "mce"):
            assert two["metrics"][metric] == pytest.approx(one["metrics"][metric], abs=1e-3)
            assert again[metric] == pytest.approx(one["metrics"][metric], abs=1e-3)
