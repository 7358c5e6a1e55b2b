"""Classifiers that are trained: their formulas, their initialisation, and the limits that tie them together."""

import inspect
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.errors import CheckpointError, ConfigError
from ltexp.models.class_text import ClassText
from ltexp.models.classifier import Classifier, Cosine, Linear
from ltexp.models.posthoc import NearestClassMean
from ltexp.models.weight_shift import LearnableWeightScaling, WeightShift
from ltexp.randomness import default_generator, generator

# a head of experts reads other features: see test_models_experts.py
CONFIGS = sorted(set((Path(__file__).parent.parent / "conf" / "classifier").glob("[!e]*.yaml")))
D, C = 6, 4


def draw(*shape: int, key: str = "draw") -> Tensor:
    return torch.randn(*shape, generator=generator(key, *shape))


def stage1(bias: bool = True) -> Linear:
    with default_generator("stage 1"):
        return Linear(D, C, bias=bias)


def sgd_steps(classifier: Classifier, steps: int = 5) -> Tensor:
    """The logits of fixed features after some steps of the field's SGD with a strong weight decay."""
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1, momentum=0.9, weight_decay=0.05)
    for step in range(steps):
        features, labels = draw(8, D, key=f"features {step}"), torch.arange(8) % C
        loss = F.cross_entropy(classifier(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return classifier(draw(8, D)).detach()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_and_holds_every_keyword_with_its_default(path: Path) -> None:
    config = OmegaConf.load(path)
    parameters = inspect.signature(get_class(config._target_)).parameters
    defaults = {name: p.default for name, p in parameters.items() if name not in ("feature_dim", "num_classes")}
    assert defaults == {key: value for key, value in config.items() if key != "_target_"}
    classifier = instantiate(config, feature_dim=D, num_classes=C)
    assert isinstance(classifier, Classifier)
    if classifier.needs_source:
        classifier.start_from(stage1())
    if classifier.reads_text is not None:
        classifier.fit_text(ClassText(draw(C, 5), draw(D, 5), 100.0))
    classifier.fit(draw(40, D), torch.arange(40) % C)
    classifier.set_class_counts(torch.tensor([5, 40, 10, 1]))
    logits = classifier(draw(3, D))
    assert logits.shape == (3, C)
    assert logits.isfinite().all()
    own = {"weight", "bias", "scale", "shift"} | ({"confidence"} if classifier.kind == "aligned" else set())
    assert {name.split(".")[0] for name, _ in classifier.named_parameters()} <= own
    if classifier.kind != "aligned":  # its map depends on the feature
        assert classifier.linear_form()[0].shape == (C, D)


@pytest.mark.parametrize("bias", [True, False])
def test_default_init_is_torchs_own(bias: bool) -> None:
    with default_generator("init"):
        ours = Linear(D, C, bias=bias, init="default")
    with default_generator("init"):
        torchs = nn.Linear(D, C, bias=bias)
    assert torch.equal(ours.weight, torchs.weight)
    assert bias == (ours.bias is not None)
    assert torch.equal(ours(draw(3, D)), torchs(draw(3, D)))


def test_kaiming_init_is_normal_by_fan_in_with_torchs_bias() -> None:
    with default_generator("init"):
        classifier = Linear(64, 2000)
    assert classifier.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.01)
    kurtosis = (classifier.weight / classifier.weight.std()).pow(4).mean().item()
    assert kurtosis == pytest.approx(3.0, rel=0.05)  # 1.8 if it were uniform
    assert classifier.bias is not None
    assert classifier.bias.abs().max().item() == pytest.approx(1 / 8, rel=0.01)


def test_an_unknown_init_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'kaiming'"):
        Linear(D, C, init="kaimin")


def test_cosine_gives_plain_cosines_of_rows_that_start_with_norm_one() -> None:
    with default_generator("init"):
        cosine = Cosine(D, C)
    torch.testing.assert_close(cosine.weight.norm(dim=1), torch.ones(C))
    with torch.no_grad():
        cosine.weight.mul_(torch.tensor([[1.0], [2.0], [3.0], [0.5]]))
    features = draw(3, D)
    expected = torch.stack([F.cosine_similarity(features, row.expand(3, D)) for row in cosine.weight], dim=1)
    torch.testing.assert_close(cosine(features), expected)
    torch.testing.assert_close(cosine(7 * features), expected)
    assert [name for name, _ in cosine.named_parameters()] == ["weight"]


def test_cosines_stay_exact_under_bf16_autocast() -> None:
    cosine = Cosine(D, C)
    with torch.autocast("cpu", torch.bfloat16):
        logits = cosine(draw(3, D))
    assert logits.dtype is torch.float32
    assert torch.equal(logits, cosine(draw(3, D)))


def test_a_cosine_with_bias_is_refused() -> None:
    with pytest.raises(ConfigError, match="invalid bias=true: expected false: a cosine classifier has no bias"):
        Cosine(D, C, bias=True)


@pytest.mark.parametrize("bias", [True, False])
def test_learnable_weight_scaling_scales_the_finished_logits_and_learns_the_scale_alone(bias: bool) -> None:
    source = stage1(bias)
    lws = LearnableWeightScaling(D, C, bias=bias)
    lws.start_from(source)
    assert torch.equal(lws(draw(3, D)), source(draw(3, D)))
    sgd_steps(lws)
    assert [name for name, _ in lws.named_parameters()] == ["scale"]
    assert torch.equal(lws.weight, source.weight)
    assert not torch.equal(lws.scale, torch.ones(C))
    torch.testing.assert_close(lws(draw(3, D)), source(draw(3, D)) * lws.scale)


@pytest.mark.parametrize("decay_towards", ["zero", "stage1"])
@pytest.mark.parametrize("bias", [True, False])
def test_weight_shift_is_equation_4(bias: bool, decay_towards: str) -> None:
    source = stage1(bias)
    with default_generator("shift"):
        head = WeightShift(D, C, bias=bias, retain=0.7, shift_init="fresh", decay_towards=decay_towards)
    with default_generator("shift"):
        fresh = Linear(D, C, bias=bias)
    head.start_from(source)
    with torch.no_grad():
        head.scale.copy_(torch.tensor([0.5, 1.0, 2.0, -1.0]))
    features = draw(3, D)
    combined = 0.7 * source.weight + fresh.weight
    expected = torch.stack([head.scale * (combined @ f) for f in features])
    if bias:
        expected = expected + head.scale * (0.7 * source.bias + fresh.bias)
    torch.testing.assert_close(head(features), expected)
    names = {name for name, _ in head.named_parameters()}
    assert names == ({"scale", "shift", "bias"} if bias else {"scale", "shift"})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("init", ["kaiming", "default"])
@pytest.mark.parametrize("decay_towards", ["zero", "stage1"])
def test_weight_shift_that_keeps_nothing_is_crt_bit_for_bit(bias: bool, init: str, decay_towards: str) -> None:
    with default_generator("stage 2"):
        crt = Linear(D, C, bias=bias, init=init)
    with default_generator("stage 2"):
        head = WeightShift(
            D, C, bias, retain=0.0, learn_scale=False, shift_init="fresh", init=init, decay_towards=decay_towards
        )
    head.start_from(stage1())
    assert not head.needs_source
    assert torch.equal(sgd_steps(head), sgd_steps(crt))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("decay_towards", ["zero", "stage1"])
def test_weight_shift_without_a_shift_is_learnable_weight_scaling_bit_for_bit(bias: bool, decay_towards: str) -> None:
    lws, head = (
        LearnableWeightScaling(D, C, bias),
        WeightShift(D, C, bias, learn_shift=False, decay_towards=decay_towards),
    )
    for classifier in (lws, head):
        classifier.start_from(stage1(bias))
    assert torch.equal(sgd_steps(head), sgd_steps(lws))
    assert torch.equal(head.scale, lws.scale)


def test_weight_shift_with_the_scale_fixed_and_decay_to_zero_is_the_linear_classifier_trained_on() -> None:
    linear, head = Linear(D, C), WeightShift(D, C, learn_scale=False)
    for classifier in (linear, head):
        classifier.start_from(stage1())
    assert torch.equal(sgd_steps(head), sgd_steps(linear))


@pytest.mark.parametrize(("decay_towards", "kept"), [("zero", 0.0), ("stage1", 1.0)])
def test_weight_decay_pulls_where_decay_towards_says(decay_towards: str, kept: float) -> None:
    source = stage1()
    head = WeightShift(D, C, learn_scale=False, decay_towards=decay_towards)
    head.start_from(source)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0, weight_decay=1.0)  # one step without gradient decays fully
    head(torch.zeros(1, D)).mul(0).sum().backward()
    optimizer.step()
    weight, bias = head.linear_form()
    torch.testing.assert_close(weight, kept * source.weight.detach())
    torch.testing.assert_close(bias, kept * source.bias.detach())


