"""Methods from outside: each folder of tests/extensions is a user's own project, and nothing of ltexp knows of it."""

import ast
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import TINY, composed, run_here, tiny, trained_stages, weights
from test_distributed_methods import compare
from test_every_method import resume_in_each
from torch import Tensor, nn

from ltexp import distributed
from ltexp.config.build import build
from ltexp.data.loader import Batch
from ltexp.errors import ConfigError
from ltexp.evaluation.record import read_record
from ltexp.losses.base import Loss
from ltexp.losses.context import BatchContext, StreamBatch
from ltexp.outputs import ModelOutput

ROOT = Path(__file__).parents[1]
FOLDERS = Path(__file__).parent / "extensions"
DOCS = (ROOT / "docs" / "parts.md").read_text(encoding="utf-8")
TERM = "stage1.terms.contrastive.loss"


@dataclass(frozen=True)
class Extension:
    """How a folder's method is trained.

    Attributes:
        method: its name.
        control: what takes its effect away, so that the weights have to differ.
        overrides: what else chooses it.
        epochs: after which it has an effect.
    """

    method: str
    control: str
    overrides: tuple[str, ...] = ()
    epochs: int = 1


EXTENSIONS = {
    "cutmix": Extension("my_cutmix", "mixing@stage1.mixing=mixup"),
    "contrastive": Extension("contrastive", "stage1.terms.contrastive.weight=0"),
    "two_branches": Extension("two_branches", "sampler@stage1.streams.reversed.sampler=instance_balanced", epochs=2),
    "adaptive_sam": Extension("asam", "step@stage1.step=sam"),
    "prompted_vit": Extension("prompted_vit", "stage1.trainable.backbone=false"),
    "experiment": Extension("crt", "stage1.terms.rare.weight=0", ("experiment=rare_classes",)),
}


def settings(folder: str, *keys: str, epochs: int = 2) -> tuple[str, ...]:
    """A run of the folder's method on 48 digits; `keys` on each of its stages."""
    extension = EXTENSIONS[folder]
    return (*tiny(extension.method, *keys, epochs=epochs, project=FOLDERS / folder), *extension.overrides)


def node_of(folder: str, *path: str) -> Any:
    """A part of stage 1 as the folder's method composes it."""
    extension = EXTENSIONS[folder]
    plain = composed(f"method={extension.method}", *extension.overrides, project=FOLDERS / folder)
    for key in path:
        plain = plain[key]
    return plain


@pytest.mark.parametrize("folder", EXTENSIONS)
def test_it_trains_and_its_part_counts(folder: str, tmp_path: Path) -> None:
    """Against the control, whose weights must differ."""
    project, overrides = FOLDERS / folder, settings(folder, epochs=EXTENSIONS[folder].epochs)
    run_here(tmp_path / "run", *overrides, project=project)
    run_here(tmp_path / "control", *overrides, EXTENSIONS[folder].control, project=project)
    assert read_record(tmp_path / "run")["status"] == "finished"
    run, control = (weights(tmp_path / name, "stage1")["classifier.weight"] for name in ("run", "control"))
    assert run.isfinite().all()
    assert (run - control).abs().max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("folder", EXTENSIONS)
def test_killed_and_resumed_equals_uninterrupted(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = FOLDERS / folder
    stages = trained_stages(EXTENSIONS[folder].method, project)
    resume_in_each(stages, settings(folder), tmp_path, monkeypatch, project)


@pytest.mark.slow
@pytest.mark.parametrize("folder", EXTENSIONS)
def test_two_processes_train_what_one_trains(folder: str, tmp_path: Path, run_on_ranks: Any) -> None:
    odd = "dataset.max_per_class=25"  # 49 images: the shares of the last batch, of 17, are unequal
    overrides = (*settings(folder, "batch_norm=frozen", epochs=EXTENSIONS[folder].epochs), odd)
    compare(tmp_path, 2, overrides, run_on_ranks, FOLDERS / folder)


class OnOwnRows(Loss):
    """The supervised contrastive loss of a process that does not know of the others."""

    needs = frozenset({"projections"})

    def __init__(self, class_counts: Tensor, temperature: float) -> None:
        import contrastive

        super().__init__(class_counts)
        self.loss = contrastive.SupervisedContrastive(class_counts, temperature)

    def per_sample_in_context(self, output: ModelOutput, target: Tensor, context: BatchContext) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "active", lambda: False)
            return self.loss.per_sample_in_context(output, target, BatchContext())


