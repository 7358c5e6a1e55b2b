"""`ltexp reproduce figure=`: every figure of the papers is addressed or left out, and what it is of is trained once."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from choices import CONF, names
from records import record, write
from runs import composed

from hydra_plugins.ltexp_listed import listed_jobs
from ltexp.config import to_config
from ltexp.config.identity import config_hash
from ltexp.errors import ConfigError
from ltexp.papers import all_cells, load_papers
from ltexp.papers.figures import Drawing, find_figure, load_figures
from ltexp.report import figures as kinds
from ltexp.report import plots
from ltexp.report.records import Run, find_runs
from ltexp.reproduce.__main__ import main
from ltexp.reproduce.figure_jobs import runs_of
from ltexp.reproduce.figures import _draw, parse
from ltexp.reproduce.measured import Outputs

# counted in the papers; the thesis's chapters 1 to 3, 4 and 5 stand with its three systems
PRINTED = {
    "bkd": [str(number) for number in range(1, 9)],
    "dasl": [str(number) for number in range(1, 8)],
    "fbl": ["4.1", "4.2", "4.3"],
    "gcl": ["5.1", "5.2", "5.3", "5.4"],
    "glag": ["1", "2", "3", "4"],
    "kps": ["1.1", "1.2", "2.1", "2.2", *(f"3.{number}" for number in range(1, 9))],
    "mislas": [str(number) for number in range(1, 12)],
}
DRAWINGS = [
    pytest.param(drawing, id=f"{figure.name} {drawing.part}".strip())
    for known in load_figures().values()
    for figure in known.drawn.values()
    for drawing in figure.drawings
]
SMALL = (
    *("stage1.epochs=1", "stage2.epochs=1", "evaluation.figures=false", "trainer.accelerator=cpu"),
    *("trainer.progress=false", "logger=none"),
)


def test_every_figure_of_the_papers_is_drawn_or_left_out_with_a_reason() -> None:
    assert load_figures().keys() == load_papers().keys()
    for paper, known in load_figures().items():
        assert sorted([*known.drawn, *known.left_out]) == sorted(PRINTED[paper])
        assert all(known.left_out.values())


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_a_drawing_names_what_there_is(drawing: Drawing) -> None:
    cells = {cell.name for cell in all_cells()}
    assert [run for run in drawing.runs if isinstance(run, str) and run not in cells] == []
    for run in drawing.runs:
        if not isinstance(run, str):
            assert {run["method"], run["dataset"], run["backbone"]} <= {
                *(name for group in ("method", "dataset", "backbone") for name in names(group)),
            }
    known = kinds.options(drawing.kind) if drawing.of_runs else plots.options(drawing.kind)
    assert drawing.options.keys() <= set(known)
    assert not drawing.sweep or drawing.sweep["name"] in names("sweep")


@pytest.mark.slow  # composes each of a hundred runs
@pytest.mark.parametrize("drawing", [param for param in DRAWINGS if param.values[0].of_runs])
def test_every_run_of_a_drawing_composes_to_another_experiment(drawing: Drawing) -> None:
    runs = runs_of(drawing, [])
    assert runs.lacking == ()
    found = [
        json.dumps({k: v for k, v in composed(*job.overrides, small=False).items() if k != "overrides"})
        for job in runs.jobs
    ]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("figure", ["dasl/5", "bkd/6", "mislas/5"])
def test_a_sweeps_runs_are_those_of_its_file(figure: str) -> None:
    """Data included: what is trained by the sweep's own command counts for the figure."""
    (drawing,) = find_figure(figure).drawings
    name = drawing.sweep["name"]
    sweeper = yaml.safe_load((CONF / "sweep" / f"{name}.yaml").read_text())["hydra"]["sweeper"]
    listed = sweeper.get("jobs") or listed_jobs([[]], [f"{key}={value}" for key, value in sweeper["params"].items()])
    jobs = runs_of(drawing, []).jobs
    assert [list(job.settings) for job in jobs] == listed
    ends = composed(f"sweep={name}", *listed[-1], small=False), composed(*jobs[-1].overrides, small=False)
    for part in ("dataset", "backbone", "stage1", "stage2"):
        assert ends[0][part] == ends[1][part]


def finished(folder: Path, settings: list[str]) -> None:
    """A finished run of KPS on CIFAR-10-LT at ratio 100 with the published schedule."""
    typed = ["method=kps", "dataset=cifar10_lt", "backbone=resnet32", *settings]
    stage = record()["stages"][0] | {"epochs": 200}
    write(folder, method="kps", overrides=typed, config_hash=str(settings), stages=[stage])


