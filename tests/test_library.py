"""`import ltexp`: parts in anyone's own PyTorch code, runs from Python, and finished runs taken up again."""

import importlib
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from choices import CONF, names
from documents import ROOT
from image_trees import long_tail, write_list, write_tree
from omegaconf import OmegaConf
from PIL import Image
from runs import run_here, tiny
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import ltexp
from ltexp import evaluate
from ltexp.data.images.digits import Digits
from ltexp.errors import ConfigError, DataError, LtexpError
from ltexp.outputs import ModelOutput

COUNTS = torch.tensor([60, 12, 3])
LABELS = torch.repeat_interleave(torch.arange(3), COUNTS)
DIGITS = ("method=ce", "stage1.epochs=1", "stage_cache.enabled=false")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on all digits."""
    folder = tmp_path_factory.mktemp("library") / "run"
    run_here(folder, *DIGITS)
    return folder


def test_importing_ltexp_imports_no_torch() -> None:
    heavy = "{'torch', 'hydra', 'numpy', 'matplotlib', 'timm', 'open_clip', 'safetensors'}"
    code = f"import sys, ltexp; dir(ltexp); print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_every_loss_of_conf_takes_logits_or_says_what_else_it_reads() -> None:
    torch.manual_seed(0)
    logits, target = torch.rand(8, 3), torch.randint(3, (8,))
    targets = {str(OmegaConf.load(CONF / "loss" / f"{name}.yaml")["_target_"]) for name in names("loss")}
    assert set(dir(ltexp.losses)) == {target.rpartition(".")[2] for target in targets}
    for name in dir(ltexp.losses):
        loss = getattr(ltexp.losses, name)(class_counts=COUNTS)
        if further := loss.streams or loss.needs:
            for output in (logits, ModelOutput(logits)):
                with pytest.raises(ConfigError, match=rf"^{name} reads more than logits.*{min(further)}"):
                    loss(output, target)
        else:
            loss.set_progress(0, 10)
            alone = loss(logits, target)
            loss.set_progress(0, 10)
            torch.testing.assert_close(alone, loss(ModelOutput(logits), target))


def test_a_loss_on_logits_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(8, 3, requires_grad=True), torch.randint(3, (8,))
    loss = ltexp.losses.BalancedSoftmax(COUNTS)(logits, target)
    torch.testing.assert_close(loss, F.cross_entropy(logits + COUNTS.log(), target))
    loss.backward()
    assert logits.grad is not None


def test_every_loss_that_learns_between_epochs_is_in_the_documentation() -> None:
    """Those that a loop of one's own has to tell that an epoch begins or ends."""
    from ltexp.losses.base import Loss

    section = (ROOT / "docs/library.md").read_text().partition("### Losses that learn between epochs")[2]
    section = section.partition("\n## ")[0]
    for hook in ("end_epoch", "before_epoch"):
        learning = [n for n in dir(ltexp.losses) if getattr(getattr(ltexp.losses, n), hook) is not getattr(Loss, hook)]
        assert learning
        assert f"loss.{hook}(" in section
        assert not [name for name in learning if f"`{name}`" not in section]


def test_the_documented_loops_run_and_their_losses_learn() -> None:
    first, *_ = (ROOT / "docs/library.md").read_text().partition("\n## Runs")
    own, contrastive, experts = re.findall(r"^```python\n(.*?)^```$", first, re.MULTILINE | re.DOTALL)
    place: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        exec(own, place)
        exec(contrastive, place)
        labels, last = place["labels"], place["sampler"].indices(0, 3, 4)
        assert torch.equal(place["loss"].used.amount.long(), torch.bincount(labels[last]))  # of the last epoch's images
        exec(experts, place)
    loss = place["loss"]
    assert loss.start.shape == labels.shape
    assert all(loss.start[labels == label].max() == 1 for label in range(3))  # the easiest image of each class
    assert any(pace != 1 for pace in loss.paces.values())


def test_unknown_parts_are_named_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match="did you mean 'LDAM'"):
        _ = ltexp.losses.Ldam
    with pytest.raises(AttributeError, match="no attribute 'nothing_like_it'"):
        _ = ltexp.nothing_like_it


