"""The figure of a sweep: which key goes where, what is averaged, and what cannot be drawn."""

from pathlib import Path
from typing import Any

import pytest
from records import record, write

from ltexp.errors import ConfigError
from ltexp.report.__main__ import main
from ltexp.report.figures.sweep import Axes, _points, choose_axes, draw
from ltexp.report.groups import group_runs
from ltexp.report.records import Run, find_runs
from ltexp.report.results import results_table
from ltexp.report.scale import Places, places
from ltexp.report.swept import in_place_of, swept_values


def swept(*settings: dict[str, Any]) -> list[Run]:
    """Runs that typed `settings` (key: value, `all` and `seed` apart), each its own experiment but for the seed."""
    made = []
    for setting in settings:
        changes = {key: setting[key] for key in ("all", "seed", "method", "imbalance_ratio") if key in setting}
        typed = [f"{key}={value}" for key, value in setting.items() if key not in changes]
        identity = str([changes.get("method"), changes.get("imbalance_ratio"), typed])
        made.append(Run(Path(f"run{len(made)}"), record(overrides=typed, config_hash=identity, **changes)))
    return made


def test_seeds_are_averaged_and_each_swept_key_has_its_values() -> None:
    groups = group_runs(
        swept({"t": 1, "all": 40.0}, {"t": 1, "all": 44.0, "seed": 1}, {"t": 10, "all": 50.0}, {"t": 2, "all": 45.0})
    )
    columns = swept_values(groups)
    assert list(columns) == ["t"]
    found = {values: statistic.mean for values, statistic in _points(groups, columns, "all")}
    assert found == {("1",): 42.0, ("2",): 45.0, ("10",): 50.0}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"t": ["1", "2"]}, Axes("t", None, (), heat_map=False)),
        ({"method": ["ce", "crt"]}, Axes("method", None, (), heat_map=False)),
        ({"a": ["1", "2", "1"], "b": ["1", "2", "3"]}, Axes("b", "a", (), heat_map=True)),
        ({"method": ["ce", "crt"], "t": ["1", "2"]}, Axes("t", "method", (), heat_map=False)),
        ({"dataset": ["c", "d"], "a": ["1", "2"], "b": ["1", "2"]}, Axes("a", "b", ("dataset",), heat_map=True)),
    ],
)
def test_numbers_go_along_the_axes_and_names_make_lines(columns: dict[str, list[str]], expected: Axes) -> None:
    assert choose_axes(columns) == expected


def test_numbers_stand_in_their_places_unless_they_would_touch() -> None:
    assert places(["2", "1", "4"]) == Places({"2": 2.0, "1": 1.0, "4": 4.0}, {1.0: "1", 2.0: "2", 4.0: "4"})
    assert places(["0.001", "0.01", "0.1"]).logarithmic
    assert places(["1", "5.0", "5.1"]).of == {"1": 0.0, "5.0": 1.0, "5.1": 2.0}
    assert places([str(value) for value in range(40)]).ticks is None


def test_numbers_near_one_stand_by_their_distance_to_it_and_names_behind_them() -> None:
    found = places(["0.9", "0.999", "0.99", "0.9999", "inverse_frequency"])
    expected = {"0.9": 1, "0.99": 2, "0.999": 3, "0.9999": 4, "inverse_frequency": 5}  # -log10(1 - value)
    assert found.of == pytest.approx(expected)
    assert found.ticks is not None
    assert list(found.ticks.values())[-1] == "inverse_frequency"
    assert "log(1 − value)" in found.note
    assert [found.ordered(value) for value in ("0.9", "inverse_frequency")] == [True, False]


def test_a_key_typed_in_the_place_of_another_is_a_value_of_its_own(tmp_path: Path) -> None:
    runs = []
    for number, typed in enumerate(["loss.beta=0.9", "loss.beta=0.99", "loss.beta=0.999", "loss.weighting=inverse"]):
        folder = write(tmp_path / str(number), overrides=[typed], config_hash=typed)
        (folder / "config.yaml").write_text("loss: {beta: 0.999, weighting: effective}")
        runs.append(Run(folder, record(overrides=[typed], config_hash=typed)))
    groups = group_runs(runs)
    assert in_place_of(groups, swept_values(groups)) == {"loss.beta": ["0.9", "0.99", "0.999", "inverse"]}
    draw(runs, tmp_path / "sweep.png")  # without this, two runs would stand at beta = 0.999


