"""Pretrained networks: whose names a file may have, what a frozen trunk keeps, what a fresh last block forgets."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from image_trees import long_tail, write_tree
from runs import assert_equal_weights, composed, run_here, weights
from torch import Tensor

from ltexp.errors import CheckpointError, ConfigError
from ltexp.models.classifier import Linear
from ltexp.models.model import Model
from ltexp.models.torchvision_resnet import TorchvisionResNet
from ltexp.randomness import default_generator, generator
from ltexp.training import checkpoint

LAST = "layer4.0."  # of ResNet-10, which has one block a stage


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-10 with running statistics of its own, as a checkpoint file."""
    with default_generator("pretrained"):
        network = TorchvisionResNet("resnet10")
    draws = generator("statistics")
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=draws)
        elif name.endswith("running_mean"):
            value.normal_(generator=draws).mul_(0.1)
    path = tmp_path_factory.mktemp("weights") / "resnet10.pth"
    torch.save(state | {"fc.weight": torch.zeros(5, 512), "fc.bias": torch.zeros(5)}, path)
    return path


def read(path: Path) -> dict[str, Tensor]:
    return {k: v for k, v in torch.load(path, weights_only=True).items() if not k.startswith("fc.")}


def built(file: Path, **settings: Any) -> TorchvisionResNet:
    with default_generator("fresh"):
        return TorchvisionResNet("resnet10", weights=str(file), **settings)


@pytest.mark.parametrize("prefix", ["", "module.", "module.encoder_q.", "module.base_encoder.", "backbone."])
def test_a_files_prefix_is_taken_off_and_other_networks_are_left_out(prefix: str, file: Path, tmp_path: Path) -> None:
    state = {prefix + name: value for name, value in read(file).items()}
    if prefix.endswith(("_q.", "_encoder.")):  # MoCo's head, key encoder and queue
        state |= {f"{prefix}fc.0.weight": torch.zeros(8, 512), "module.queue": torch.zeros(8, 16)}
        state |= {f"module.encoder_k.{name}": torch.zeros_like(value) for name, value in read(file).items()}
    torch.save({"epoch": 7, "state_dict": state}, tmp_path / "file.pth")
    own = built(tmp_path / "file.pth").state_dict()
    torch.testing.assert_close(own, read(file), rtol=0, atol=0)