def test_a_sampler_in_a_data_loader_goes_through_its_epochs() -> None:
    data = TensorDataset(torch.arange(len(LABELS)), LABELS)
    sampler = ltexp.samplers.EpochSampler(ltexp.samplers.InstanceBalanced(LABELS, COUNTS), epochs=3, seed=5)
    loader = DataLoader(data, batch_size=16, sampler=sampler)
    first, second = (torch.cat([rows for rows, _ in loader]) for _ in range(2))
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(len(LABELS)))
    assert not torch.equal(first, second)
    sampler.set_epoch(0)
    assert torch.equal(first, torch.cat([rows for rows, _ in loader]))
    assert len(loader) == 5


def test_processes_share_an_epoch_of_a_sampler() -> None:
    made = ltexp.samplers.ClassAware(LABELS, COUNTS)
    whole = list(ltexp.samplers.EpochSampler(made, epochs=1))
    shares = [ltexp.samplers.EpochSampler(made, epochs=1, rank=rank, world_size=2) for rank in range(2)]
    first, second = map(list, shares)
    assert [len(share) for share in shares] == [len(first), len(second)]
    assert first == whole[::2]
    assert second == whole[1::2]
    drawn = torch.bincount(LABELS[torch.tensor(whole)])
    assert drawn.max() - drawn.min() <= 4  # a visit of images_per_class
    with pytest.raises(ConfigError, match="invalid rank=2"):
        ltexp.samplers.EpochSampler(made, epochs=1, rank=2, world_size=2)


def test_backbones_and_classifiers_are_modules() -> None:
    backbone = ltexp.backbones.CifarResNet(8)
    classifier = ltexp.classifiers.Cosine(backbone.feature_dim, 3)
    logits = classifier(backbone(torch.rand(2, 3, 16, 16)))
    assert logits.shape == (2, 3)
    assert logits.abs().max() <= 1


