"""What a GPU computes, against the CPU: `make gpu` (docs/gpu.md). The same tests run on a CPU as well."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from choices import build, context_of, full_output, names
from image_trees import write_tree
from runs import TINY, assert_equal_weights, composed, run_here, tiny, trained_stages, weights
from test_every_method import Killed, courses, every_method, kill_in
from test_step_graph import TELLING, never_captured, takes_several_passes
from torch import Tensor
from torch.utils._pytree import tree_map_only

from benchmarks import gpu, side_by_side
from ltexp.config import to_config
from ltexp.config.build import build as build_node
from ltexp.data.images.loader import ImageLoader
from ltexp.data.types import ImageSplit
from ltexp.errors import TrainingError
from ltexp.launching.devices import free_gpus, visible_gpus
from ltexp.losses.cross_entropy import CrossEntropy
from ltexp.training.session import Session

COUNTS = torch.tensor([40, 20, 15, 6, 4])
OF_THE_DEVICE = ("equalization", "gaussian_clouded")  # losses whose draws a device makes by its own generator
QUICK = ("ce", "mislas")
AUGMENTATIONS = [name for name in names("augmentation") if not name.endswith(("_files", "resized_crop"))]
cuda = pytest.mark.cuda


def words_for(device: str, *words: str) -> tuple[str, ...]:
    return *words, f"trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}"


def on(device: str, value: Any) -> Any:
    """A copy with its tensors on the device."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone().to(device), value)


@pytest.mark.parametrize("name", names("loss"))
def test_each_loss_and_its_gradient_equal_the_cpus(name: str, device: str) -> None:
    draws, labels = torch.Generator().manual_seed(0), torch.arange(16) % 5
    logits = torch.rand(16, 5, generator=draws) * 2 - 1
    found = {}
    for place in ("cpu", device):
        loss = build("loss", name, class_counts=COUNTS).to(place)
        given = full_output(logits)
        fields = {key: on(place, value) for key, value in vars(given).items()}
        output = type(given)(**fields)
        leaf = output.logits.requires_grad_()
        value = loss(output, labels.to(place), context_of(loss, output, labels.to(place), 9))
        if value.requires_grad:
            value.backward()
        found[place] = value.detach().cpu(), torch.zeros_like(logits) if leaf.grad is None else leaf.grad.cpu()
    assert all(tensor.isfinite().all() for tensor in found[device])
    if device == "cpu" or name not in OF_THE_DEVICE:
        torch.testing.assert_close(found[device], found["cpu"], rtol=1e-4, atol=1e-5)


def batches(device: str, augmentation: str, sampler: str) -> list[Any]:
    """An epoch of random images."""
    draws = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), COUNTS)
    images = draws.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    split = ImageSplit(images=images, labels=labels, index=np.arange(len(labels)))
    channels = {"channel_mean": (0.5, 0.5, 0.5), "channel_std": (0.25, 0.25, 0.25)}
    order = build("sampler", sampler, labels=torch.from_numpy(labels), class_counts=COUNTS)
    made = ImageLoader(
        split, batch_size=16, device=device, augmentation=build("augmentation", augmentation), sampler=order, **channels
    )
    return list(made)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_augmentation_gives_the_cpus_images(name: str, device: str) -> None:
    """But for pixels at which rounding decides, of AutoAugment's and RandAugment's operations."""
    pairs = zip(*(batches(place, name, "instance_balanced") for place in (device, "cpu")), strict=True)
    for ours, theirs in pairs:
        for one, other in ((ours.inputs, theirs.inputs), (ours.views, theirs.views)):
            if one is not None:
                away = (one.cpu() - other).abs() > 1e-3
                assert away.float().mean() < 1e-3


@pytest.mark.parametrize("name", [name for name in names("sampler") if name != "deferred"])
def test_each_sampler_shows_the_same_images(name: str, device: str) -> None:
    for ours, theirs in zip(batches(device, "none", name), batches("cpu", "none", name), strict=True):
        assert torch.equal(ours.index.cpu(), theirs.index)
        assert torch.equal(ours.labels.cpu(), theirs.labels)


def losses(folder: Path, method: str) -> list[float]:
    return [float(row["train_loss"]) for stage in trained_stages(method) for row in courses(folder, stage)]