def test_a_value_that_was_not_typed_comes_from_the_config(tmp_path: Path) -> None:
    first = write(tmp_path / "a", overrides=["stage2.loss.t=4.0"], config_hash="a")
    second = write(tmp_path / "b", overrides=[], config_hash="b")
    (second / "config.yaml").write_text("stage2: {loss: {t: 2.0}}")
    runs, _ = find_runs([tmp_path])
    assert {run.folder for run in runs} == {first, second}
    assert swept_values(group_runs(runs)) == {"stage2.loss.t": ["2", "4"]}


@pytest.mark.parametrize(
    ("typed", "content", "text"),
    [
        (["x=true", "x=True"], "true", "true"),
        (["x=null"], "null", "null"),
        (["x=0.10", "x=1e-1"], "0.1", "0.1"),
        (["x=1e-5"], "1.0e-05", "1e-05"),
        (["x=7.0", "x=7"], "7", "7"),
        (["x=20240101"], "20240101", "20240101"),
        (["x=0.12345678"], "0.12345678", "0.12345678"),
        (["x=[1, 2.0]", "x=[1,2.0]"], "[1, 2.0]", "[1,2]"),
        (["x='a b'", 'x="a b"'], "a b", "a b"),
        (["x=yes"], "'yes'", "yes"),
        (["x="], "''", ""),
    ],
)
def test_a_value_is_the_same_typed_or_not(typed: list[str], content: str, text: str, tmp_path: Path) -> None:
    same = [record(overrides=[word], config_hash=word) for word in (*typed, "y=1")]
    runs = [Run(tmp_path, one) for one in (*same, record(overrides=["x=other"], config_hash="other"))]
    (tmp_path / "config.yaml").write_text(f"x: {content}")
    assert sorted(swept_values(group_runs(runs))["x"]) == sorted(["other", *[text] * len(same)])


def test_large_numbers_stay_apart() -> None:
    runs = swept({"dataset.subset.seed": 20240101}, {"dataset.subset.seed": 20240102})
    assert swept_values(group_runs(runs)) == {"dataset.subset.seed": ["20240101", "20240102"]}
    assert places(["20240101", "20240105"]).ticks == {20240101.0: "20240101", 20240105.0: "20240105"}


def test_of_a_key_that_was_typed_twice_the_last_value_counts() -> None:
    run = Run(Path("run"), record(overrides=["stage1.optimizer.lr=0.5", "+b=1", "stage1.optimizer.lr=0.1", "++b=0"]))
    assert run.overrides == ("++b=0", "stage1.optimizer.lr=0.1")
    other = Run(Path("other"), record(overrides=["stage1.optimizer.lr=0.2", "+b=0"], config_hash="other"))
    assert swept_values(group_runs([run, other]))["stage1.optimizer.lr"] == ["0.1", "0.2"]