def test_a_figure_is_drawn_of_runs_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that are found for the cells of the table serve for the figure, and nothing is trained."""
    monkeypatch.chdir(tmp_path)
    (first, _) = find_figure("kps/3.7").drawings
    monkeypatch.setattr(
        "ltexp.reproduce.figures.find_figure",
        lambda name: type(find_figure(name))("kps", "3.7", "", None, (first,)),
    )
    for place, job in enumerate(runs_of(first, []).jobs):
        finished(tmp_path / "outputs" / str(place), list(job.settings))
    assert main(["plan", "figure=kps/3.7"]) == 0
    assert "3 runs measured, 0 to run" in capsys.readouterr().out
    assert main(["figure=kps/3.7", "groups=3", "out=drawn.svg"]) == 0
    assert capsys.readouterr().out.strip() == "drawn_a.svg"
    text = (tmp_path / "drawn_a.svg").read_text()
    assert "<!-- kps, gradient_adjustment=false -->" in text


def test_a_run_in_other_words_counts_where_its_config_is_the_same(tmp_path: Path) -> None:
    """BKD's sweep has its usual beta among the values: it and the cell of the table are one experiment."""
    sweep = runs_of(find_figure("bkd/6").drawings[0], []).jobs
    usual = runs_of(find_figure("bkd/3").drawings[0], []).jobs[2]
    same, other = sweep[4], sweep[3]
    for job in (usual, same, other):
        typed = [text for text in job.overrides if not text.startswith("dataset.imbalance_ratio")]
        stages = [stage | {"epochs": 200} for stage in record()["stages"]]
        content = to_config(composed(*job.overrides, small=False))
        facts = {"method": "bkd", "overrides": typed, "config_hash": config_hash(content), "stages": stages}
        run = Run(tmp_path, record(**facts))
        done = [bool(Outputs([run]).done(asked)) for asked in (usual, same, other)]
        assert done == ([False, False, True] if job is other else [True, True, False])


def test_show_says_what_a_figure_is_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "figure=gcl/5.1"]) == 0
    text = capsys.readouterr().out
    assert "figure=tsne split=train samples=500" in text
    command = (
        "ltexp train method=ce dataset=cifar10_sizes backbone=resnet32 'dataset.class_sizes=[500,200,100,50]' seed=0"
    )
    assert command in text


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with CIFAR-10 arrays of noise, 40 training and 10 test images of each class, and no runs."""
    draws = np.random.default_rng(0)
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    for split, each in (("train", 40), ("test", 10)):
        np.save(folder / f"{split}_images.npy", draws.integers(0, 256, (10 * each, 32, 32, 3), dtype=np.uint8))
        np.save(folder / f"{split}_labels.npy", np.arange(10 * each, dtype=np.int64) % 10)
    (folder / "classes.txt").write_text("\n".join(f"class{label}" for label in range(10)) + "\n")
    monkeypatch.setenv("LTEXP_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_class_counts_need_no_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="not both"):
        plots.draw("class_counts", place / "x.png", dataset="cifar10_lt", ratios="1,2", splits="train,test")
    assert main(["figure=kps/2.1", "ratios=4,2", "paths.data=nowhere"]) == 1
    assert "prepare cifar10" in capsys.readouterr().err


def test_an_override_that_removes_a_key_has_no_value(tmp_path: Path) -> None:
    """It is for the runs of a figure; an image of the same figure that needs no run is drawn all the same."""
    asked = parse(["figure=mislas/11", "~logger", f"out={tmp_path}/x.png"])
    (figure,) = asked.figures
    assert _draw(asked, figure, figure.drawings[0], Outputs([]))
    assert (tmp_path / "x_left.png").exists()


@pytest.mark.slow
def test_a_toy_is_trained_measured_and_drawn_and_not_a_second_time(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["figure=kps/3.6", *SMALL, "dataset.class_sizes=[40,5,10]"]
    assert main(words) == 0
    image = place / "outputs" / "figures" / "kps_3.6.png"
    assert image.stat().st_size > 10_000
    runs, _ = find_runs([place / "outputs"])
    assert sorted(run.record["method"] for run in runs) == ["kps", "ldam"]
    assert runs[0].record["class_counts"] == [40, 5, 10]
    before = {run.folder: run.finished for run in runs}
    image.unlink()
    capfd.readouterr()
    assert main(words) == 0
    assert capfd.readouterr().out.strip() == "outputs/figures/kps_3.6.png"
    assert {run.folder: run.finished for run in find_runs([place / "outputs"])[0]} == before
