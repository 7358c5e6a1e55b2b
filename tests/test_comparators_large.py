"""OLTR and Hybrid-SC: the loss of centroids and the contrastive loss against written-out sums, and their runs."""

from pathlib import Path

import pytest
import torch
from image_trees import write_tree
from runs import composed, run_here, tiny, weights
from torch import Tensor, nn
from torch.nn import functional as F

from ltexp.errors import ConfigError
from ltexp.evaluation.record import read_record
from ltexp.losses.centroid_distance import CentroidDistance
from ltexp.losses.context import BatchContext, StreamBatch
from ltexp.losses.hybrid_contrastive import HybridContrastive
from ltexp.losses.supervised_contrastive import SupervisedContrastive
from ltexp.models.memory import CentroidMemory, ModulatedAttention
from ltexp.outputs import ModelOutput

COUNTS = torch.tensor([3, 9, 5])
LABELS = torch.arange(3)
ROWS, COLUMNS = torch.arange(3.0)[:, None], torch.arange(4.0)
SIDE = "stage2.modules.memory.side=2"  # of the last maps of digits


def test_the_loss_of_centroids_is_that_of_the_authors_code() -> None:
    """Value and gradient of the first centroid, and the features' own gradient by finite differences."""
    features = torch.sin(3 * ROWS + 5 * COLUMNS).requires_grad_()
    centroids = torch.cos(2 * ROWS + COLUMNS).requires_grad_()
    loss = CentroidDistance(COUNTS)
    value = loss(ModelOutput(torch.zeros(3, 3), extra={"direct_features": features, "centroids": centroids}), LABELS)
    assert value.item() == pytest.approx(2.706732, abs=2e-6)
    value.backward()
    assert centroids.grad is not None
    assert features.grad is not None
    torch.testing.assert_close(
        centroids.grad[0], torch.tensor([0.16191, 0.24745, 0.02346, -0.26879]), atol=2e-5, rtol=0
    )

    def at(f: Tensor) -> Tensor:
        c = centroids.detach().double()
        apart = torch.cdist(f, c).square()
        away = (apart.sum() - apart.trace()) / 9
        return apart.trace() / 6 + 0.01 * (10 - away).clamp_min(0)

    again = features.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(at(again), again)
    torch.testing.assert_close(features.grad.double(), expected, atol=1e-5, rtol=1e-4)


def test_far_centroids_are_not_pushed_further() -> None:
    extra = {"direct_features": torch.zeros(3, 4), "centroids": 100 * torch.eye(3, 4)}
    value = CentroidDistance(COUNTS)(ModelOutput(torch.zeros(3, 3), extra=extra), LABELS)
    assert value.item() == pytest.approx(100**2 / 2)


def test_attention_starts_as_the_identity_and_then_attends() -> None:
    torch.manual_seed(0)
    attention, x = ModulatedAttention(6, 4), torch.randn(2, 6, 2, 2)
    torch.testing.assert_close(attention(x), x)
    nn.init.normal_(attention.back.weight)
    spatial = attention.spatial(x.flatten(1)).softmax(1)
    for row in range(2):
        theta, phi, g = (part(x)[row].flatten(1) for part in (attention.theta, attention.phi, attention.g))
        for place in range(4):
            weight = torch.stack([theta[:, place] @ phi[:, other] for other in range(4)]).softmax(0)
            answer = attention.back.weight[:, :, 0, 0] @ (g * weight).sum(1)
            expected = x[row].flatten(1)[:, place] + spatial[row, place] * answer
            torch.testing.assert_close(attention(x)[row].flatten(1)[:, place], expected, rtol=1e-4, atol=1e-5)


def test_a_memory_starts_at_class_means_and_its_logits_are_as_written() -> None:
    torch.manual_seed(0)
    memory, maps, labels = CentroidMemory(4, 3, side=2), torch.randn(7, 4, 2, 2), torch.tensor([0, 1, 2, 2, 1, 0, 0])
    with torch.no_grad():
        for rows in (slice(0, 4), slice(4, 7)):
            memory.see(labels[rows], [maps[rows]], None, None)
        memory.seen()
    direct = memory.reduce(maps.mean((2, 3)))
    means = torch.stack([direct[labels == label].mean(0) for label in range(3)])
    torch.testing.assert_close(memory.centroids, means)
    vectors, biases = torch.randn(3, 4), torch.randn(3)
    logits, f, centroids = memory([maps], vectors, biases)
    row = f[0]
    o = (vectors @ row + biases).softmax(0) @ centroids
    u = 10 / (row - centroids).norm(dim=1).min() * (row + torch.tanh(memory.selector(row)) * o)
    expected = 16 * (F.normalize(memory.weight) @ (u / (1 + u.norm())))
    torch.testing.assert_close(logits[0], expected, rtol=1e-4, atol=1e-5)


