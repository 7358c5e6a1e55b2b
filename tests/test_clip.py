"""CLIPs of open_clip: the image tower with every tuning, and classifiers that read class names."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import DIGITS, NAME, OPTIONS, clip_file, clip_words, names_of, random_clip
from image_trees import long_tail, write_tree
from PIL import Image
from runs import TINY, assert_equal_weights, composed, run_here, weights
from test_every_method import resume_in_each
from torch import Tensor
from torch.nn import functional as F

import ltexp
from ltexp.analysis.crops import five_crops, predict_crops
from ltexp.analysis.restored import restore
from ltexp.config import load, to_config
from ltexp.errors import CheckpointError, ConfigError, LtexpError
from ltexp.evaluate import evaluate
from ltexp.evaluation.command_line import parse
from ltexp.evaluation.record import read_record
from ltexp.models.class_text import Prompts
from ltexp.models.clip_network import ClipNetwork
from ltexp.models.text_classifiers import TextCosine, ZeroShot
from ltexp.models.tuning import AdaptFormer, Tuning
from ltexp.randomness import generator
from ltexp.training.composition import check_composition

open_clip = pytest.importorskip("open_clip")

CLASSES = ("black_cat", "dog", "airplane")
PROMPTS = Prompts().of(CLASSES)


def built(file: Path | None = None, tuning: Tuning | None = None, **settings: Any) -> ClipNetwork:
    return ClipNetwork(NAME, str(file or clip_file()), options=OPTIONS, tuning=tuning, **settings).eval()


def images(side: int = 8) -> Tensor:
    return torch.randn(5, 3, side, side, generator=generator("images"))


def words(choice: str = "frozen", method: str = "ce", epochs: int = 1) -> tuple[str, ...]:
    sizes = ("stage1.batch_size=16", f"stage1.epochs={epochs}")
    return (f"method={method}", *TINY, *sizes, *clip_words(), f"fine_tuning={choice}")


# --- the towers


@torch.no_grad()
def test_features_are_open_clips_before_its_projection() -> None:
    clip, network = random_clip(), built()
    features = network(images())
    torch.testing.assert_close(features @ clip.visual.proj, clip.encode_image(images()), rtol=1e-4, atol=1e-5)
    assert features.shape == (5, network.feature_dim) == (5, 32)


def test_vit_b_16_has_as_many_parameters_as_its_image_tower() -> None:
    from open_clip.transformer import VisionTransformer

    with torch.device("meta"):
        network = ClipNetwork("ViT-B-16")
        theirs = VisionTransformer(224, 16, 768, 12, 12, 4.0)
    expected = sum(value.numel() for value in theirs.parameters()) - 768 * 512  # of the projection
    assert sum(value.numel() for value in network.parameters()) == expected


@torch.no_grad()
def test_class_text_is_what_open_clip_encodes() -> None:
    clip, text = random_clip(), built().class_text(PROMPTS)
    tokens = open_clip.get_tokenizer("ViT-B-16", context_length=16)(
        ["a photo of a black cat.", "a photo of a dog.", "a photo of a airplane."]
    )
    torch.testing.assert_close(text.directions, clip.encode_text(tokens, normalize=True), rtol=1e-4, atol=1e-5)
    assert text.scale == pytest.approx(clip.logit_scale.exp().item())
    assert tokens[0, 0] == 49406
    assert 49407 in tokens[0]


@torch.no_grad()
def test_zero_shot_logits_are_open_clips() -> None:
    clip, network = random_clip(), built()
    head = ZeroShot(32, 3)
    assert head(network(images())).isnan().all()
    head.fit_text(network.class_text(PROMPTS))
    tokens = open_clip.get_tokenizer("ViT-B-16", context_length=16)([own[0] for own in PROMPTS])
    expected, _ = clip.get_logits(images(), tokens)
    torch.testing.assert_close(head(network(images())), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_head_from_text_is_text_brought_back_by_the_projection() -> None:
    text = built().class_text(PROMPTS)
    head = TextCosine(32, 3)
    head.fit_text(text)
    expected = F.normalize(text.directions @ random_clip().visual.proj.T)
    torch.testing.assert_close(head.weight, expected)


@torch.no_grad()
def test_several_templates_are_averaged() -> None:
    network = built()
    one, other, both = (
        network.class_text(Prompts(templates).of(CLASSES)).directions
        for templates in (["a {}"], ["the {} here"], ["a {}", "the {} here"])
    )
    torch.testing.assert_close(both, F.normalize(one + other))


@torch.no_grad()
def test_positions_of_another_size_are_interpolated_and_said() -> None:
    assert built().notes == []
    assert "positions for 2x2 patches, interpolated to 4x4" in built(image_size=16).notes[0]
    assert built(image_size=16)(images(16)).isfinite().all()


def test_weights_are_found_behind_a_prefix_and_another_networks_refused(tmp_path: Path) -> None:
    state = torch.load(clip_file(), weights_only=True)
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "clip.pt")
    assert_equal_weights(built(tmp_path / "clip.pt").state_dict(), built().state_dict())
    torch.testing.assert_close(
        built(tmp_path / "clip.pt").class_text(PROMPTS).directions, built().class_text(PROMPTS).directions
    )
    torch.save({name: v for name, v in state.items() if "resblocks.1" not in name}, tmp_path / "short.pt")
    with pytest.raises(CheckpointError, match=r"^backbone\.weights[^\n]*12 names missing, first 'blocks\.1\.[^\n]*$"):
        built(tmp_path / "short.pt")
    torch.save({name: v for name, v in state.items() if name.startswith("visual.")}, tmp_path / "images.pt")
    with pytest.raises(CheckpointError, match=r"^backbone\.weights[^\n]*no text tower of this kind: it lacks [^\n]*$"):
        built(tmp_path / "images.pt").class_text(PROMPTS)


# --- runs


def test_zero_shot_run_is_zero_shot_and_keeps_its_text_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ("method=zero_shot", *TINY, *clip_words(), names_of(4))
    run_here(tmp_path / "run", *typed)
    kept = torch.load(tmp_path / "run" / "text_features.pt", weights_only=True)
    expected = built().class_text(Prompts().of(DIGITS[:4]))
    torch.testing.assert_close(kept["directions"], expected.directions)
    predictor = ltexp.load(tmp_path / "run")
    pictures = torch.rand(5, 3, 8, 8, generator=generator("pictures"))
    with torch.no_grad():
        own = built()(pictures)
        meeting = F.normalize(own @ expected.projection)
        torch.testing.assert_close(
            predictor.model(pictures).logits, expected.scale * meeting @ expected.directions.T, rtol=1e-4, atol=1e-4
        )
    calls: list[int] = []
    real = ClipNetwork.class_text
    monkeypatch.setattr(ClipNetwork, "class_text", lambda *given: calls.append(1) or real(*given))
    (tmp_path / "run" / "stage1" / "checkpoint.pt").unlink()
    run_here(tmp_path / "run", *typed, "resume=true")
    assert not calls
    run_here(tmp_path / "run", *typed, "stage1.classifier.templates=['a bad {}']", "resume=true")
    assert len(calls) == 1  # of other prompts


def test_a_head_starts_from_text_and_learns(tmp_path: Path) -> None:
    typed = (*words("adaptformer", "lift"), "classifier@stage1.classifier=cosine_text", names_of(4))
    run_here(tmp_path / "still", *typed, "stage1.optimizer.lr=1e-12")
    text = built().class_text(Prompts().of(DIGITS[:4]))
    start = F.normalize(text.directions @ text.projection.T)
    torch.testing.assert_close(weights(tmp_path / "still", "stage1")["classifier.weight"], start, rtol=0, atol=1e-5)
    run_here(tmp_path / "run", *typed)
    assert (weights(tmp_path / "run", "stage1")["classifier.weight"] - start).abs().max() > 1e-4


def test_a_checkpoint_holds_adapters_and_head_alone(tmp_path: Path) -> None:
    run_here(tmp_path / "run", *words("adaptformer"))
    kept = torch.load(tmp_path / "run" / "stage1" / "checkpoint.pt", weights_only=True)["backbone"]
    own = built(tuning=AdaptFormer(4))
    assert {name for name in kept if name != "file._extra_state"} == {
        f"adapters.{name}" for name in own.adapters.state_dict()
    }
    trunk = ltexp.load(tmp_path / "run").model.backbone.trunk.state_dict()
    assert all(torch.equal(value, own.trunk.state_dict()[name]) for name, value in trunk.items())


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["bias", "norm", "last_blocks", "lora", "adapter", "vpt_shallow", "vpt_deep"])
def test_every_tuning_learns_in_it(choice: str, tmp_path: Path) -> None:
    run_here(tmp_path / "run", *words(choice))
    assert read_record(tmp_path / "run")["status"] == "finished"


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = (*words("lora", "lift", epochs=2), "classifier@stage1.classifier=cosine_text", names_of(4))
    resume_in_each(["stage1"], typed, tmp_path, monkeypatch)


def test_a_linear_probe_learns_its_head_alone_on_features(tmp_path: Path) -> None:
    run_here(tmp_path / "run", *words("frozen", "linear_probe", epochs=2))
    found = weights(tmp_path / "run", "stage1")
    assert {name for name in found if not name.startswith("classifier.")} == {"backbone.file._extra_state"}
    assert read_record(tmp_path / "run")["stages"][0]["features"]["extracted"] == 48


def test_a_finished_head_from_text_is_evaluated_as_it_was_trained(tmp_path: Path) -> None:
    typed = (*words("frozen", "lift"), "classifier@stage1.classifier=cosine_text", names_of(4), "stage1.optimizer.lr=1")
    run_here(tmp_path / "run", *typed)
    (tmp_path / "run" / "text_features.pt").unlink()
    assert evaluate_main(tmp_path / "run") == read_record(tmp_path / "run")["metrics"]["all"]
    assert not (tmp_path / "run" / "text_features.pt").exists()


def evaluate_main(folder: Path, *typed: str) -> float:
    """The accuracy that `ltexp evaluate` keeps."""
    assert evaluate(*parse([str(folder), *typed])) == 0
    newest = max((folder / "evaluations").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return float(json.loads(newest.read_text())["metrics"]["all"])


def test_class_names_classify_over_a_run_that_learned_another_head(tmp_path: Path) -> None:
    run_here(tmp_path / "run", *words("frozen"))
    run_here(tmp_path / "named", "method=zero_shot", *TINY, *clip_words(), names_of(4))
    found = evaluate_main(tmp_path / "run", "classifier=zero_shot", "names=[zero,one,two,three]")
    assert found == read_record(tmp_path / "named")["metrics"]["all"]
    run_here(tmp_path / "plain", "method=ce", *TINY, "stage1.epochs=1", "stage1.batch_size=16")
    with pytest.raises(ConfigError, match=r"^the classifier reads class names, and the backbone has no text tower"):
        evaluate_main(tmp_path / "plain", "classifier=zero_shot", "names=[zero,one,two,three]")


# --- five crops


def test_crops_lie_where_lifts_do() -> None:
    """Of an image that counts its pixels, for 224 and 24 pixels more."""
    whole = torch.arange(248.0 * 248).view(1, 1, 248, 248)
    starts = [divmod(int(crop[0, 0, 0, 0]), 248) for crop in five_crops(whole, 224, 24)]
    assert starts == [(0, 0), (0, 24), (24, 0), (24, 24), (12, 12)]
    assert {crop.shape for crop in five_crops(whole, 224, 24)} == {(1, 1, 224, 224)}


def test_crops_of_a_function_of_no_place_change_nothing_and_others_are_means(tmp_path: Path) -> None:
    run_here(tmp_path / "run", *words("frozen"))
    restored = restore(load(tmp_path / "run" / "config.yaml"), tmp_path / "run", "stage1", None)
    pictures = next(iter(restored.session.evaluation_loader(restored.session.data.test))).inputs
    with torch.no_grad():
        expected = torch.stack([restored.model(crop).logits for crop in five_crops(pictures, 8, 2)]).mean(0)
    found = predict_crops(restored, 2)
    torch.testing.assert_close(torch.from_numpy(found.logits)[: len(expected)], expected, rtol=1e-4, atol=1e-5)
    assert abs(found.logits - restored.predictions().logits).max() > 1e-4
    restored.model.backbone.forward = lambda inputs: torch.ones(len(inputs), 32)
    assert abs(predict_crops(restored, 2).logits - restored.predictions().logits).max() < 1e-6


def test_evaluate_keeps_what_crops_give_and_refuses_what_it_cannot(tmp_path: Path) -> None:
    run_here(tmp_path / "run", *words("frozen"))
    assert 0 <= evaluate_main(tmp_path / "run", "crops=2") <= 100
    assert json.loads((tmp_path / "run" / "evaluations" / "stage1_crops=2.json").read_text())["crops"] == 2
    for typed, message in (
        (["crops=0"], r"^invalid crops=0: expected a whole number of pixels"),
        (["crops=2", "temperature=true"], r"^crops= is for accuracies .*leave out temperature=$"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate_main(tmp_path / "run", *typed)


@pytest.mark.slow
def test_files_are_read_at_the_size_that_is_cropped_and_classes_named_by_their_folders(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", long_tail(4, 8, 2))
    sizes = ("dataset.workers=0", "dataset.image_size=16", "dataset.resize=20", "backbone.image_size=16")
    network = (*clip_words(), "backbone.options.text_cfg.context_length=16")
    typed = ("method=zero_shot", "dataset=image_folder", f"dataset.source.folder={tree}", *network, *sizes)
    run_here(tmp_path / "run", *typed)
    kept = torch.load(tmp_path / "run" / "text_features.pt", weights_only=True)
    named = read_record(tmp_path / "run")["class_names"]
    torch.testing.assert_close(kept["directions"], built().class_text(Prompts().of(named)).directions)
    restored = restore(load(tmp_path / "run" / "config.yaml"), tmp_path / "run", "stage1", None)
    path = sorted(tree.glob("test/*/*.jpg"))[0]
    # of 25 x 20 pixels the middle from round(2.5) = 2 on, of 40 x 32 then from 3.2 on
    picture = np.asarray(
        Image.open(path).convert("RGB").resize((20, 20), Image.Resampling.BILINEAR, box=(3.2, 0, 35.2, 32))
    )
    mean, std = (torch.tensor(restored.session.data.preprocessing[f"channel_{key}"]) for key in ("mean", "std"))
    whole = ((torch.tensor(picture) / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = torch.stack([restored.model(crop).logits for crop in five_crops(whole, 16, 4)]).mean(0)
    torch.testing.assert_close(torch.from_numpy(predict_crops(restored, 4).logits[:1]), expected, rtol=1e-3, atol=1e-4)


# --- refusals, before anything is trained


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("backbone.name=ViT-B-17",), r"invalid backbone\.name=ViT-B-17: .*did you mean 'ViT-B-16'"),
        (
            ("backbone.name=RN50", "backbone.options=null"),
            r"backbone\.name: open_clip's RN50 is not of two plain transformers",
        ),
        (("backbone.image_size=9",), r"invalid backbone\.image_size=9: expected a multiple of .* 4 pixels"),
        (("+backbone.options.visio=2",), r"invalid backbone\.options\.visio=2"),
        (("+backbone.options.vision_cfg.deep=2",), r"vision_cfg has deep"),
        (("backbone.weights=none.pt", "fine_tuning=none"), r"backbone\.weights '.*none\.pt' is no file"),
        (
            ("backbone.weights=null", "fine_tuning=none"),
            r"stage1: the classifier reads class names by random weights: set backbone\.weights=FILE",
        ),
        (
            ("backbone=resnet8", "fine_tuning=none"),
            r"stage1: the classifier reads class names, and the backbone has no text tower: add backbone=clip_vit",
        ),
        (("stage1.classifier.templates=[a photo]",), r"invalid stage1\.classifier\.templates="),
        (("stage1.classifier.templates=[]",), r"invalid stage1\.classifier\.templates="),
        (("stage1.classifier.names=[1,2]",), r"stage1\.classifier\.names"),
    ],
)
def test_bad_settings_are_answered_in_a_line_without_data(typed: tuple[str, ...], message: str) -> None:
    start = [word for word in words() if "backbone" not in word or typed[0] != "backbone=resnet8"]
    with pytest.raises(LtexpError, match=f"^[^\n]*{message}[^\n]*$"):
        check_composition(to_config(composed(*start, "classifier@stage1.classifier=cosine_text", *typed)))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ((), r"stage1\.classifier\.names: the dataset has no class names but their numbers: give one a class"),
        ((names_of(3),), r"stage1\.classifier\.names: 3 names for 4 classes"),
        (
            (
                names_of(4),
                "stage1.classifier.templates=['a photo of a {} of the kind that no one has ever seen anywhere']",
            ),
            r"stage1\.classifier: 'a photo of a zero .*' has 17 tokens, and the text tower reads 16: shorten",
        ),
    ],
)
def test_names_that_are_missing_or_too_long_are_said_before_training(
    typed: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^[^\n]*{message}[^\n]*$"):
        run_here(tmp_path / "run", *words(), "classifier@stage1.classifier=cosine_text", *typed)
    assert not (tmp_path / "run" / "stage1").exists()


def test_without_open_clip_the_choice_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r'^[^\n]*pip install "ltexp\[vit\]"$'):
        check_composition(to_config(composed(*words())))
