"""Mixing inside the network: the rest of the network goes on with mixed rows, and nothing else has changed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import TINY, composed, run_here, tiny
from texts import write_articles
from torch import Tensor, nn

from ltexp.config import to_config
from ltexp.data.loader import Batch
from ltexp.distributed import own_rows, world_size
from ltexp.errors import ConfigError
from ltexp.evaluation.record import read_record
from ltexp.models.cifar_resnet import CifarResNet
from ltexp.training.inside import acting, check_inside
from ltexp.training.manifold_mixup import ManifoldMixup
from ltexp.training.mixing import Mixed, Mixup

COUNTS = torch.tensor([9, 5, 2])
CHOSEN = "mixing@stage1.mixing=manifold_mixup"


def batch_of(inputs: Tensor, size: int | None = None, epoch: int = 0, step: int = 0) -> Batch:
    labels = torch.arange(len(inputs))
    return Batch(inputs, labels, labels, 1.0, size or len(inputs), epoch, step)


def at(place: str) -> ManifoldMixup:
    return ManifoldMixup(COUNTS, places=[place])


def test_the_rest_of_the_network_sees_mixed_maps_by_hand() -> None:
    torch.manual_seed(0)
    net = CifarResNet(8).eval()
    images = torch.randn(6, 3, 8, 8)
    mixed = at("layer2")(batch_of(images), seed=3)
    assert mixed.inputs is images
    weight = mixed.targets.weight
    maps = net.layer2(net.layer1(net.bn1(net.conv1(images)).relu()))
    expected = net.layer3(weight * maps + (1 - weight) * maps[[3, 4, 5, 0, 1, 2]]).mean((2, 3))
    with acting(net, mixed.inside):
        found = net(images)
    torch.testing.assert_close(found, expected)
    assert not torch.equal(net(images), found)  # afterwards it is the network that it was


def test_at_the_inputs_it_is_mixup() -> None:
    images = torch.randn(6, 3, 4, 4)
    found, expected = at("inputs")(batch_of(images), seed=3), Mixup(COUNTS, alpha=2.0)(batch_of(images), seed=3)
    assert found.inside is None
    assert torch.equal(found.inputs, expected.inputs)
    assert found.targets.weight == expected.targets.weight
    assert torch.equal(found.targets.partner_labels, expected.targets.partner_labels)


def test_behind_a_linear_map_it_is_mixup_at_the_inputs() -> None:
    """The limit case: a linear map of mixed inputs is the mix of their maps."""
    torch.manual_seed(0)
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.randn(4, 3, 2, 2)
    mixed = at("1")(batch_of(images), seed=0)
    with acting(net, mixed.inside):
        found = net(images)
    torch.testing.assert_close(found, net(at("inputs")(batch_of(images), seed=0).inputs))


def test_each_place_is_as_likely_and_its_draw_leaves_the_weights_alone() -> None:
    mixing, images = ManifoldMixup(COUNTS, places=["inputs", "a", "b", "c"]), torch.zeros(2, 1)
    drawn = [mixing(batch_of(images, step=step), seed=0) for step in range(2000)]
    places = [mixed.inside.layer if mixed.inside else "inputs" for mixed in drawn]
    for place in ("inputs", "a", "b", "c"):
        assert places.count(place) == pytest.approx(500, abs=60)  # three standard deviations
    plain = Mixup(COUNTS, alpha=2.0)
    assert [mixed.targets.weight for mixed in drawn] == [plain.draw_weight(0, 0, step) for step in range(2000)]


def gradients(rows: int) -> tuple[Tensor, Tensor]:
    """(features of this process's rows, gradients of the layer before the mixing) of a batch of `rows` images."""
    torch.manual_seed(0)
    images, ahead = torch.randn(rows, 6), torch.randn(rows, 3)
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    mine = own_rows(rows)
    mixed: Mixed = at("0")(batch_of(images[mine], size=rows), seed=1)
    with acting(net, mixed.inside):
        features = net(mixed.inputs)
    (features * ahead[mine]).sum().backward()
    return features.detach(), net[0].weight.grad


@pytest.mark.parametrize("rows", [8, 6])  # of 6 rows a partner is the other process's
def test_two_processes_mix_as_one(run_on_ranks, rows: int) -> None:
    """Gradients flow back through the partners, whichever process holds them."""
    assert world_size() == 1
    features, gradient = gradients(rows)
    shares = run_on_ranks(gradients, 2, rows)
    for number, (own, _) in enumerate(shares):
        torch.testing.assert_close(own, features[number::2])
    torch.testing.assert_close(sum(each for _, each in shares), gradient)


def test_a_run_trains_inside_its_network(tmp_path: Path) -> None:
    """Each place leads to other weights, and the accuracy is that of images as they are."""
    runs = {place: tmp_path / place for place in ("inputs", "layer1", "layer3")}
    for place, folder in runs.items():
        run_here(folder, *tiny("ce"), CHOSEN, f"stage1.mixing.places=[{place}]")
    losses = {(folder / "stage1" / "metrics.csv").read_text() for folder in runs.values()}
    assert len(losses) == len(runs)
    assert read_record(runs["layer3"])["metrics"]


def test_texts_are_mixed_behind_their_embedding(tmp_path: Path) -> None:
    write_articles(tmp_path / "data")
    words = ("method=ce", *TINY, "dataset=ag_news_lt", f"paths.data={tmp_path / 'data'}", "stage1.epochs=1", CHOSEN)
    run_here(tmp_path / "run", *words, "stage1.mixing.places=[embedding,dropout]")
    assert read_record(tmp_path / "run")["metrics"]
    with pytest.raises(ConfigError, match="is for images and the dataset holds text"):
        run_here(tmp_path / "other", *words, "stage1.mixing.places=[embedding,inputs]")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("stage1.mixing.places=[layer9]",), r"stage1\.mixing: unknown part of the backbone 'layer9'.*layer1"),
        (("stage1.mixing.places=[]",), r"stage1\.mixing\.places=\[\]: expected a list of one or more"),
        (("trainer.accumulate=2",), r"set trainer\.accumulate=1"),
        (("trainer.compile=true",), r"set trainer\.compile=false"),
        (("method=ride_3",), r"unknown part of the backbone 'layer2'.*branches"),
        (("method=kd", "mixing@stage2.mixing=manifold_mixup"), r"set mixing@stage2\.mixing=mixup"),
        (("method=kd", "mixing@stage2.mixing=manifold_mixup"), r"where its teacher does not look"),
    ],
)
def test_what_it_cannot_go_with_is_refused(tmp_path: Path, words: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        run_here(tmp_path / "run", "method=ce", *TINY, *words, CHOSEN)


def test_steps_that_are_replayed_are_refused() -> None:
    """Where there is a GPU for them."""
    config = to_config(composed("method=ce", CHOSEN))
    trainer = replace(config.trainer, step_graph=True)
    with pytest.raises(ConfigError, match=r"set trainer\.step_graph=false"):
        check_inside("stage1", config.stages["stage1"], ["layer1"], trainer)