@pytest.mark.slow
def test_the_comparison_notices_a_contrastive_loss_of_each_process(tmp_path: Path, run_on_ranks: Any) -> None:
    """The control: where each process compares its own images alone, the weights do differ."""
    overrides = (*settings("contrastive", "batch_norm=frozen", epochs=1), f"{TERM}._target_={__name__}.OnOwnRows")
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        compare(tmp_path, 2, overrides, run_on_ranks, FOLDERS / "contrastive")


@pytest.mark.slow
@pytest.mark.parametrize("folder", EXTENSIONS)
def test_the_command_trains_it_from_its_folder(folder: str, tmp_path: Path) -> None:
    extension, project = EXTENSIONS[folder], FOLDERS / folder
    chosen = extension.overrides or (f"method={extension.method}",)
    command = [sys.executable, "-m", "ltexp", "train", "--config-dir", str(project / "conf"), *chosen, *TINY]
    command += ["stage1.epochs=1", "trainer.accelerator=cpu", "logger=none", f"hydra.run.dir={tmp_path / 'run'}"]
    path = os.pathsep.join([str(project), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert read_record(tmp_path / "run")["status"] == "finished"


def python_files(folder: str) -> list[Path]:
    return sorted((FOLDERS / folder).glob("*.py"))


def config_files(folder: str) -> list[Path]:
    return sorted((FOLDERS / folder / "conf").rglob("*.yaml"))


@pytest.mark.parametrize("folder", EXTENSIONS)
def test_it_touches_nothing_of_the_core(folder: str) -> None:
    """It replaces no file, changes no object and uses no private name of ltexp, which does not name it either."""
    for path in config_files(folder):
        assert not (ROOT / "conf" / path.relative_to(FOLDERS / folder / "conf")).exists()
    ours = [*(ROOT / "ltexp").rglob("*.py"), *(ROOT / "conf").rglob("*.yaml")]
    for path in python_files(folder):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            name.asname or name.name: f"{node.module}.{name.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for name in node.names
        }
        assert not [name for name in imported.values() if name.startswith("ltexp.") and "._" in name]
        changed = [node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_stored(node)]
        assert not [node.id for node in changed if isinstance(node, ast.Name) and node.id in imported]
        assert "setattr" not in path.read_text(encoding="utf-8")
        target = re.compile(rf"(_target_: |from |import ){path.stem}\b")
        assert not [own for own in ours if target.search(own.read_text(encoding="utf-8"))]


def _is_stored(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store | ast.Del)


def test_the_docs_say_how_long_each_is() -> None:
    """The table of docs/parts.md: files and their lines."""
    rows = re.findall(r"^\| .*\(\.\./tests/extensions/(\w+)\).*\| (\d+) \| (\d+) \|$", DOCS, re.MULTILINE)
    assert {name for name, _, _ in rows} == set(EXTENSIONS)
    for name, files, lines in rows:
        paths = [*python_files(name), *config_files(name)]
        assert (int(files), int(lines)) == (len(paths), sum(len(path.read_text().splitlines()) for path in paths))


def test_cutmix_weighs_a_label_by_what_is_left_of_its_image() -> None:
    """Images of one colour each: what a pixel is says whose it is."""
    mixing = build(node_of("cutmix", "stage1", "mixing"), class_counts=torch.tensor([5, 3]))
    colours = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8).contiguous()
    batch = Batch(colours, torch.tensor([0, 0, 1, 1]), torch.arange(4), epoch=1, step=0, share=1.0, size=4)
    shares = set()
    for seed in range(8):
        mixed = mixing(batch, seed)
        own = (mixed.inputs == colours).flatten(1).float().mean(1)
        assert ((mixed.inputs == colours) | (mixed.inputs == colours.roll(2, 0))).all()
        assert own.tolist() == pytest.approx([mixed.targets.weight] * 4)
        assert mixed.targets.partner_labels.tolist() == [1, 1, 0, 0]
        shares.add(mixed.targets.weight)
    assert len(shares) > 3


