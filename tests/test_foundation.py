"""Networks of timm, whole and tuned: what they answer, what learns, what a checkpoint holds, what is refused."""

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TINY, assert_equal_weights, composed, run_here, weights
from test_distributed_methods import compare
from test_every_method import resume_in_each
from torch import Tensor, nn
from torch.nn import functional as F

import ltexp
from ltexp.config import to_config
from ltexp.errors import CheckpointError, ConfigError, LtexpError
from ltexp.models.adapters import Bottleneck
from ltexp.models.model import Model
from ltexp.models.timm_network import TimmNetwork
from ltexp.models.tuning import (
    AdapterTuning,
    AdaptFormer,
    BiasTuning,
    LastBlocks,
    Lora,
    NormTuning,
    PromptTuning,
    Tuning,
)
from ltexp.randomness import default_generator, generator
from ltexp.training.composition import check_composition

timm = pytest.importorskip("timm")

NAME = "vit_tiny_patch16_224"
SMALL_ONE = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 4}  # for digits of 8 pixels
OPTIONS = "backbone.options={depth: 2, embed_dim: 32, num_heads: 2, patch_size: 4}"
CHOICES = ("frozen", "bias", "norm", "last_blocks", "lora", "adapter", "adaptformer", "vpt_shallow", "vpt_deep")
WITH_MODULES: tuple[Tuning, ...] = (Lora(3), AdapterTuning(3), AdaptFormer(3))
EVERY: tuple[Tuning, ...] = (
    *(*WITH_MODULES, BiasTuning(), NormTuning(), LastBlocks(1), PromptTuning(3), PromptTuning(3, deep=True)),
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random vision transformer of two blocks for 8 pixels, with a classifier, as timm saves it."""
    with default_generator("trunk"):
        network = timm.create_model(NAME, img_size=8, num_classes=7, **SMALL_ONE)
        for parameter in network.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(network.state_dict(), path)
    return path


def built(file: Path | None, tuning: Tuning | None = None, **settings: Any) -> TimmNetwork:
    with default_generator("fresh"):
        weights = None if file is None else str(file)
        return TimmNetwork(NAME, weights, tuning=tuning, **{"image_size": 8, "options": SMALL_ONE, **settings}).eval()


def images(side: int = 8) -> Tensor:
    return torch.randn(5, 3, side, side, generator=generator("images"))


def moved(network: nn.Module) -> None:
    """Draws what the adapters hold anew, so that they do something."""
    draws = generator("moved")
    for parameter in network.adapters.parameters():  # type: ignore[union-attr]
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=draws))


def words(file: Path, choice: str, epochs: int = 2) -> tuple[str, ...]:
    network = ("backbone=timm", f"backbone.name={NAME}", "backbone.image_size=8", OPTIONS, f"backbone.weights={file}")
    return ("method=ce", *TINY, "stage1.batch_size=16", f"stage1.epochs={epochs}", *network, f"fine_tuning={choice}")


# --- networks


def test_features_are_what_timm_gives_before_its_classifier(file: Path) -> None:
    plain = timm.create_model(NAME, img_size=8, num_classes=7, **SMALL_ONE).eval()
    plain.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        expected = plain.forward_head(plain.forward_features(images()), pre_logits=True)
        features, (tokens,) = built(file).forward_maps(images())
    torch.testing.assert_close(features, expected, rtol=0, atol=0)
    assert tokens.shape == (5, 32, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "mobilenetv3_small_050", "efficientnet_b0", "swin_tiny_patch4_window7_224"]
)
def test_other_networks_have_features_and_maps_of_the_width_that_they_say(name: str) -> None:
    size = 224 if name.startswith("swin") else 64
    network = TimmNetwork(name, image_size=size).eval()
    with torch.no_grad():
        features, (last,) = network.forward_maps(images(32))
        torch.testing.assert_close(network(images(32)), features)
    assert features.shape == (5, network.feature_dim)
    assert last.shape[1] == network.map_channels[0]


def test_small_images_are_enlarged_and_large_ones_refused(file: Path) -> None:
    network = built(file)
    enlarged = F.interpolate(images(4), (8, 8), mode="bilinear", align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(network(images(4)), network(enlarged), rtol=0, atol=0)
    network.check(images(4))
    with pytest.raises(ConfigError, match=r"^images have 12 pixels .*: set dataset\.image_size=8, or backbone\."):
        network.check(images(12))


def test_positions_of_another_size_are_interpolated_and_said(file: Path) -> None:
    network = built(file, image_size=16)
    assert network.notes == ["backbone.weights has positions for 2x2 patches, interpolated to 4x4: images of 16 pixels"]
    given, own = torch.load(file, weights_only=True)["pos_embed"], network.trunk.state_dict()["pos_embed"]
    torch.testing.assert_close(own[:, :1], given[:, :1], rtol=0, atol=0)  # the class token's
    grid = given[:, 1:].transpose(1, 2).unflatten(2, (2, 2))
    expected = F.interpolate(grid, (4, 4), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    torch.testing.assert_close(own[:, 1:], expected)
    assert built(file).notes == []


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.vit."])
def test_weights_are_found_behind_any_prefix_and_in_safetensors(prefix: str, file: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {prefix + name: value for name, value in torch.load(file, weights_only=True).items()}
    torch.save({"model": state}, tmp_path / "vit.pth")
    save_file(state, tmp_path / "vit.safetensors")
    for name in ("vit.pth", "vit.safetensors"):
        torch.testing.assert_close(built(tmp_path / name).state_dict(), built(file).state_dict(), rtol=0, atol=0)


def test_gradient_checkpointing_leaves_gradients_as_they_are(file: Path) -> None:
    found = []
    for kept in (False, True):
        network = built(file, AdaptFormer(3), gradient_checkpointing=kept)
        moved(network)
        network(images()).square().sum().backward()
        found.append({name: value.grad for name, value in network.adapters.named_parameters()})
    torch.testing.assert_close(found[0], found[1])


# --- tuning


@pytest.mark.parametrize("tuning", WITH_MODULES, ids=lambda tuning: type(tuning).__name__)
def test_adapters_are_the_identity_at_their_start_and_not_after(tuning: Tuning, file: Path) -> None:
    network = built(file, tuning)
    with torch.no_grad():
        plain = built(file)(images())
        torch.testing.assert_close(network(images()), plain, rtol=0, atol=0)
        copy = deepcopy(network)
        moved(network)
        changed = network(images())
        torch.testing.assert_close(copy(images()), plain, rtol=0, atol=0)  # it has adapters of its own
    assert (changed - plain).abs().max() > 1e-2


def by_hand(network: TimmNetwork, block: Any) -> Tensor:
    """The features of a network of which only `block(number, timm's block, x)` says what a block answers."""
    trunk: Any = network.trunk
    x = trunk._pos_embed(trunk.patch_embed(images()))
    for number, own in enumerate(trunk.blocks):
        x = block(number, own, x)
    return trunk.norm(x)[:, 0]


@torch.no_grad()
def test_each_adapter_is_where_its_paper_has_it(file: Path) -> None:
    plain = built(file)

    def narrow(part: Any, x: Tensor) -> Tensor:
        return part.up(F.relu(part.down(part.norm(x))))

    def sequential(number: int, block: Any, x: Tensor) -> Tensor:
        x = x + block.attn(block.norm1(x))
        h = block.mlp(block.norm2(x))
        return x + h + narrow(after.adapters[number], h)

    def parallel(number: int, block: Any, x: Tensor) -> Tensor:
        x = x + block.attn(block.norm1(x))
        part = beside.adapters[number]
        return x + block.mlp(block.norm2(x)) + part.scale * narrow(part, x)

    after, beside = built(file, AdapterTuning(3)), built(file, AdaptFormer(3))
    for network, block in ((after, sequential), (beside, parallel)):
        moved(network)
        torch.testing.assert_close(network(images()), by_hand(plain, block))


@torch.no_grad()
@pytest.mark.parametrize("deep", [False, True])
def test_prompts_stand_among_the_tokens_of_their_blocks_alone(deep: bool, file: Path) -> None:
    """The order of the tokens behind the class token means nothing to the network: here the prompts come last."""
    network, plain = built(file, PromptTuning(3, deep)), built(file)

    def block(number: int, own: Any, x: Tensor) -> Tensor:
        if deep or number == 0:
            tokens = network.adapters[number].tokens  # type: ignore[index]
            x = torch.cat([x, tokens.expand(5, -1, -1)], 1)
        x = own(x)
        return x[:, :5] if deep else x

    torch.testing.assert_close(network(images()), by_hand(plain, block))
    assert network.trunk.forward_features(images()).shape == (5, 5, 32)  # type: ignore[operator]


@torch.no_grad()
def test_merged_lora_answers_as_unmerged(file: Path) -> None:
    network = built(file, Lora(3))
    moved(network)
    expected = network(images())
    assert (expected - built(file)(images())).abs().max() > 1e-2
    network.merge()
    torch.testing.assert_close(network(images()), expected)
    assert network.state_dict().keys() - built(file).state_dict().keys() == {"file._extra_state"}


@torch.no_grad()
@pytest.mark.parametrize(
    "tuning", [Lora(3), PromptTuning(3), PromptTuning(3, deep=True)], ids=["lora", "shallow", "deep"]
)
def test_an_export_leaves_the_number_of_images_open(tuning: Tuning, file: Path) -> None:
    network = built(file, tuning)
    exported = torch.export.export(network, (images(),), dynamic_shapes=({0: torch.export.Dim("N")},)).module()
    torch.testing.assert_close(exported(images()[:3]), network(images()[:3]))


@pytest.mark.parametrize("tuning", EVERY, ids=lambda tuning: type(tuning).__name__)
def test_gradients_reach_all_that_learns_and_nothing_else(tuning: Tuning, file: Path) -> None:
    from ltexp.models.classifier import Linear

    network = built(file, tuning)
    moved(network)
    model = Model(network, Linear(32, 4))
    model.set_trainable()
    assert not model.train().backbone.trunk.training  # type: ignore[union-attr]
    learns = {name for name, value in network.named_parameters() if value.requires_grad}
    own = {f"trunk.{name}" for name in tuning.learning(network.trunk)}
    assert learns == own | {name for name, _ in network.named_parameters() if name.startswith("adapters.")}
    model(images()).logits.square().sum().backward()
    reached = {name for name, value in network.named_parameters() if value.grad is not None and value.grad.any()}
    assert reached == learns


def test_parameters_of_vit_b_16_are_as_many_as_published() -> None:
    """torchvision prints 86,567,656 for the network with its classifier of 1000 classes.

    AdaptFormer's in LIFT (Shi et al., ICML 2024), without classifier: 0.10, 0.18, 0.62 and 4.75 million for CIFAR-100,
    Places, ImageNet and iNaturalist, at the widths of its rule.
    """
    from torchvision.models import ViT_B_16_Weights

    def learning(tuning: Tuning) -> int:
        with torch.device("meta"):
            network = TimmNetwork("vit_base_patch16_224", tuning=tuning)
        assert network.feature_dim == 768
        frozen = sum(value.numel() for value in network.trunk.parameters())
        assert frozen + 769 * 1000 == ViT_B_16_Weights.IMAGENET1K_V1.meta["num_params"]
        own = tuning.learning(network.trunk)
        of_trunk = sum(value.numel() for name, value in network.trunk.named_parameters() if name in own)
        return of_trunk + sum(value.numel() for value in network.adapters.parameters())

    assert [round(learning(AdaptFormer(width)) / 1e6, 2) for width in (4, 8, 32, 256)] == [0.10, 0.18, 0.62, 4.75]
    assert learning(Lora(4)) == 12 * 2 * (768 * 4 + 4 * 768)
    assert learning(PromptTuning(10)) == 7_680
    assert learning(PromptTuning(10, deep=True)) == 92_160
    assert learning(NormTuning()) == (12 * 2 + 1) * 2 * 768
    assert learning(BiasTuning()) == 768 + 12 * (768 + 2304 + 768 + 768 + 3072 + 768) + 768
    assert learning(Tuning()) == 0


def test_a_bottleneck_starts_as_lifts() -> None:
    with default_generator("start"):
        part = Bottleneck(512, 64)
    assert not part.up.weight.any()
    assert not part.up.bias.any()
    assert not part.down.bias.any()
    assert part.down.weight.std().item() == pytest.approx((2 / (1 + 5) / 512) ** 0.5, rel=0.02)


# --- runs


@pytest.mark.parametrize("choice", ["adaptformer", "bias", *(pytest.param(c, marks=pytest.mark.slow) for c in CHOICES)])
def test_the_trunk_stays_and_a_checkpoint_holds_the_rest_alone(choice: str, file: Path, tmp_path: Path) -> None:
    run_here(tmp_path / "run", *words(file, choice))
    kept = torch.load(tmp_path / "run" / "stage1" / "checkpoint.pt", weights_only=True)["backbone"]
    model = ltexp.load(tmp_path / "run").model
    given, network = torch.load(file, weights_only=True), model.backbone
    own = network.tuned and network._learning
    for name, value in network.trunk.state_dict().items():
        if name in own:
            assert f"trunk.{name}" in kept
        else:
            assert torch.equal(value, given[name]), name
            assert f"trunk.{name}" not in kept
    assert {name for name in kept if name.startswith("adapters.")} == {
        f"adapters.{name}" for name in network.adapters.state_dict()
    }
    learned = [name for name in kept if name != "file._extra_state"]
    assert bool(learned) == (choice != "frozen")


def test_another_file_under_a_trained_network_is_refused(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "vit.pth"
    copy.write_bytes(file.read_bytes())
    run_here(tmp_path / "run", *words(copy, "lora", epochs=1))
    ltexp.load(tmp_path / "run")
    state = torch.load(copy, weights_only=True)
    state["norm.weight"][3] += 1e-3
    torch.save(state, copy)
    with pytest.raises(LtexpError, match=r"^backbone\.weights is not the file that this was trained on"):
        ltexp.load(tmp_path / "run")
    copy.unlink()
    with pytest.raises(LtexpError, match=r"^backbone\.weights '.*' is no file: give one"):
        ltexp.load(tmp_path / "run")


def test_a_second_stage_goes_on_from_the_adapters_of_the_first(file: Path, tmp_path: Path) -> None:
    run_here(tmp_path / "run", "method=crt", *words(file, "lora")[1:], "stage2.epochs=1", "stage2.batch_size=16")
    first, second = (weights(tmp_path / "run", stage) for stage in ("stage1", "stage2"))
    assert_equal_weights(*({k: v for k, v in each.items() if k.startswith("backbone.")} for each in (first, second)))
    assert first["backbone.adapters.0.query_up"].any()


@pytest.mark.parametrize("choice", ["adaptformer", pytest.param("vpt_deep", marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_uninterrupted(
    choice: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume_in_each(["stage1"], words(file, choice), tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["adaptformer", "last_blocks"])
def test_two_processes_train_what_one_trains(choice: str, file: Path, tmp_path: Path, run_on_ranks: Any) -> None:
    compare(tmp_path, 2, words(file, choice), run_on_ranks)


def test_lifts_head_and_loss_are_those_of_its_code() -> None:
    """Made-up features sin(I) and weights cos(I), I_ij = 3i + 5j; the numbers are what the authors' code gives."""
    from ltexp.losses.logit_adjustment import LogitAdjustment
    from ltexp.models.class_mean import ClassMeanCosine
    from ltexp.outputs import ModelOutput

    i, j = torch.arange(4.0)[:, None], torch.arange(3.0)
    head = ClassMeanCosine(3, 4)
    head.weight.data.copy_((3 * i + 5 * j).cos())
    output: ModelOutput = head.output((3 * i + 5 * j).sin())
    expected = torch.tensor([3.131206, -5.944963, 8.640530, -11.225107])
    torch.testing.assert_close(25 * output.logits[0], expected, atol=1e-5, rtol=0)
    loss = LogitAdjustment(torch.tensor([40, 5, 100, 10]), tau=1.0, scale=25.0)
    assert loss(output, torch.tensor([0, 2, 1, 2])).item() == pytest.approx(5.295550, abs=1e-5)


@torch.no_grad()
def test_a_head_from_class_means_starts_as_their_nearest_in_angle() -> None:
    from ltexp.models.class_mean import ClassMeanCosine

    features = torch.randn(9, 4, generator=generator("features"))
    labels = torch.tensor([0, 0, 2, 2, 2, 0, 2, 0, 2])
    with default_generator("head"):
        head = ClassMeanCosine(4, 3)
    random = head.weight[1].clone()
    head.fit(features, labels)
    for label in (0, 2):
        mean = features[labels == label].mean(0)
        torch.testing.assert_close(head.weight[label], mean / mean.norm())
    assert torch.equal(head.weight[1], random)  # a class without images


def test_lift_starts_its_head_from_the_frozen_networks_class_means(file: Path, tmp_path: Path) -> None:
    """At a rate of almost nothing the head stays where it started."""
    run_here(tmp_path / "run", "method=lift", *words(file, "adaptformer", epochs=1)[1:], "stage1.optimizer.lr=1e-12")
    predictor = ltexp.load(tmp_path / "run")
    assert predictor.model.logit_scale == 25
    digits = composed(*words(file, "frozen"))
    from ltexp.config.build import build

    data = build(digits["dataset"], root=digits["paths"]["data"], path="dataset")
    pictures = predictor.transform.batch(list(data.train.images))
    with torch.no_grad():
        found = built(file)(pictures)
    means = torch.stack([found[torch.as_tensor(data.train.labels) == label].mean(0) for label in range(4)])
    torch.testing.assert_close(predictor.model.classifier.weight.detach(), F.normalize(means), atol=1e-5, rtol=1e-4)


PROBE = ("features@stage1.features=extracted", "stage1.trainable.backbone=false", "stage1.batch_norm=frozen")


def test_features_without_augmentation_are_extracted_once_and_train_as_images_do(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltexp.features import loader

    calls: list[int] = []
    real = loader.extract
    monkeypatch.setattr(loader, "extract", lambda *given: calls.append(1) or real(*given))
    plain = (*words(file, "frozen", epochs=3), "augmentation@stage1.augmentation=none")
    run_here(tmp_path / "images", *plain)
    assert not calls
    run_here(tmp_path / "features", *plain, *PROBE)
    assert len(calls) == 1
    run_here(tmp_path / "augmented", *words(file, "frozen", epochs=3), *PROBE)
    assert len(calls) == 4
    assert_equal_weights(weights(tmp_path / "images", "stage1"), weights(tmp_path / "features", "stage1"), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed",
    [
        ("callbacks=ema",),
        ("trainer=bf16", "backbone.gradient_checkpointing=true"),
        ("trainer.accumulate=2",),
        ("step@stage1.step=sam",),
        ("trainer.compile=true", "trainer.compile_backend=eager"),
    ],
    ids=lambda typed: typed[0],
)
def test_adapters_learn_under_every_way_of_training(typed: tuple[str, ...], file: Path, tmp_path: Path) -> None:
    run_here(tmp_path / "run", *words(file, "lora"), *typed)
    learned, given = weights(tmp_path / "run", "stage1"), torch.load(file, weights_only=True)
    assert learned["backbone.adapters.0.query_up"].any()
    trunk = ltexp.load(tmp_path / "run").model.backbone.trunk.state_dict()
    assert all(torch.equal(trunk[name], given[name]) for name in trunk)


# --- refusals, before any data is read


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            ("backbone.name=vit_bas_patch16_224",),
            r"invalid backbone\.name=vit_bas_patch16_224: .*did you mean 'vit_base_patch16_224'",
        ),
        (
            ("backbone.name=vit_base_patch16_224.nothing",),
            r"backbone\.name: timm has no 'vit_base_patch16_224\.nothing'",
        ),
        (("backbone.image_size=9",), r"invalid backbone\.image_size=9: expected a multiple of .* 4 pixels"),
        (("backbone.image_size=0",), r"invalid backbone\.image_size=0"),
        (("+backbone.options.dept=2",), r"backbone\.options: timm cannot build vit_tiny_patch16_224 .*dept"),
        (("backbone.weights=none.pth",), r"backbone\.weights '.*none\.pth' is no file"),
        (("fine_tuning=lora", "backbone.tuning.width=0"), r"invalid backbone\.tuning\.width=0"),
        (("fine_tuning=vpt_deep", "backbone.tuning.prompts=0"), r"invalid backbone\.tuning\.prompts=0"),
        (
            ("fine_tuning=last_blocks", "backbone.tuning.blocks=3"),
            r"invalid backbone\.tuning\.blocks=3: expected at most 2",
        ),
        (("backbone.weights=null",), "would freeze random weights: set backbone.weights=FILE"),
        (("fine_tuning=whole", "backbone.weights=IMAGENET1K_V1"), "is no file"),
    ],
)
def test_bad_settings_are_answered_in_a_line_without_data(typed: tuple[str, ...], message: str, file: Path) -> None:
    with pytest.raises(LtexpError, match=f"^[^\n]*{message}[^\n]*$"):
        check_composition(to_config(composed(*words(file, "lora"), *typed)))