def test_mistakes_are_one_line_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mistakes = {
        ("method=misla",): "unknown method 'misla': did you mean 'mislas'",
        ("method=ce,crt",): "trains one run",
        ("-m",): "a flag of the command line",
        ("stage1.epochs=-1",): "invalid stage1.epochs=-1",
        ("a b=",): "cannot read the override",
        ("dataset=cifar10_lt", "paths.data=nowhere"): "nowhere/cifar10: missing",
    }
    for words, message in mistakes.items():
        with pytest.raises(LtexpError, match=message):
            ltexp.train(words)
    with pytest.raises(ConfigError, match="folder= is empty: name a path"):
        ltexp.train(["method=ce"], folder="")
    with pytest.raises(ConfigError, match=r"^hydra.run.dir=q: the folder of the run is folder=p already: leave one"):
        ltexp.train(["method=ce", "hydra.run.dir=q"], folder="p")
    with pytest.raises(ConfigError, match=r"the config folder .*/mine is not there \(--config-dir, config_dirs or"):
        ltexp.train([], config_dirs=["mine"])
    importlib.import_module("ltexp.train")  # the command's module takes the function's name
    with pytest.raises(ConfigError, match=r"the config folder .*/mine is not there \(--config-dir, config_dirs or"):
        ltexp.train(config_dirs=["mine"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_from_python_is_loaded_by_the_folder_that_it_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = ltexp.train([*tiny("ce"), "evaluation.figures=false", "trainer.progress=false"])
    assert folder.parts[:3] == ("outputs", "digits_lt", "ce")
    assert ltexp.load(folder).class_names == ["0", "1", "2", "3"]
    assert callable(ltexp.train)
    (row,) = ltexp.records()
    assert row["folder"] == str(folder)


def test_predictions_of_arrays_are_those_of_the_run(run: Path) -> None:
    digits = Digits().open(run)
    predictor = ltexp.load(run, accelerator="cpu")
    found = predictor.predict(digits.test_images)
    recorded = np.load(run / "predictions.npz")
    np.testing.assert_array_equal(found.logits, recorded["logits"])
    one = predictor.predict([torch.from_numpy(digits.test_images[3]).permute(2, 0, 1)])  # (3, H, W)
    np.testing.assert_allclose(one.logits[0], recorded["logits"][3], atol=1e-5)
    assert one.classes == [str(recorded["logits"][3].argmax())]
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-5)
    grey = predictor.predict(digits.test_images[:5, :, :, 0])  # (N, H, W)
    np.testing.assert_allclose(grey.logits, recorded["logits"][:5], atol=1e-5)
    inputs = predictor.transform(digits.test_images[3])
    expected = (torch.from_numpy(digits.test_images[3] / 255.0).permute(2, 0, 1).float() - 0.3043) / 0.3754
    torch.testing.assert_close(inputs, expected, atol=1e-4, rtol=0)


def test_what_is_no_image_is_refused(run: Path, tmp_path: Path) -> None:
    predictor = ltexp.load(run, accelerator="cpu")
    for wrong, message in (
        (np.zeros((8, 8, 3)), "an image of float64: expected uint8"),
        (np.zeros((4, 8, 8, 2), np.uint8), "an image of shape"),
        ([], "no images"),
        (tmp_path, "no images in"),
        (tmp_path / "none.png", "no such image or folder"),
    ):
        with pytest.raises(DataError, match=message):
            predictor.predict(wrong)
    with pytest.raises(ConfigError, match="is this the folder of a run"):
        ltexp.load(tmp_path)


@pytest.mark.slow
def test_modules_that_are_part_of_the_model_predict_as_in_the_run(tmp_path: Path) -> None:
    project = Path(__file__).parent / "extensions" / "two_branches"
    run_here(tmp_path / "run", *tiny("two_branches", project=project), project=project)
    digits = Digits().open(tmp_path)
    images = digits.test_images[digits.test_labels < 4]
    logits = ltexp.load(tmp_path / "run", accelerator="cpu").predict(images).logits
    np.testing.assert_allclose(logits, np.load(tmp_path / "run" / "predictions.npz")["logits"], atol=1e-5)


def test_records_and_data_frames_are_what_the_runs_measured(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = json.loads((run / "record.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = ltexp.records(run.parent)
    assert (row["method"], row["seed"], row["epochs"]) == ("ce", 0, "1")
    assert {key: row[key] for key in ("all", "few", "ece")} == {
        key: recorded["metrics"][key] for key in ("all", "few", "ece")
    }
    with pytest.raises(DataError, match="no such folder"):
        ltexp.records(tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(LtexpError, match="needs pandas: pip install pandas"):
        ltexp.results(run.parent)


def test_results_are_a_data_frame(run: Path) -> None:
    pytest.importorskip("pandas")
    frame = ltexp.results(run.parent)
    assert frame.groupby("method")["all"].mean().to_dict() == {"ce": ltexp.records(run.parent)[0]["all"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a tree of image files with lists, a run on it)."""
    root = tmp_path_factory.mktemp("files")
    tree = write_tree(root / "tree", long_tail(3, 8, 2), test=4)
    run_here(
        root / "run",
        *("method=ce", "dataset=image_list", f"dataset.source.folder={tree}", "dataset.workers=0"),
        *("dataset.source.train=train.txt", "dataset.source.test=test.txt", "stage1.epochs=1"),
        *("backbone=resnet10", "dataset.image_size=32", "dataset.resize=36", "stage_cache.enabled=false"),
    )
    return tree, root / "run"


def test_predictions_of_a_folder_are_those_of_the_run(files: tuple[Path, Path], tmp_path: Path) -> None:
    from ltexp import predict

    tree, folder = files
    recorded = np.load(folder / "predictions.npz")
    found = ltexp.load(folder, accelerator="cpu").predict(tree / "test")
    np.testing.assert_allclose(found.logits, recorded["logits"], atol=1e-5)
    out = tmp_path / "answers.csv"
    assert predict.main([str(folder), str(tree / "test"), f"out={out}", "probabilities=true", "accelerator=cpu"]) == 0
    header, *rows = out.read_text().splitlines()
    assert header.split(",")[:4] == ["image", "label", "class", "probability"]
    assert len(header.split(",")) == 7
    assert [int(row.split(",")[1]) for row in rows] == recorded["logits"].argmax(1).tolist()


def test_a_home_is_spelled_out_in_a_file_to_write(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ltexp import export, predict

    def written(_: object, path: Path, size: int | None) -> tuple[float, int]:
        path.write_text("a model")
        return 0.0, 8

    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.png")
    assert predict.main([str(run), str(tmp_path / "x.png"), "out=~/answers.csv", "accelerator=cpu"]) == 0
    assert (tmp_path / "answers.csv").exists()
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("ltexp.inference.onnx_file.write_onnx", written)
    assert export.main([str(run), "out=~/model.onnx"]) == 0
    assert (tmp_path / "model.onnx").exists()


def test_wrong_command_lines_of_predict(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ltexp import predict

    for words, message in (
        ([str(run)], "name a run's folder and images"),
        ([str(run), "nowhere"], "no such image or folder: nowhere"),
        ([str(run), "x", "ouf=y"], "unknown key 'ouf': did you mean 'out'?"),
    ):
        assert predict.main(words) == 2
        assert message in capsys.readouterr().err


def test_a_run_is_evaluated_on_another_test_list(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    tree, folder = files
    lines = (tree / "test.txt").read_text().splitlines()
    chosen = [number for number in range(len(lines)) if number % 4]  # three of the four images of each class
    write_list(tree / "other.txt", [(lines[n].rpartition(" ")[0], int(lines[n].rpartition(" ")[2])) for n in chosen])
    assert evaluate.evaluate(*evaluate.parse([str(folder), "dataset.source.test=other.txt", "accelerator=cpu"])) == 0
    (kept,) = (folder / "evaluations").glob("*other.txt*.json")
    measured = json.loads(kept.read_text())["metrics"]
    recorded = np.load(folder / "predictions.npz")
    right = (recorded["logits"].argmax(1) == recorded["labels"])[chosen]
    assert measured["all"] == pytest.approx(100 * right.mean())
    assert "stage1" in capsys.readouterr().out
    words = ["dataset=image_folder", f"dataset.source.folder={tree}", "stage=stage1", "accelerator=cpu"]
    assert evaluate.evaluate(*evaluate.parse([str(folder), *words])) == 0
    (kept,) = (folder / "evaluations").glob("*image_folder*.json")  # the same images, by another way
    assert json.loads(kept.read_text())["metrics"]["all"] == pytest.approx(
        100 * (recorded["logits"].argmax(1) == recorded["labels"]).mean()
    )
    for words, message in (
        (["dataset=digits_lt"], "its classes are not the run's: 10 instead of 3"),
        (["dataset.source.tset=x"], "unknown key 'dataset.source.tset'"),
        (["dataset.source.test=other.txt", "features=true"], "leave out dataset="),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate.evaluate(*evaluate.parse([str(folder), *words]))


def test_classes_in_another_order_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    _, folder = files
    (tmp_path / "classes.txt").write_text("class001\nclass000\nclass002\n")
    with pytest.raises(ConfigError, match="label 0 is 'class001' instead of 'class000'"):
        evaluate.evaluate(*evaluate.parse([str(folder), f"dataset.source.classes={tmp_path / 'classes.txt'}"]))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ce", "ldam_drw", "mislas", "ride_2", "ncm", "tde", "oltr"])
def test_an_exported_model_answers_as_the_run_did(method: str, tmp_path: Path) -> None:
    """In onnxruntime, which knows nothing of the model's code, on the run's own test images."""
    pytest.importorskip("onnxscript")
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from ltexp import export

    run_here(tmp_path / "run", *tiny(method))
    assert export.main([str(tmp_path / "run")]) == 0
    path = str(tmp_path / "run" / "model.onnx")
    digits = Digits().open(tmp_path)
    images = digits.test_images[digits.test_labels < 4].transpose(0, 3, 1, 2).astype(np.float32) / 255
    logits, probabilities = onnxruntime.InferenceSession(path).run(None, {"images": images})
    np.testing.assert_allclose(logits, np.load(tmp_path / "run" / "predictions.npz")["logits"], atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(probabilities, torch.from_numpy(logits).softmax(1).numpy(), atol=1e-6)
    (classes,) = (entry.value for entry in onnx.load(path).metadata_props if entry.key == "classes")
    assert json.loads(classes) == ["0", "1", "2", "3"]


def test_export_without_onnx_says_what_to_install(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ltexp import export

    monkeypatch.setattr(export, "NEEDED", ("no_such_package",))
    assert export.main([str(run)]) == 1
    assert "pip install 'ltexp[export]'" in capsys.readouterr().err
    assert export.main([str(run), "size=x"]) == 2