def test_the_contrastive_loss_is_equation_2() -> None:
    """Sums written out, over 2 views of 5 images of 3 classes, of which one has a single image."""
    labels = [0, 1, 0, 2, 1]
    rows = nn.functional.normalize(torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    loss = build(node_of("contrastive", *TERM.split(".")), class_counts=torch.tensor([2, 2, 1]))
    output = ModelOutput(logits=torch.zeros(5, 3), extra={"projections": rows})
    everything = [(rows[view, row], labels[row]) for view in range(2) for row in range(5)]
    expected = []
    for anchor, (z, label) in enumerate(everything):
        others = [(a, its) for number, (a, its) in enumerate(everything) if number != anchor]
        total = sum(math.exp(float(z @ a) / 0.1) for a, _ in others)
        positives = [a for a, its in others if its == label]
        expected.append(-sum(math.log(math.exp(float(z @ p) / 0.1) / total) for p in positives) / len(positives))
    assert loss(output, torch.tensor(labels)).item() == pytest.approx(sum(expected) / 10, rel=1e-5)


def test_the_branches_swap_as_bbn_has_it() -> None:
    """λ in epochs 1, 51, ..., 200 of 200 of the authors' code; the loss of two rows by hand at λ = 0.75."""
    loss = build(node_of("two_branches", "stage1", "loss"), class_counts=torch.tensor([3, 1]))
    found = [loss.weight_in(epoch - 1, 200) for epoch in (1, 51, 101, 121, 161, 200)]
    assert found == pytest.approx([1, 0.9375, 0.75, 0.64, 0.36, 0.009975])

    def output(first: list[list[float]], second: list[list[float]]) -> ModelOutput:
        return ModelOutput(logits=torch.tensor(first), extra={"rebalancing_logits": torch.tensor(second)})

    own = output([[2.0, 0.0], [0.0, 1.0]], [[9.0, 9.0], [9.0, 9.0]])
    other = StreamBatch(output([[8.0, 8.0], [8.0, 8.0]], [[0.0, 4.0], [2.0, 0.0]]), torch.tensor([1, 0]))
    context = BatchContext(epoch=100, max_epochs=200, streams={"reversed": other})
    margins = [0.75 * 2 - 0.25 * 4, 0.25 * 2 - 0.75 * 1]  # z_0 - z_1 of either row
    own_labels, other_labels = [0, 1], [1, 0]

    def cross_entropy(margin: float, label: int) -> float:
        return math.log1p(math.exp(-margin if label == 0 else margin))

    pairs = zip(margins, own_labels, other_labels, strict=True)
    expected = sum(0.75 * cross_entropy(m, a) + 0.25 * cross_entropy(m, b) for m, a, b in pairs) / 2
    assert loss(own, torch.tensor(own_labels), context).item() == pytest.approx(expected, rel=1e-6)


def test_the_trained_branches_answer_together() -> None:
    """Both in evaluation, the first alone in training, whose loss mixes them."""
    node = node_of("two_branches", "stage1", "modules", "rebalancing")
    branch = build({"_target_": node["_target_"]}, feature_dim=3, num_classes=2)
    features, logits = torch.randn(4, 3), torch.randn(4, 2)
    together, own = branch.eval()(features, logits)
    assert torch.equal(together, (logits + own) / 2)
    assert torch.equal(branch.train()(features, logits)[0], logits)
    assert node["keep"]


def test_asam_steps_by_the_gradient_at_its_look_ahead() -> None:
    """By hand for f(weight, bias) = weight^4 + 3 bias^2; T is |weight| + η, and 1 for the bias."""
    model = nn.Module()
    model.weight, model.bias = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.tensor(-0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def closure(**_: Any) -> Tensor:
        loss = model.weight**4 + 3 * model.bias**2
        loss.backward()
        return loss.detach()

    step = build(node_of("adaptive_sam", "stage1", "step"))
    loss = step(SimpleNamespace(model=model), optimizer, None, closure)
    slope, scale = (4 * 1.5**3, -3.0), (1.51, 1.0)
    length = math.hypot(*(s * g for s, g in zip(scale, slope, strict=True)))
    up = [w + 0.5 * s**2 * g / length for w, s, g in zip((1.5, -0.5), scale, slope, strict=True)]
    assert loss.item() == pytest.approx(1.5**4 + 0.75)
    expected = (1.5 - 4 * up[0] ** 3, -0.5 - 6 * up[1])
    assert (model.weight.item(), model.bias.item()) == pytest.approx(expected, rel=1e-5)


def test_the_prompted_transformer_is_torchvisions_and_stays_as_its_file_has_it(tmp_path: Path) -> None:
    """Without prompts the features are torchvision's own; training moves prompts and classifier, and nothing else."""
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    node = node_of("prompted_vit", "backbone")
    backbone = build(node).eval()
    torch.save(backbone.transformer.state_dict(), tmp_path / "vit.pt")
    prompted = backbone(images)
    backbone.prompts = nn.Parameter(torch.empty(0, 16))
    torch.testing.assert_close(backbone(images), backbone.transformer(images))
    assert not torch.allclose(backbone(images), prompted)
    overrides = (*settings("prompted_vit", epochs=1), f"backbone.weights={tmp_path / 'vit.pt'}")
    still = "stage1.trainable.backbone=false"
    run_here(tmp_path / "run", *overrides, project=FOLDERS / "prompted_vit")
    run_here(tmp_path / "still", *overrides, still, project=FOLDERS / "prompted_vit")
    run, start = (weights(tmp_path / name, "stage1") for name in ("run", "still"))
    for name, value in backbone.transformer.state_dict().items():
        assert torch.equal(run[f"backbone.transformer.{name}"], value)
    assert not torch.equal(run["backbone.prompts"], start["backbone.prompts"])
    with pytest.raises(ConfigError, match=r"^invalid backbone.image_size=16: expected 8, as the images have it$"):
        run_here(tmp_path / "large", *overrides, "backbone.image_size=16", project=FOLDERS / "prompted_vit")
    assert not (tmp_path / "large" / "record.json").exists()


def test_the_experiment_sets_parts_and_keys() -> None:
    """And what is typed is stronger; what belongs to a choice that is not made has no effect."""
    plain = node_of("experiment")
    assert plain["seed"] == 3
    first, second = plain["stage1"], plain["stage2"]
    assert (first["loss"]["_target_"].rpartition(".")[2], first["loss"]["epsilon"]) == ("LabelSmoothing", 0.2)
    assert (first["step"]["_target_"].rpartition(".")[2], first["step"]["rho"]) == ("SharpnessAware", 0.1)
    assert (first["optimizer"]["lr"], first["terms"]["rare"]["weight"]) == (0.05, 0.3)
    assert second["sampler"]["_target_"].endswith("SquareRoot")
    assert second["optimizer"]["lr"] == 0.1
    adamw = composed(
        "experiment=rare_classes", "optimizer@stage2.optimizer=adamw", "seed=4", project=FOLDERS / "experiment"
    )
    assert (adamw["stage2"]["optimizer"]["lr"], adamw["seed"]) == (0.001, 4)
    assert adamw["choices"]["stream@stage1.streams.rare"] == "reversed"
