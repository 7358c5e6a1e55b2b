"""Published numbers: all of them are there, as printed, each under one name."""

import math
from collections import Counter
from pathlib import Path

import pytest

import ltexp.papers
import ltexp.papers.reading
from ltexp.errors import ConfigError
from ltexp.papers import all_cells, find_paper, find_table, load_papers, match_cells


def test_every_published_cell_is_there_under_a_name_of_its_own() -> None:
    cells = all_cells()
    counts = {"bkd": 366, "dasl": 122, "fbl": 121, "gcl": 124, "glag": 172, "kps": 108, "mislas": 256}
    assert Counter(cell.paper for cell in cells) == counts
    assert len(cells) == len({cell.name for cell in cells}) == 1269
    for cell in cells:
        assert 0 < cell.value < 100
        assert (cell.ratio is None) == (cell.imbalance is None)


@pytest.mark.parametrize(
    ("name", "value", "accuracy"),
    [
        ("mislas/3/mislas/cifar100_lt/100", 47.0, 47.0),
        ("mislas/2/mislas:mu+sl/cifar100_lt/50", 51.4, 51.4),
        ("mislas/6/crt_mixup/imagenet_lt/resnet152/few", 32.8, 32.8),
        ("bkd/1/bkd/cifar100_lt/100/step", 47.3, 47.3),
        ("bkd/4/bkd@200/inat18/few", 71.9, 71.9),
        ("kps/3.2/kps/cifar100_lt/100", 54.97, 45.03),
        ("fbl/4.5/fbl/cifar10_lt/100/class_9", 81.9, 81.9),
        ("dasl/8/dasl:decoupled/cifar100_lt/10", 61.34, 61.34),
        ("glag/1/la:tau=0.5+stage2_full_cifar100/cifar100_lt/100", 57.35, 57.35),
    ],
)
def test_numbers_are_those_that_the_papers_print(name: str, value: float, accuracy: float) -> None:
    (cell,) = match_cells(all_cells(), name)
    assert (cell.value, cell.accuracy) == (value, accuracy)


def test_the_mean_over_classes_is_the_overall_figure() -> None:
    """FBL prints ten accuracies by class (Table 4.5) and their mean (Table 4.2): a check on rows and columns."""
    cells = [cell for cell in find_paper("fbl").cells if cell.dataset == "cifar10_lt"]
    for method in ("ce", "fbl"):
        for ratio in (100, 50):
            of_row = [
                cell for cell in cells if (cell.method, cell.ratio, cell.dataset) == (method, ratio, "cifar10_lt")
            ]
            by_class = [cell.value for cell in of_row if cell.table == "4.5"]
            (overall,) = (cell.value for cell in of_row if cell.table == "4.2")
            assert len(by_class) == 10
            assert math.isclose(sum(by_class) / 10, overall, abs_tol=0.006), (method, ratio)


def test_a_variant_rule_names_a_row_of_its_table() -> None:
    for paper in load_papers().values():
        for table in paper.tables.values():
            rows = {cell.variant for cell in table.cells if cell.variant}
            parts = {part for variant in rows for part in variant.split("+")}
            assert set(table.variants) <= rows | parts, table.name


def test_misprints_and_settings_are_kept() -> None:
    assert "51.11" in " ".join(find_paper("kps").notes)
    assert any(record.get("eps_1") == 0.4 for record in find_paper("mislas").settings)
    assert {cell.note for cell in find_table("mislas/8").cells} >= {"table 4 prints 38.3"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mislass/3", "unknown paper 'mislass': did you mean 'mislas'?"),
        ("mislas/33", "unknown table 'mislas/33': did you mean 'mislas/3'?"),
        ("mislas", "unknown table 'mislas'"),
    ],
)
def test_an_unknown_name_has_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        find_table(name)


def test_a_name_means_its_cell_and_a_beginning_all_below() -> None:
    cells = all_cells()
    assert len(match_cells(cells, "bkd/1/bkd/cifar100_lt/100")) == 1  # and not its step twin
    assert len(match_cells(cells, "bkd/1/bkd")) == 6
    assert len(match_cells(list(find_table("mislas/3").cells), "mislas/cifar100_lt")) == 3
    assert len(match_cells(cells, "mislas/3/*/cifar100_lt/100")) == 8
    with pytest.raises(ConfigError, match="did you mean 'mislas/3/mislas/cifar100_lt/100'"):
        match_cells(cells, "mislas/3/mislas/cifar100_lt/1000")


def test_what_a_row_is_trained_as_has_a_place_for_each_column() -> None:
    columns = [{"dataset": "cifar10_lt", "ratio": ratio, "backbone": "resnet32"} for ratio in (100, 50)]
    row = {"method": "decoupling", "own": None, "values": [1.0, 2.0], "as": ["lws", "tau_norm stage1.epochs=200"]}
    paper = {"paper": "x", "metric": "top1_accuracy"}
    cells = ltexp.papers.reading._row(paper, "1", columns, row)
    assert [cell.trained_as for cell in cells] == ["lws", "tau_norm stage1.epochs=200"]
    with pytest.raises(ValueError, match="row decoupling: 1 as for 2 columns"):
        ltexp.papers.reading._row(paper, "1", columns, row | {"as": ["lws"]})


def test_a_damaged_paper_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.yaml").write_text("paper: x\ntables: {'1': {rows: [{method: ce, values: [1], own: true}]}}")
    monkeypatch.setattr(ltexp.papers, "_FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=r"x\.yaml is damaged"):
        load_papers.__wrapped__()