@pytest.mark.parametrize("method", every_method(()))
def test_each_method_trains_as_on_the_cpu(method: str, device: str, tmp_path: Path) -> None:
    """The loss of each stage's first epoch; later ones drift apart, as sums in another order do."""
    run_here(tmp_path / "cpu", *tiny(method, epochs=1))
    run_here(tmp_path / device, *words_for(device, *tiny(method, epochs=1)), device=device)
    ours, theirs = losses(tmp_path / device, method), losses(tmp_path / "cpu", method)
    assert ours == pytest.approx(theirs, rel=0.1)
    final = [json.loads((tmp_path / name / "record.json").read_text()) for name in (device, "cpu")]
    assert final[0]["status"] == final[1]["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("method", ["ce", "mislas", "gcl", "kps", "paco"])
def test_half_precision_stays_near_single(method: str, precision: str, device: str, tmp_path: Path) -> None:
    if (device, precision) == ("cpu", "16-mixed"):
        pytest.skip("fp16 with loss scaling is for GPUs")
    if device == "cpu" and method not in QUICK:
        pytest.skip("on a CPU of the quick methods alone")
    words = words_for(device, *tiny(method, epochs=1))
    run_here(tmp_path / "single", *words, device=device)
    run_here(tmp_path / "half", *words, f"trainer.precision={precision}", device=device)
    assert losses(tmp_path / "half", method) == pytest.approx(losses(tmp_path / "single", method), rel=0.1)


@pytest.mark.slow
def test_a_killed_run_resumes(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit-equal on a CPU; on a GPU, where some sums are not always in one order, near."""
    words = words_for(device, *tiny("mislas"))
    run_here(tmp_path / "whole", *words, device=device)
    with monkeypatch.context() as context:
        kill_in("stage1", context)
        with pytest.raises(Killed):
            run_here(tmp_path / "resumed", *words, "resume=true", device=device)
    run_here(tmp_path / "resumed", *words, "resume=true", device=device)
    one, other = (weights(tmp_path / name, "stage2") for name in ("whole", "resumed"))
    assert_equal_weights(one, other, tolerance=0.0 if device == "cpu" else 1e-2)


@pytest.mark.slow
def test_batches_of_files_arrive_whole(device: str, tmp_path: Path) -> None:
    """Pinned copies on a stream of their own, by workers, each of an epoch's batches as on the CPU."""
    write_tree(tmp_path / "tree", [9, 5, 3])
    words = [
        "dataset=image_folder",
        f"dataset.source.folder={tmp_path / 'tree'}",
        "backbone=resnet10",
        "dataset.workers=2",
    ]
    config = to_config(composed("method=ce", *words, "dataset.image_size=24", "dataset.resize=28"))
    data = build_node(config.dataset, root=config.paths.data, path="dataset")
    made = {}
    for place in ("cpu", device):
        session = Session(config, tmp_path, data, torch.device(place))
        loader = session.loader(data.train, batch_size=4)
        made[place] = [(batch.inputs.cpu(), batch.labels.cpu()) for batch in loader]
        loader.close()
    torch.testing.assert_close(made[device], made["cpu"], rtol=1e-5, atol=1e-5)


def test_memory_that_runs_out_is_said_in_a_line(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CrossEntropy, "forward", lambda *_, **__: torch.empty(2**50, device=device))
    where = "GPU" if device == "cuda" else "machine"
    with pytest.raises(TrainingError, match=rf"stage1: the {where}'s memory is not enough .*accumulate=2"):
        run_here(tmp_path / "run", *words_for(device, *tiny("ce", epochs=1)), device=device)


@cuda
@pytest.mark.parametrize(
    ("method", "precision"),
    [*((name, "32-true") for name in names("method")), *((name, "bf16-mixed") for name in TELLING)],
)
def test_steps_replayed_from_cuda_graphs_equal_steps_that_run(
    method: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first epoch's loss, within what sums in another order make."""
    if takes_several_passes(method):
        pytest.skip("refused: the steps of this method look ahead")
    words = [*words_for("cuda", *tiny(method, epochs=2)), "trainer.step_graph=true", f"trainer.precision={precision}"]
    run_here(tmp_path / "replayed", *words, device="cuda")
    with never_captured(monkeypatch):
        run_here(tmp_path / "run", *words, device="cuda")
    assert losses(tmp_path / "replayed", method) == pytest.approx(losses(tmp_path / "run", method), rel=0.02)


@cuda
def test_a_job_of_a_sweep_sees_the_gpu_that_it_holds_alone() -> None:
    gpus = visible_gpus() or []
    with free_gpus(1, 1) as held:
        assert set(held) <= set(gpus)
        seen = "import torch; print(torch.cuda.device_count(), torch.ones(2, device='cuda').sum().item())"
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(held)}
        told = subprocess.run([sys.executable, "-c", seen], env=environment, capture_output=True, text=True, check=True)
        assert told.stdout.split() == ["1", "2.0"]


@cuda
@pytest.mark.slow
def test_two_jobs_of_a_sweep_share_out_the_gpus(tmp_path: Path) -> None:
    """Side by side where there are two, one after the other where there is one; both finish."""
    words = ["method=ce", *TINY, "stage1.epochs=1", "evaluation.every=0", "evaluation.figures=false", "logger=none"]
    command = [sys.executable, "-m", "ltexp", "train", "-m", "launcher=joblib", "seed=0,1", *words]
    subprocess.run([*command, f"hydra.sweep.dir={tmp_path}", f"paths.outputs={tmp_path}"], check=True)
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/record.json")]
    assert [record["status"] for record in records] == ["finished"] * 2
    assert all(record["environment"]["device"] != "cpu" for record in records)


def test_the_benchmark_of_a_gpu_measures_and_writes(tmp_path: Path) -> None:
    """On the CPU, of two steps: a figure for what works, a line for what does not, and both files."""
    words = ["trainer.accelerator=cpu", "backbone=resnet8", f"paths.data={tmp_path}"]
    speeds = list(gpu.measured([("ce", "stage1")], ["32-true"], [False], 2, 2, *words))
    assert speeds[0].ms_per_step == pytest.approx(1000 * 128 / (speeds[0].images_per_second or 0))
    wrong = gpu.Speed("mixup", "stage1", "bf16-mixed", step_graph=True, error="ConfigError: no GPU")
    gpu.write(tmp_path, gpu.Tests(3, ["test_x[cuda]"], 1, 12.0), [*speeds, wrong], "4 runs on one card")
    kept, shown = json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()
    assert [speed["error"] for speed in kept["speeds"]] == ["", "ConfigError: no GPU"]
    assert kept["tests"]["failed"] == ["test_x[cuda]"]
    assert "3 tests passed, 1 failed, 1 skipped" in shown
    assert "| mixup | stage1 | bf16-mixed | replayed | ConfigError: no GPU |  |" in shown
    assert shown.endswith("4 runs on one card\n")


@pytest.mark.slow
def test_the_rate_of_runs_side_by_side_is_of_their_own_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("dataset=digits_lt", "backbone=resnet8", "trainer.accelerator=cpu", f"paths.outputs={tmp_path}")
    assert 0 < side_by_side.seconds(2, 1, *words) < 60
    monkeypatch.setattr(side_by_side, "seconds", lambda runs, epochs, *_: {1: 10.0, 4: 16.0}[runs] * epochs)
    assert side_by_side.rate(4, 2) == pytest.approx(2.5)


def test_the_seconds_of_mislas_are_those_of_its_fastest_steps() -> None:
    """(200 * 2 ms + 10 * 1 ms) * 85 steps."""
    speeds = [gpu.Speed("mixup", "stage1", "32-true", False, ms, 1.0) for ms in (3.0, 2.0)]
    assert gpu.mislas_seconds(speeds) is None
    stage2 = gpu.Speed("mislas", "stage2", "32-true", False, 1.0, 1.0)
    assert gpu.mislas_seconds([*speeds, stage2]) == pytest.approx(34.85)


def test_the_tests_of_a_gpu_are_counted_and_those_that_fail_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "FOLDER", tmp_path)
    own = tmp_path / "test_own.py"
    own.write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert False\n@pytest.mark.skip\ndef test_c(): pass\n"
    )
    tests = gpu.run_tests("", str(own), "-p", "no:cacheprovider", f"--rootdir={tmp_path}", "-c", os.devnull)
    assert (tests.passed, tests.failed, tests.skipped) == (1, ["test_b"], 1)