def test_runs_that_no_key_tells_apart_are_not_mixed(tmp_path: Path) -> None:
    same = swept({"t": 1}, {"t": 2})
    same.append(Run(Path("other"), record(overrides=["t=1"], config_hash="another")))
    with pytest.raises(ConfigError, match="one figure would mix them"):
        draw(same, tmp_path / "out.png")
    with pytest.raises(ConfigError, match="no key but their seed"):
        draw(swept({"all": 1.0}, {"seed": 1, "all": 2.0}), tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    "settings",
    [
        [{"t": t, "all": 40.0 + t, "seed": seed} for t in (1, 2, 100) for seed in (0, 1)],
        [{"a": a, "b": b, "all": 10.0 * a + b} for a in (1, 2, 3) for b in (1, 2) if a != b],
        [{"method": m, "imbalance_ratio": r, "all": r / 2} for m in ("ce", "crt") for r in (10.0, 50.0)],
        [{"method": m, "a": a, "b": b} for m in ("ce", "crt") for a in (1, 2) for b in (1, 2)],
    ],
    ids=["line", "heat map with a gap", "lines by method", "panels"],
)
def test_every_shape_of_sweep_is_drawn(settings: list[dict[str, Any]], tmp_path: Path) -> None:
    draw(swept(*settings), tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(("others", "label"), [((1,), "beta, spaced by log(1 − value)"), ((1, 2), "beta")])
def test_the_axis_of_a_heat_map_says_nothing_of_distances(
    others: tuple[int, ...], label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("ltexp.report.figures.sweep.save", lambda figure, path: drawn.append(figure))
    betas = (0.9, 0.99, 0.999)
    draw(swept(*({"beta": beta, "t": t, "all": 40.0 + t} for beta in betas for t in others)), tmp_path / "sweep.png")
    assert drawn[0].axes[0].get_xlabel() == label


def test_panels_have_titles_of_their_width_one_scale_and_a_look_for_each_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("ltexp.report.figures.sweep.save", lambda figure, path: drawn.append(figure))
    places = ({"stage1.a_long_key_of_a_part": "first"}, {"stage1.a_long_key_of_a_part": "second"})
    runs = [
        {"method": method, "t": t, "stage2.another_long_key": long, "all": 30.0 + 10 * place + t} | key
        for place, (key, methods) in enumerate(zip(places, (("ce",), ("ce", "crt")), strict=True))
        for long in ("a_name_that_fills_a_line", "a_name_that_fills_another_line")
        for method in methods
        for t in (1, 2)
    ]
    draw(swept(*runs), tmp_path / "sweep.png")
    axes = [axis for axis in drawn[0].axes if axis.get_visible()]
    assert len(axes) == 4
    assert max(len(line) for axis in axes for line in axis.get_title().splitlines()) <= 56
    assert len({axis.get_ylim() for axis in axes}) == 1
    looks = {
        (text.get_text(), line.get_color())
        for axis in axes
        for text, line in zip(axis.get_legend().get_texts(), axis.lines, strict=False)
    }
    assert sorted(name for name, _ in looks) == ["ce", "crt"]


def test_the_table_of_a_sweep_has_a_column_for_each_key(tmp_path: Path) -> None:
    for a, b in ((1, 1), (1, 2), (2, 1)):
        write(
            tmp_path / f"{a}{b}", overrides=[f"a={a}", f"stage2.b={b}", "c=3"], config_hash=f"{a}{b}", all=10.0 * a + b
        )
    table = results_table(group_runs(find_runs([tmp_path])[0]))
    assert table.title == "crt, cifar10_lt, ratio 100, resnet32"
    assert [column.title for column in table.columns[:2]] == ["a", "b"]
    assert [row[:2] for row in table.rows] == [["1", "1"], ["1", "2"], ["2", "1"]]
    assert "every run with c=3" in table.notes
    asked = results_table(group_runs(find_runs([tmp_path])[0]), "overrides,all")
    assert [row[0] for row in asked.rows] == ["a=1 b=1", "a=1 b=2", "a=2 b=1"]
    assert "every run with c=3" in asked.notes
    for_machines = results_table(group_runs(find_runs([tmp_path])[0]), "overrides", full=True)
    assert for_machines.rows[0] == ["a=1 c=3 stage2.b=1"]


def test_the_command_draws_another_metric_and_knows_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for t in (1, 2):
        write(tmp_path / f"{t}", overrides=[f"t={t}"], config_hash=f"{t}")
    assert main([str(tmp_path), "figure=sweep", "metric=ece", f"out={tmp_path}/out.pdf"]) == 0
    assert main([str(tmp_path), "figure=sweep", "metric=al", f"out={tmp_path}/out.pdf"]) == 2
    assert main([str(tmp_path), "figure=confusion", "metric=all"]) == 2
    assert "unknown metric 'al': did you mean 'all'?" in capsys.readouterr().err