def test_a_weight_shift_that_cannot_work_is_refused() -> None:
    for wrong in ({"learn_shift": False, "learn_scale": False}, {"learn_shift": False, "retain": 0.0}):
        with pytest.raises(ConfigError, match="nothing to learn"):
            WeightShift(D, C, **wrong)
    with pytest.raises(ConfigError, match="shift_init"):
        WeightShift(D, C, shift_init="zero")
    with pytest.raises(ConfigError, match="decay_towards"):
        WeightShift(D, C, decay_towards="stage2")


@pytest.mark.parametrize("build", [Linear, LearnableWeightScaling, WeightShift])
@pytest.mark.parametrize("bias", [True, False])
def test_a_hand_over_keeps_the_logits_and_the_linear_form_equals_the_logits(build: type, bias: bool) -> None:
    scaled = LearnableWeightScaling(D, C, bias)
    scaled.start_from(stage1(bias))
    sgd_steps(scaled)
    classifier = build(D, C, bias=bias)
    classifier.start_from(scaled)
    torch.testing.assert_close(classifier(draw(3, D)), scaled(draw(3, D)))
    sgd_steps(classifier)
    torch.testing.assert_close(F.linear(draw(3, D), *classifier.linear_form()), classifier(draw(3, D)))
    assert not any(t is not None and t.requires_grad for t in classifier.linear_form())


