"""`ltexp report`: its grammar, exit codes and files, and that it never waits for torch."""

import json
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from records import write, write_measured

from ltexp.report.__main__ import main
from ltexp.report.figures import draw_run_figures, kinds, options


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fomat=csv"], "unknown key 'fomat': did you mean 'format'?"),
        (["format=marckdown"], "did you mean 'markdown'?"),
        (["columns=al"], "unknown column 'al': did you mean 'all'?"),
        (["figure=reliabilty"], "did you mean 'reliability'?"),
        (["stages=yes"], "invalid stages=yes: expected true | false"),
        (["figure=reliability", "format=csv"], "exclude each other"),
        (["figure=reliability", "sort=all"], "figure=reliability and sort= exclude each other"),
        (["figure=shots", "sort=ece"], "invalid sort=ece: expected all | many | medium | few"),
        (["figure=tsne", "clases=0"], "did you mean 'classes'?"),
        (["figure=reliability", "classes=0"], "unknown key 'classes'"),
        (["out="], "out= names nothing"),
        (["out=x.xlsx"], "a table's file ends in .txt, .md, .csv, .tex, .html, not '.xlsx': out=x.xlsx"),
        (["columns=+acc99"], "unknown column 'acc99': the classes of these runs are acc0 to acc"),
        (["sort=-acc99"], "unknown column 'acc99': the classes of these runs are acc0 to acc"),
    ],
)
def test_a_wrong_command_line_has_one_line_and_status_2(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write(tmp_path)), *words]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_nothing_to_report_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert main([str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.count("\n") == 2


def test_a_folder_may_have_an_equals_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write(tmp_path / "method=crt,seed=0"))]) == 0
    assert "crt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "start"),
    [("t.md", "| method"), ("t.csv", "method,"), ("t.tex", "% needs"), ("t.txt", "cifar10_lt, ratio 100")],
)
def test_the_ending_of_a_file_chooses_the_format(name: str, start: str, tmp_path: Path) -> None:
    out = tmp_path / name
    assert main([str(write(tmp_path / "run")), f"out={out}"]) == 0
    assert out.read_text().startswith(start)


def test_help_has_examples_columns_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for part in (
        "ltexp report RUN",
        "best_on_test",
        *kinds(),
        "metric=              all | many",
        "probabilities_by_shot    Pred",
    ):
        assert part in text
    for kind in kinds():
        assert all(meaning for meaning in options(kind).values()), kind


# of runs that generate features, or whose loss grows: their own tests are in test_report_generation_figures.py
GENERATION = {"confidence", "generated_features", "gradual_weight"}


@pytest.mark.parametrize("kind", sorted(set(kinds()) - GENERATION))
def test_every_kind_of_figure_draws_one_and_several_runs(kind: str, tmp_path: Path) -> None:
    write_measured(write(tmp_path / "one"))
    write_measured(write(tmp_path / "two", seed=1, method="ce", config_hash="d"))
    one = tmp_path if kind == "sweep" else tmp_path / "one"  # one run alone has swept nothing
    for folder, ending in ((one, "png"), (tmp_path, "pdf")):
        out = tmp_path / f"figure.{ending}"
        assert main([str(folder), f"figure={kind}", f"out={out}"]) == 0
        assert out.read_bytes()[:4] == {"png": b"\x89PNG", "pdf": b"%PDF"}[ending]


def test_a_figure_has_an_option_that_is_called_as_one_of_tables(tmp_path: Path) -> None:
    assert main([str(write(tmp_path)), "figure=shots", "sort=many", f"out={tmp_path}/shots.png"]) == 0
    assert (tmp_path / "shots.png").exists()


def test_a_run_ends_with_its_figures(tmp_path: Path) -> None:
    paths = draw_run_figures(write(tmp_path))
    assert len(paths) == 3
    assert all(path.parent == tmp_path and path.stat().st_size > 0 for path in paths)