def test_a_file_that_does_not_fit_says_what_is_missing(file: Path, tmp_path: Path) -> None:
    state = {f"module.encoder_q.{name}": value for name, value in read(file).items() if name != "layer3.0.bn1.weight"}
    torch.save({"state_dict": state}, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"1 name missing, first 'layer3\.0\.bn1\.weight'"):
        built(tmp_path / "cut.pth")
    torch.save({"blocks.0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"none of its 1 names ends as one of this network's.*blocks\.0\.weight"):
        built(tmp_path / "other.pth")


def test_the_last_block_starts_from_the_weights_or_at_random(file: Path) -> None:
    pretrained, fresh = built(file).state_dict(), built(file, fresh_last_block=True).state_dict()
    for name, value in read(file).items():
        assert torch.equal(pretrained[name], value)
        if not name.startswith(LAST):
            assert torch.equal(fresh[name], value), name
    convolutions = [value for name, value in fresh.items() if name.startswith(LAST) and value.ndim == 4]
    assert len(convolutions) == 3
    for weight in convolutions:  # as torch's layers start, which is what the authors' codes have
        bound = weight[0].numel() ** -0.5
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert all((fresh[LAST + f"bn{number}.weight"] == 1).all() for number in (1, 2))


@pytest.mark.parametrize("batch_norm", ["train", "statistics", "frozen"])
def test_a_frozen_trunk_never_learns_and_keeps_no_graph(batch_norm: str, file: Path) -> None:
    backbone = built(file, frozen_trunk=True)
    model = Model(backbone, Linear(512, 5))
    model.set_trainable(batch_norm=batch_norm)
    model.train()
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    of_the_block = {f"backbone.{name}" for name, _ in backbone.named_parameters() if name.startswith(LAST)}
    norms = {name for name in of_the_block if "bn" in name or "downsample.1" in name}
    assert learning == (of_the_block if batch_norm == "train" else of_the_block - norms) | {
        "classifier.weight",
        "classifier.bias",
    }
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    output = model(torch.randn(4, 3, 32, 32, generator=generator("images")), needs=("feature_maps",))
    assert output.feature_maps is not None
    assert [m.requires_grad for m in output.feature_maps] == [False, False, False, True]
    output.logits.square().sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == learning
    moved = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {name for name in before if name.startswith(LAST) and ("running" in name or "tracked" in name)}
    assert moved == (set() if batch_norm == "frozen" else statistics)


def test_mislas_on_a_frozen_trunk_trains_and_shifts_the_last_block_alone(file: Path, tmp_path: Path) -> None:
    """As on Places-LT: image files, pretrained weights, a new last block; here with accumulated gradients as well."""
    write_tree(tmp_path / "tree", long_tail(4, 20))
    data = ("dataset=image_folder", f"dataset.source.folder={tmp_path / 'tree'}", "dataset.image_size=32")
    model = ("backbone=resnet10", "fine_tuning=new_last_block", f"backbone.weights={file}")
    short = ("stage1.epochs=1", "stage2.epochs=1", "stage1.batch_size=16", "stage2.batch_size=16")
    run_here(tmp_path / "run", "method=mislas", *data, *model, *short, "trainer.accumulate=2", "dataset.workers=0")
    one, two = (weights(tmp_path / "run", stage) for stage in ("stage1", "stage2"))
    for name, value in read(file).items():
        first, second = one[f"backbone.{name}"], two[f"backbone.{name}"]
        if not name.startswith(LAST):
            assert torch.equal(first, value), name
            assert torch.equal(second, value), name
        elif "running" in name:
            assert not torch.equal(first, second), name
        elif "tracked" not in name:
            assert not torch.equal(first, value), name
            assert torch.equal(first, second), name


def test_a_finished_stage_needs_its_pretrained_weights_no_more(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pth"
    copy.write_bytes(file.read_bytes())
    settings = ("backbone=resnet10", f"backbone.weights={copy}", "backbone.frozen_trunk=true", "stage1.epochs=1")
    run_here(tmp_path / "one", "method=ce", *settings)
    copy.unlink()
    taken = (f"stage1.checkpoint={tmp_path / 'one'}", "method=ncm", "stage_cache.enabled=false")
    run_here(tmp_path / "two", *settings, *taken)
    assert_equal_weights(
        {k: v for k, v in weights(tmp_path / "one", "stage1").items() if k.startswith("backbone")},
        {k: v for k, v in weights(tmp_path / "two", "stage2").items() if k.startswith("backbone")},
    )


def test_trunks_that_cannot_be_are_answered_at_once() -> None:
    for overrides, answer in [
        (("backbone=resnet10", "backbone.frozen_trunk=true"), "would freeze random weights"),
        (("method=ride_3", "backbone=resnet50", "backbone.weights=IMAGENET1K_V1"), "fine_tuning=none"),
    ]:
        with pytest.raises(ConfigError, match=answer):
            composed("method=ce", *overrides)


def wrapped(state: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The same network as programs save it."""
    averaged = {name: torch.zeros_like(value) for name, value in state.items()}
    return {
        "torch.compile": {f"_orig_mod.{name}": value for name, value in state.items()},
        "compiled in DataParallel": {f"module._orig_mod.{name}": value for name, value in state.items()},
        "a compiled block": {name.replace("layer1.", "layer1._orig_mod."): value for name, value in state.items()},
        "Lightning": {
            "state_dict": {f"model.net.{name}": value for name, value in state.items()} | {"head.w": torch.zeros(2)},
            "epoch": 3,
            "loops": {"fit": {"state": {}}},
        },
        "deep": {"checkpoint": {"nets": {"student": {"encoder": state}, "other": {"weight": torch.zeros(3)}}}},
        "with its average": {"state_dict": state, "state_dict_ema": averaged},
        "MoCo": {f"encoder_q.{k}": v for k, v in state.items()} | {f"encoder_k.{k}": v for k, v in averaged.items()},
    }


@pytest.mark.parametrize("program", wrapped({}))
def test_a_network_is_found_however_a_program_wrapped_it(program: str, file: Path, tmp_path: Path) -> None:
    torch.save(wrapped(read(file))[program], tmp_path / "file.pth")
    torch.testing.assert_close(built(tmp_path / "file.pth").state_dict(), read(file), rtol=0, atol=0)


def test_of_two_equal_networks_in_a_file_none_is_chosen_in_silence(file: Path, tmp_path: Path) -> None:
    torch.save({"student": read(file), "teacher": read(file)}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"holds 2 such networks, behind 'student\.', 'teacher\.'"):
        built(tmp_path / "two.pth")


def _gzip(path: Path) -> None:
    import gzip

    path.write_bytes(gzip.compress(b"weights"))


def _zip(path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.txt", "no weights")


class Unknown:
    """An object that no reader of plain tensors may make."""


OTHER_FILES: dict[str, tuple[Any, str]] = {  # how to write it, what is said
    "text": (lambda path: path.write_text("epoch,loss\n1,2\n"), "a text file, no checkpoint"),
    "yaml": (lambda path: path.write_text("method: mislas\n"), "a text file, no checkpoint"),
    "chinese": (lambda path: path.write_text("图像," * 300), "a text file, no checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "image": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "a PNG image, no checkpoint"),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 9), "damaged, or no checkpoint"),
    "gzip": (_gzip, "a gzip archive, no checkpoint"),
    "zip": (_zip, "damaged, or no checkpoint"),
    "pickle": (lambda path: torch.save(Unknown(), path), "objects other than tensors and plain containers"),
    "safetensors": (
        lambda path: path.write_bytes((60).to_bytes(8, "little") + b'{"w":{"dtype":"F32","shape":[1]}}'),
        "a safetensors file",
    ),
    "lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "run git lfs pull"),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_any_other_file_is_answered_in_one_line(kind: str, tmp_path: Path) -> None:
    write, said = OTHER_FILES[kind]
    write(tmp_path / "file")
    for reads in (lambda: built(tmp_path / "file"), lambda: checkpoint.read(tmp_path / "file")):
        with pytest.raises(CheckpointError) as caught:
            reads()
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(3), {"schema": 3}, {"schema": [3]}, "text", None])
def test_plain_contents_that_are_no_network_are_answered_in_one_line(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file")
    with pytest.raises(CheckpointError, match="holds no state_dict"):
        built(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"is not a stage checkpoint|lacks parts of a stage checkpoint"):
        checkpoint.read(tmp_path / "file")