@pytest.mark.parametrize("build", [Linear, LearnableWeightScaling, WeightShift])
def test_a_source_without_bias_starts_the_bias_at_zero_and_one_with_bias_is_not_cut_in_silence(build: type) -> None:
    classifier = build(D, C, bias=True)
    classifier.start_from(stage1(bias=False))
    assert torch.equal(classifier(draw(3, D)), stage1(bias=False)(draw(3, D)))
    with pytest.raises(ConfigError, match="has a bias"):
        build(D, C, bias=False).start_from(stage1(bias=True))


@pytest.mark.parametrize("build", [Linear, LearnableWeightScaling, WeightShift, Cosine])
def test_a_source_of_another_shape_or_kind_is_refused(build: type) -> None:
    with pytest.raises(CheckpointError, match="10 classes on features of width 6, this one 4 on 6"):
        build(D, C).start_from(Linear(D, 10))
    with pytest.raises(ConfigError, match="cannot continue"):
        build(D, C).start_from(Linear(D, C) if build is Cosine else NearestClassMean(D, C))


def test_a_weight_shift_cannot_continue_a_cosine() -> None:
    with pytest.raises(ConfigError, match="cannot continue a Cosine"):
        WeightShift(D, C).start_from(Cosine(D, C))


@pytest.mark.parametrize("bias", [True, False])
def test_learnable_weight_scaling_of_a_cosine_stage_scales_its_cosines_and_loads_back(bias: bool) -> None:
    source, scaled = Cosine(D, C), LearnableWeightScaling(D, C, bias)
    scaled.start_from(source)
    assert scaled.kind == "cosine"
    assert torch.equal(scaled(draw(3, D)), source(draw(3, D)))
    sgd_steps(scaled)
    assert not torch.allclose(scaled.scale, torch.ones(C))
    torch.testing.assert_close(scaled(draw(3, D)), scaled.scale * source(draw(3, D)))
    assert [name for name, _ in scaled.named_parameters()] == ["scale"]
    again = LearnableWeightScaling(D, C, bias)
    again.load_state_dict(scaled.state_dict())
    assert again.kind == "cosine"
    assert torch.equal(again(draw(3, D)), scaled(draw(3, D)))
    assert all(isinstance(value, Tensor) for value in scaled.state_dict().values())


def test_cosines_that_are_scaled_stay_exact_under_bf16_autocast() -> None:
    scaled = LearnableWeightScaling(D, C)
    scaled.start_from(Cosine(D, C))
    expected = scaled(draw(3, D))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scaled(draw(3, D)), expected)


def test_a_cosine_continues_a_cosine() -> None:
    source, cosine = Cosine(D, C), Cosine(D, C)
    cosine.start_from(source)
    assert torch.equal(cosine.weight, source.weight)
    assert cosine.weight is not source.weight


@pytest.mark.parametrize("decay_towards", ["zero", "stage1"])
def test_a_trained_weight_shift_loads_back(decay_towards: str) -> None:
    head = WeightShift(D, C, decay_towards=decay_towards)
    head.start_from(stage1())
    sgd_steps(head)
    again = WeightShift(D, C, decay_towards=decay_towards)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(draw(3, D)), head(draw(3, D)))


class Minimal(Classifier):
    """As a user's own may be at first."""

    def forward(self, features: Tensor) -> Tensor:
        return features[:, : self.num_classes]


def test_a_classifier_that_says_nothing_of_starting_is_told_what_to_add() -> None:
    with pytest.raises(ConfigError, match="a Minimal classifier has no start_from, and can only start fresh: add it"):
        Minimal(D, C).start_from(stage1())
    with pytest.raises(
        ConfigError, match="a Minimal classifier has no linear_form, which a Linear one starts from: add"
    ):
        stage1().start_from(Minimal(D, C))
