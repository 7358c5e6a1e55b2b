"""What README.md and docs/ say is so: their commands run or compose, their code runs, their links lead somewhere."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from choices import CONF
from documents import PAGES, ROOT, Command, blocks, commands, files
from omegaconf import OmegaConf
from PIL import Image
from records import write as write_record
from runs import composed, run_here

import benchmarks
from ltexp import evaluate, export, methods, predict
from ltexp.config.composer import compose, products
from ltexp.config.path import reading_config_dirs, split_config_dirs
from ltexp.config.words import split_words
from ltexp.data import __main__ as data
from ltexp.data.commands import catalog, unpack
from ltexp.data.images import arrays
from ltexp.data.text import articles
from ltexp.errors import ConfigError
from ltexp.evaluation.record import machine
from ltexp.launching.freeze import freeze
from ltexp.report import __main__ as report
from ltexp.reproduce import __main__ as tables
from ltexp.reproduce import figures
from ltexp.run_folder import CHECKPOINT
from ltexp.training import checkpoint

ADD = "docs/add.md"
FLAGS = {"-m", "--multirun", "--dry-run", "--help"}  # of ltexp train, without a value


def test_commands_are_found_in_blocks_and_in_text() -> None:
    words = [command.words for command in commands("README.md")]
    assert ["ltexp", "methods", "gcl"] in words
    assert ["ltexp", "train", "trainer=ddp", "trainer.devices=4"] in words  # within a sentence
    assert sum(len(commands(page)) for page in PAGES) > 150


def few_jobs(words: Sequence[str]) -> list[list[str]]:
    """As many jobs of a sweep as it takes to see each of its values."""
    jobs, seen, chosen = products(words), set[str](), []
    for job in jobs:
        if not seen.issuperset(job):
            chosen.append(job)
            seen.update(job)
    return chosen


def compose_train(words: Sequence[str], folder: Path) -> None:
    """Composes and freezes what `ltexp train` would start with."""
    if "--config-path" in words or "--help" in words:
        return
    rest, folders = split_config_dirs(words)
    overrides = [word for word in rest if word not in FLAGS and word != "..."]
    if "--cfg" in overrides:
        del overrides[overrides.index("--cfg") :][:2]
        overrides = [word for word in overrides if word not in ("--cfg", "job")]
    sweeping = bool({"-m", "--multirun"} & set(words)) or any(word.startswith("launcher=") for word in words)
    searching = "hydra/sweeper=search" in words
    if searching:  # its intervals are its own; one value of each composes
        overrides = [re.sub(r"=(tag\(log,)?interval\(([\d.]+),.*", r"=\2", word) for word in overrides]
        overrides = [word for word in overrides if not word.startswith("hydra")]
    for job in few_jobs(overrides) if sweeping else [overrides]:
        try:
            with reading_config_dirs([folder / name for name in folders]):
                freeze(compose(job))
        except ConfigError as error:
            # a sweep leaves out what it sets on a stage that one of its methods does not have
            if not (sweeping and "has no effect" in str(error)):
                raise


def check(command: Command, folder: Path) -> None:
    """Runs what is quick, composes what trains, parses the rest."""
    program, *words = command.words
    words = [word for word in words if word != "..."]
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words) <= {*targets}, command
    elif program == "python":
        assert all((Path(benchmarks.__file__).parent / f"{name}.py").exists() for name in words[2:]), command
    elif words and words[0] != "COMMAND" and not words[0].startswith("-") and "--help" not in words:
        verb, *rest = words
        assert verb in CHECKS, f"no such verb: {command}"
        CHECKS[verb](rest, folder)


def check_methods(words: Sequence[str], folder: Path) -> None:
    assert methods.run([str(folder / word) if word == "conf" else word for word in words]) == 0


def check_reproduce(words: Sequence[str], _: Path) -> None:
    if any(word.startswith("figure=") for word in words):
        figures.parse(words)
        return
    verb, options, extra = tables.parse(words)
    if verb != "list":
        tables.select(options)
    freeze(compose(extra))


def check_data(words: Sequence[str], folder: Path) -> None:
    if not words:
        return
    (verb, *rest), folders = split_config_dirs(words)
    if verb == "unpack":  # of a name of the reader's own
        split_words(rest, ("source", "root", *unpack.COLUMNS, *unpack.SPLITS))
        return
    names = [word for word in rest if "=" not in word]
    assert verb in ("prepare", "check", "show", "cache"), words
    prepared = (*arrays.PREPARED_BY_COMMAND, *articles.PREPARED_BY_COMMAND)
    for name in names:
        assert verb != "prepare" or name in prepared, words
        if name not in (*prepared, "birds"):  # the reader's own
            with reading_config_dirs([folder / own for own in folders]):
                catalog.dataset_config(name)


CHECKS: dict[str, Callable[[Sequence[str], Path], object]] = {
    "train": compose_train,
    "methods": check_methods,
    "evaluate": lambda words, _: evaluate.parse(words),
    "predict": lambda words, _: split_words(words, predict.KEYS),
    "export": lambda words, _: split_words(words, export.KEYS),
    "report": lambda words, _: report.parse(words),
    "reproduce": check_reproduce,
    "data": check_data,
    "completion": lambda words, _: words[0],
}


def test_the_commands_of_the_readme_compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_page("README.md", tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_every_command_of_a_page_composes(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_page(page, tmp_path, monkeypatch)


def check_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(files(page), folder)
    monkeypatch.syspath_prepend(folder)
    failed = []
    for command in commands(page):
        at = folder if command.folder == "." else ROOT / command.folder
        if command.folder != ".":
            monkeypatch.syspath_prepend(at)
        own = ("dataset=birds", "dataset=noise")
        if any(word in own for word in command.words):
            continue  # the reader's own, whose file the page shows: test_data_file_checks.py
        try:
            check(command, at)
        except (Exception, SystemExit) as error:
            failed.append(f"{' '.join(command.words)}\n    {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)


def write(shown: dict[str, str], folder: Path) -> None:
    for path, text in shown.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


@pytest.mark.parametrize("language", ["python", "yaml"])
def test_every_block_of_code_can_be_read(language: str) -> None:
    read = [text for page in PAGES for text in blocks(page, language)]
    assert len(read) > 4
    for text in read:
        compile(text, "page", "exec") if language == "python" else yaml.safe_load(text)


def test_parts_of_your_own_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss, sampler, backbone and augmentation of docs/add.md, all in one run."""
    write(files(ADD), tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    run_here(
        tmp_path / "run",
        *("method=ce", "stage1.epochs=1", "loss@stage1.loss=my_loss", "stage1.loss.temperature=4"),
        *("sampler@stage1.sampler=cube_root", "backbone=small_net", "augmentation@stage1.augmentation=noise"),
        project=tmp_path,
    )
    assert (tmp_path / "run" / "predictions.npz").exists()
    from cube_root import CubeRoot

    labels = torch.repeat_interleave(torch.arange(2), torch.tensor([8, 1]))
    sampler = CubeRoot(labels, torch.tensor([8, 1]))
    assert sampler.class_probabilities(0, 1).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_a_dataset_of_your_own_is_checked_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of docs/add.md, of small files in its form."""
    write(files(ADD), tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["check", "shapes", f"root={tmp_path}", "--config-dir", str(tmp_path / "conf")]
    assert data.main(words) == 1
    assert f"shapes: {tmp_path / 'shapes' / 'train.npz'} is missing" in capsys.readouterr().out
    (tmp_path / "shapes").mkdir()
    for split, counts in (("train", [60, 30, 12]), ("test", [5, 5, 5])):
        labels = np.repeat(np.arange(3), counts)
        images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / "shapes" / f"{split}.npz", images=images, labels=labels)
    assert data.main(words) == 0
    assert "ok: 102 train images (12 to 60 a class), 15 test images (5 a class), 3 classes" in capsys.readouterr().out
    typed = ("method=ce", "dataset=shapes", "stage1.epochs=1", f"paths.data={tmp_path}")
    run_here(tmp_path / "run", *typed, project=tmp_path)
    assert (tmp_path / "run" / "predictions.npz").exists()


def test_a_classifier_a_mixing_and_class_means_of_your_own_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of docs/add.md, with the means as they are in the end."""
    write(files(ADD), tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    run_here(
        tmp_path / "run",
        *("method=crt", "stage1.epochs=1", "stage2.epochs=1", "mixing@stage1.mixing=blend"),
        *("classifier@stage2.classifier=gated", "stage2.init.classifier=stage1"),
        *("+stage2.lr_factors.classifier.gate=0.1", "stage2.trainable.backbone=true"),
        *("+module@stage2.modules.means=class_means", "+loss@stage2.terms.near.loss=near_means"),
        project=tmp_path,
    )
    module = checkpoint.read(tmp_path / "run" / "stage2" / CHECKPOINT).modules["means"]["state"]
    assert module["counts"].sum() == 321  # the training images
    assert module["means"].abs().sum(1).min() > 0


def test_files_of_the_page_open_with_what_they_are(tmp_path: Path) -> None:
    write(files(ADD), tmp_path)
    for path in (tmp_path / "conf").rglob("*.yaml"):
        said = methods.first_sentence(methods.comment_of(path))
        assert said
        assert "conf/" not in said, path


def test_a_method_of_your_own_composes(tmp_path: Path) -> None:
    write(files(ADD), tmp_path)
    plain = composed("method=my_method", project=tmp_path, small=False)
    assert plain["stage1"]["loss"]["_target_"].endswith("BalancedSoftmax")
    assert plain["stage2"]["epochs"] == 20


def run_python(page: str, folder: Path) -> str:
    """Runs all Python of a page as one script in `folder`, where a few photos lie; what it prints."""
    (folder / "photos").mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(folder / "photos" / f"{name}.png")
    script = "\n".join(blocks(page, "python"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/library.md"])
def test_the_python_of_a_page_runs(page: str, tmp_path: Path) -> None:
    run_python(page, tmp_path)


@pytest.mark.slow
def test_the_tutorial_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    printed = run_python("docs/tutorial.md", tmp_path)
    assert "'0': 120" in printed
    assert "'9': 2" in printed
    nines = {folder: int(count) for folder, count in re.findall(r"^(\w+) (\d+) of 50 nines$", printed, re.MULTILINE)}
    assert set(nines) == {"ce", "crt", "bsce"}
    assert nines["crt"] > nines["ce"]
    assert nines["bsce"] > nines["ce"]


def test_links_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
            path, _, _ = target.partition("#")
            if "://" not in target and path and not ((ROOT / page).parent / path).exists():
                broken.append(f"{page}: {target}")
    assert not broken


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert sum(not line.startswith("| `") for line in lines) < 128  # the table of measured methods grows


def test_config_files_start_with_what_they_are() -> None:
    for path in CONF.rglob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if line != "# @package _global_"]
        assert lines[0].startswith("# "), path
        OmegaConf.load(path)


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    page = (tmp_path / "site" / "methods" / "all" / "mislas.html").read_text()
    assert "conf/method/mislas.yaml" in page
    assert "47.0" in page  # published, CIFAR-100-LT at ratio 100
    assert "47.67" in page  # measured: README.md
    assert "LabelAwareSmoothing" in (tmp_path / "site" / "api" / "losses.html").read_text()


def test_runs_on_data_of_your_own_do_not_stop_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["dataset=image_folder", "dataset.name=noise", "dataset.source.folder=noise"]
    write_record(tmp_path / "run", dataset="noise", method="ce", overrides=typed, environment=machine())
    assert tables.main(["plan", "cells=mislas/3/ce/cifar100_lt/100", f"runs={tmp_path}"]) == 0
    assert "1 to run" in capsys.readouterr().out
