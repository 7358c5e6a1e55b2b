"""Figures of runs whose names hold anything: they are drawn, on a page, and a failure never ends a run."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from records import record, write, write_measured

from ltexp.report import figures
from ltexp.report.drawing import MARKERS, PAGE, fill, number_ticks, stroke
from ltexp.report.figures import draw, draw_run_figures, kinds
from ltexp.report.records import Run, find_runs

NAMES = (r"$x_i^2 \bad{} [a] $", "中文类名称" * 8, "קבוצה עברית " + "x" * 200)
APART = {
    "sweep",
    "confidence",
    "generated_features",
    "gradual_weight",
    "batch_norm",
    "tsne",
}  # other files, or no names


def odd_runs(folder: Path) -> list[Run]:
    for number, name in enumerate(NAMES):
        typed = [rf"a.b=$\frac{{{name}", f"c={number}"]
        changes: dict[str, Any] = {"class_names": list(NAMES), "dataset": f"data ${name}", "overrides": typed}
        write_measured(write(folder / str(number), method=name, config_hash=str(number), **changes))
    return find_runs([folder])[0]


@pytest.mark.parametrize("kind", sorted(set(kinds()) - APART))
def test_any_name_is_drawn_and_the_figure_stays_on_its_page(kind: str, tmp_path: Path) -> None:
    runs = odd_runs(tmp_path / "runs")
    draw(kind, runs, tmp_path / "figure.png")
    width, height = Image.open(tmp_path / "figure.png").size
    assert width / 200 <= 1.1 * PAGE[0]
    assert height / 200 <= 1.1 * PAGE[1]


def test_dollars_are_dollars_and_numbers_at_an_axis_stay_mathematics(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from ltexp.report.saving import save

    figure = Figure()
    axis = figure.subplots()
    axis.plot([1, 1000], [1, 2], label="$b$")
    axis.set(xscale="log", title=r"$\frac{$")
    axis.set_yticks([1, 2], ["$a$", r"\$"])
    axis.legend()
    save(figure, tmp_path / "figure.png")  # a wrong formula would raise
    assert not axis.title.get_parse_math()
    assert not any(text.get_parse_math() for text in axis.get_yticklabels())
    assert all(text.get_parse_math() for text in axis.get_xticklabels())


@pytest.mark.parametrize("error", [ValueError("two\nlines"), MemoryError(), KeyError("x")])
def test_a_figure_that_cannot_be_drawn_costs_a_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = figures.draw

    def failing(kind: str, runs: Any, path: Path) -> None:
        if kind == "confusion":
            raise error
        drawn(kind, runs, path)

    monkeypatch.setattr(figures, "draw", failing)
    paths = draw_run_figures(write(tmp_path))
    assert [path.name for path in paths] == ["reliability.png", "accuracy_by_class.png"]
    (line,) = capsys.readouterr().out.splitlines()
    assert "confusion.png was not drawn" in line


def test_long_names_take_three_lines_and_no_more() -> None:
    assert fill("a b", 10) == "a b"
    lines = fill("x" * 500, 20).split("\n")
    assert len(lines) == 3
    assert max(map(len, lines)) <= 20


def test_every_series_has_a_line_of_its_own_under_which_an_equal_one_is_seen() -> None:
    lines = [stroke(color) for color, _ in MARKERS]
    assert len({str(line["linestyle"]) for line in lines}) == len(MARKERS)
    widths = [line["linewidth"] for line in lines]
    assert widths == sorted(widths, reverse=True)
    assert [line["linestyle"] == "-" for line in lines] == [True] + [False] * (len(MARKERS) - 1)


@pytest.mark.parametrize(("low", "high", "expected"), [(5, 100, [5, 10, 20, 50, 100]), (1, 1000, [1, 10, 100, 1000])])
def test_numbers_at_a_log_axis_are_few_enough_to_be_apart(low: float, high: float, expected: list[int]) -> None:
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    axis.set_xscale("log")
    number_ticks(axis.xaxis, low, high)
    assert list(axis.get_xticks()) == expected


def test_bars_of_a_reliability_diagram_end_at_the_accuracy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Below and above the confidence; and the bins below them show how many images they hold."""
    from ltexp.report.figures import reliability

    kept: list[Any] = []
    monkeypatch.setattr(reliability, "save", lambda figure, path: kept.append(figure))
    bins = {"count": [1, 3], "accuracy": [0.5, 0.6], "confidence": [0.25, 0.9]}
    draw("reliability", [Run(tmp_path, record(reliability=bins))], tmp_path / "x.png")
    above, below = kept[0].axes
    (accuracy,) = [bars for bars in above.containers if bars.get_label() == "accuracy"]
    assert [bar.get_height() for bar in accuracy] == [0.5, 0.6]
    assert [bar.get_height() for bar in below.containers[0]] == [25.0, 75.0]