def test_weights_of_another_network_are_named(file: Path, tmp_path: Path) -> None:
    state = torch.load(file, weights_only=True)
    torch.save({name: value for name, value in state.items() if "blocks.1" not in name}, tmp_path / "short.pth")
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    wider = timm.create_model(NAME, img_size=8, num_classes=0, **SMALL_ONE | {"embed_dim": 64})
    torch.save(wider.state_dict(), tmp_path / "wide.pth")
    for name, message in (
        ("short", r"belongs to a different model: 12 names missing, first 'blocks\.1\."),
        ("resnet", r"none of its 1 names ends as one of this network's"),
        ("wide", r"'cls_token' has shape \(1, 1, 64\) there and \(1, 1, 32\) here"),
    ):
        for device in ("cpu", "meta"):
            with (
                pytest.raises(CheckpointError, match=rf"^backbone\.weights[^\n]*{message}[^\n]*$"),
                torch.device(device),
            ):
                built(tmp_path / f"{name}.pth")


def test_adapters_of_blocks_are_for_transformers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]*vision transformers[^\n]*the network is a ResNet[^\n]*$"):
        TimmNetwork("resnet18", tuning=Lora(4))
    with pytest.raises(ConfigError, match=r"needs a network with layer norms"):
        TimmNetwork("resnet18", tuning=NormTuning())
    with pytest.raises(
        LtexpError, match=r"^backbone\.tuning: this fine_tuning is for networks of timm: add backbone=timm"
    ):
        composed("backbone=resnet18", "fine_tuning=lora")


def test_without_timm_the_choice_says_what_to_install(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r'^[^\n]*pip install "ltexp\[vit\]"$'):
        check_composition(to_config(composed(*words(file, "lora"))))