def test_neither_report_nor_evaluation_waits_for_torch() -> None:
    code = (
        "import sys, ltexp.report.__main__, ltexp.report.table, ltexp.evaluation.metrics, ltexp.evaluation.record;"
        "print([name for name in ('torch', 'matplotlib', 'pandas') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_page_has_the_table_and_the_figures_of_a_run_and_of_a_sweep(tmp_path: Path) -> None:
    for seed in (0, 1):
        write(tmp_path / "runs" / f"a{seed}", seed=seed, overrides=["t=1"], config_hash="a", all=40.0 + seed)
    write(tmp_path / "runs" / "b", overrides=["t=2"], config_hash="b")
    out = tmp_path / "page.html"
    assert main([str(tmp_path / "runs"), f"out={out}"]) == 0
    text = out.read_text()
    assert "[40.5,0.7" in text
    assert "page_files/000_crt_cifar10_lt_seed0/record.json" in text
    assert (tmp_path / "page_files" / "002_crt_cifar10_lt_seed0" / "record.json").is_file()
    assert "over the keys that a sweep varied" in text
    assert "a row for each experiment" in text
    assert text.count("data:image/png;base64,") >= 3
    assert main([str(tmp_path / "runs" / "b"), f"out={out}", "stages=true"]) == 0
    assert "Reliability diagrams" in out.read_text()
    assert "a row for each experiment" not in out.read_text()


def test_a_page_has_hashes_as_text_and_numbers_as_numbers(tmp_path: Path) -> None:
    write(tmp_path / "a", config_hash="12e45678", subset_hash="01234567", overrides=["t=1e999", "u=1"])
    write(tmp_path / "b", config_hash="8e3", subset_hash="s", overrides=["t=1", "u=2.5"])
    out = tmp_path / "page.html"
    assert main([str(tmp_path), "columns=+config,+subset", f"out={out}"]) == 0
    rows = json.loads(re.findall(r'application/json">(.*?)</script>', out.read_text(), re.DOTALL)[0])["rows"]
    cells = [[*row["cells"][:2], *row["cells"][-2:]] for row in rows]
    assert cells == [[1, 2.5, "8e3", "s"], ["inf", 1, "12e45678", "01234567"]]


@pytest.mark.parametrize("marker", [True, False], ids=["", "of an older version"])
def test_a_page_among_its_runs_leaves_later_reports_as_they_are(
    marker: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a", method="ce", config_hash="a")
    run = write(tmp_path / "b", config_hash="b")
    write_measured(run)
    assert main([str(run), f"out={tmp_path}/runs.html"]) == 0  # the copy is the first, and then the second of the page
    copies = tmp_path / "runs_files"
    if not marker:
        (copies / ".copies").unlink()
    for _ in range(2):
        assert main([str(tmp_path), f"out={tmp_path}/runs.html"]) == 0
    assert [path.name for path in sorted(copies.glob("0*"))] == [
        "000_ce_cifar10_lt_seed0",
        "000_crt_cifar10_lt_seed0",
        "001_crt_cifar10_lt_seed0",
    ]
    assert capsys.readouterr().err == ""
    assert main([str(copies / "001_crt_cifar10_lt_seed0"), str(run), "columns=nll"]) == 0
    output = capsys.readouterr()
    assert f"kept the latest, {run}" in output.err
    assert "–" not in output.out.splitlines()[-2]
    assert main([str(copies)]) == 0
    assert main([str(copies), f"out={tmp_path}/runs.html"]) == 2
    assert "lies where the page's own copies go" in capsys.readouterr().err


def test_a_symbolic_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    run = write(tmp_path / "run")
    (tmp_path / "there").mkdir()
    for name in ("table.md", "page.html"):
        (tmp_path / name).symlink_to(Path("there") / name)
        assert main([str(run), f"out={tmp_path / name}"]) == 0
        assert (tmp_path / name).is_symlink()
        assert not (tmp_path / "there" / name).is_symlink()
    assert (tmp_path / "table.md").read_text().startswith("| method")
    assert (tmp_path / "there" / "page_files").is_dir()  # beside the page, whose links lead there
    (tmp_path / "loop.md").symlink_to("loop.md")
    assert main([str(run), f"out={tmp_path / 'loop.md'}"]) == 1
    assert (tmp_path / "loop.md").is_symlink()


def test_a_pipe_is_written_into_and_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, pipe = write(tmp_path / "run"), tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text)
        assert main([str(run), "format=csv", f"out={pipe}"]) == 0
        assert read.result(timeout=20).startswith("method,")
    assert pipe.is_fifo()
    assert capsys.readouterr().out == ""
    assert main([str(run), "format=html", f"out={pipe}"]) == 2
    assert "is no file: a page's runs and figures lie beside it" in capsys.readouterr().err
    for out, reason in ((tmp_path, "Is a directory"), (tmp_path / f"{'x' * 300}.html", "File name too long")):
        assert main([str(run), f"out={out}"]) == 1
        assert reason in capsys.readouterr().err


def test_a_device_is_written_into_and_stays(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_bytes(b"")
    except OSError:
        pytest.skip("no devices can be made here")
    assert main([str(write(tmp_path / "run")), f"out={device}"]) == 0
    assert device.is_char_device()


def test_standard_output_by_its_name_gets_the_table_alone(tmp_path: Path) -> None:
    """Also where it is a file, which is not written from its start again."""
    command = [sys.executable, "-m", "ltexp", "report", str(write(tmp_path / "run")), "format=csv", "out=/dev/stdout"]
    with (tmp_path / "all.csv").open("w") as file:
        file.write("before\n")
        file.flush()
        subprocess.run(command, stdout=file, check=True, timeout=60)
    assert (tmp_path / "all.csv").read_text().startswith("before\nmethod,")
    assert "/dev/stdout" not in (tmp_path / "all.csv").read_text()