def test_the_contrastive_loss_is_its_sum_written_out() -> None:
    torch.manual_seed(0)
    projections, labels = F.normalize(torch.randn(2, 4, 5), dim=-1), torch.tensor([0, 1, 0, 2])
    everything, of = projections.flatten(0, 1), labels.repeat(2)
    losses = []
    for i in range(8):
        others = [j for j in range(8) if j != i]
        total = sum(((everything[i] @ everything[j]) / 0.1).exp() for j in others)
        positive = [j for j in others if of[j] == of[i]]
        losses.append(
            -sum((((everything[i] @ everything[j]) / 0.1).exp() / total).log() for j in positive) / len(positive)
        )
    expected = torch.stack(losses).view(2, 4).mean(0)
    output = ModelOutput(torch.zeros(4, 3), extra={"projections": projections})
    found = SupervisedContrastive(COUNTS, 0.1).per_sample_in_context(output, labels, BatchContext(size=4))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_hybrid_is_contrastive_at_first_and_cross_entropy_at_last() -> None:
    torch.manual_seed(0)
    projections, logits = F.normalize(torch.randn(2, 3, 5), dim=-1), torch.randn(3, 3)
    output = ModelOutput(torch.zeros(3, 3), extra={"projections": projections})
    streams = {"balanced": StreamBatch(ModelOutput(logits), LABELS)}
    compared = SupervisedContrastive(COUNTS, 0.1)(output, LABELS)
    classified = F.cross_entropy(logits, LABELS)
    for epoch in (0, 100, 200):
        context = BatchContext(epoch=epoch, max_epochs=200, streams=streams)
        expected = compared.lerp(classified, (epoch / 200) ** 2)
        torch.testing.assert_close(HybridContrastive(COUNTS)(output, LABELS, context), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "dataset"),
    [
        *(
            (method, dataset)
            for method in ("meta_learning", "metasaug")
            for dataset in ("imagenet_lt", "places_lt", "inat18")
        ),
        *(("mw_net", "imagenet_lt"), ("oltr", "imagenet_lt"), ("oltr", "places_lt")),
        *(("balms", "imagenet_lt"), ("balms", "places_lt"), ("balms", "inat18")),
    ],
)
def test_configs_of_the_large_sets_train_on_a_tree(method: str, dataset: str, tmp_path: Path) -> None:
    """With the data set's own settings of the method, but on a generated tree and a small network."""
    tree = write_tree(tmp_path / "tree", [9, 6, 4, 3], test=2, validation=3)
    plain = composed(f"method={method}", f"dataset={dataset}", small=False)
    stages = [name for name in ("stage1", "stage2") if plain[name]]
    words = [
        *(
            f"method={method}",
            f"dataset={dataset}",
            "backbone=resnet10",
            "fine_tuning=none",
            "stage_cache.enabled=false",
        ),
        *(f"dataset.source.folder={tree}", "dataset.source.train=train.txt", "dataset.source.validation=val.txt"),
        *("dataset.source.test=test.txt", "dataset.source.num_classes=4", "dataset.source.published=null"),
        *("dataset.image_size=64", "dataset.resize=72", "dataset.workers=0"),
    ]
    if dataset == "inat18":
        words = [text for text in words if "validation" not in text]
    words += [f"{stage}.{key}" for stage in stages for key in ("epochs=1", "batch_size=8")]
    if method == "oltr" and dataset != "places_lt":  # whose memory has no attention
        words.append(SIDE)
    if plain[stages[-1]]["streams"].get("meta", {}).get("held_out"):
        words.append(f"{stages[-1]}.streams.meta.held_out.per_class=2")
    run_here(tmp_path / "run", *(text for text in words if text))
    record = read_record(tmp_path / "run")
    held = record.get("held_out", {})
    expected = (
        {} if method == "oltr" or dataset == "inat18" else {f"{stages[-1]}.meta": {"per_class": 2, "of": "validation"}}
    )
    assert held == expected
    assert [stage["epochs"] for stage in record["stages"]] == [1] * len(stages)


def test_a_map_of_another_size_has_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"invalid stage2.modules.memory.side=7: expected that of the last map"
    ) as caught:
        run_here(tmp_path / "run", *tiny("oltr"), "stage2.modules.memory.side=7")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "stage1").exists()


def test_centroids_learn_at_their_own_rate(tmp_path: Path) -> None:
    """Without a rate of their own they stay at the class means, which the control moves."""
    for name, rate in {"still": 0.0, "moved": 1.0}.items():
        run_here(
            tmp_path / name,
            *tiny("oltr"),
            f"stage2.lr_factors.modules.memory.centroids={rate}",
            "stage2.optimizer.weight_decay=0",
        )
    still, moved = (weights(tmp_path / name, "stage2") for name in ("still", "moved"))
    assert not torch.equal(still["modules.memory.centroids"], moved["modules.memory.centroids"])
    assert still["modules.memory.centroids"].any()


def test_a_memory_that_goes_on_from_another_runs_keeps_its_centroids(tmp_path: Path) -> None:
    run_here(tmp_path / "before", *tiny("oltr", epochs=1))
    start = f"stage2.modules.memory.start={tmp_path / 'before' / 'stage2'}"
    run_here(tmp_path / "after", *tiny("oltr", epochs=1), start, "stage2.lr_factors.modules.memory.centroids=0")
    before, after = (weights(tmp_path / name, "stage2")["modules.memory.centroids"] for name in ("before", "after"))
    assert torch.equal(before, after)
