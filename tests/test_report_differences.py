"""`ltexp report against=METHOD`: what each row gains over one of them, seed by seed."""

from pathlib import Path
from typing import Any

import pytest
from records import record

from ltexp.errors import ConfigError
from ltexp.report.__main__ import parse
from ltexp.report.formats import to_csv, to_latex, to_text
from ltexp.report.groups import Group, group_runs
from ltexp.report.records import Run
from ltexp.report.results import Table, results_table


def groups(*changes: dict[str, Any]) -> list[Group]:
    return group_runs(
        Run(Path(str(number)), record(**({"config_hash": one["method"]} | one))) for number, one in enumerate(changes)
    )


def differences(table: Table) -> dict[str, str]:
    """By method, as it is read."""
    names = [column.name for column in table.columns]
    rows = [[cell.text(2) if hasattr(cell, "text") else str(cell) for cell in row] for row in table.rows]
    return {row[names.index("method")]: row[names.index("difference")] for row in rows}


SEEDS = [
    *({"method": "bsce", "seed": seed, "all": value} for seed, value in enumerate((40.0, 44.0, 42.0))),
    *({"method": "mislas", "seed": seed, "all": value} for seed, value in enumerate((43.0, 46.0, 43.0))),
    {"method": "ce", "seed": 1, "all": 41.5},
    {"method": "kps", "seed": 7, "all": 50.0},
]


def test_differences_are_of_equal_seeds() -> None:
    found = results_table(groups(*SEEDS), against="bsce")
    # of 3, 2 and 1: mean 2, deviation 1, where the rows' own deviations are 2 and 1.73
    assert differences(found) == {"bsce": "None", "mislas": "+2.00 ± 1.00", "ce": "-2.50", "kps": "None"}
    assert "vs bsce: accuracy on all classes less its own at the same seeds" in to_text(found)
    header, *rows = to_csv(found).splitlines()
    assert "all,all_std,difference,difference_std,many" in header
    place = header.split(",").index("difference")
    assert next(row for row in rows if "mislas" in row).split(",")[place : place + 2] == ["2.0", "1.0"]
    assert r"$+2.00 \pm 1.00$" in to_latex(found)


@pytest.mark.parametrize(
    "other", [{"imbalance_ratio": 10.0}, {"subset_hash": "t"}, {"content_hash": "t"}, {"test_hash": "t"}]
)
def test_other_data_has_a_baseline_of_its_own_or_none(other: dict[str, Any]) -> None:
    usual = {"content_hash": "c", "test_hash": "c"}
    found = results_table(
        groups(
            {"method": "bsce", "all": 40.0, **usual},
            {"method": "ce", "all": 35.0, **usual},
            {"method": "kps", "all": 41.0},  # of an older version, that did not tell
            {"method": "crt", "all": 60.0, **usual, **other},
        ),
        against="bsce",
    )
    assert differences(found) == {"bsce": "None", "ce": "-5.00", "kps": "+1.00", "crt": "None"}


def test_a_baseline_on_a_part_of_the_test_set_is_none() -> None:
    part = {"tested": {"samples": 100, "of": 1000}}
    runs = groups({"method": "bsce", "all": 40.0, **part}, {"method": "ce", "all": 35.0})
    assert differences(results_table(runs, against="bsce")) == {"bsce": "None", "ce": "None"}


def test_a_method_of_several_rows_is_told_apart_by_what_was_typed() -> None:
    runs = groups(
        {"method": "bsce", "all": 40.0, "overrides": ["t=1"], "config_hash": "a"},
        {"method": "bsce", "all": 41.0, "overrides": ["t=2"], "config_hash": "b"},
        {"method": "ce", "all": 35.0},
    )
    assert differences(results_table(runs, against="bsce t=2"))["ce"] == "-6.00"
    with pytest.raises(ConfigError, match=r"^against=bsce names 2 rows: say which, as against='bsce t=1'$"):
        results_table(runs, against="bsce")
    with pytest.raises(ConfigError, match=r"^against=bsce t=3: no run of bsce was typed with t=3$"):
        results_table(runs, against="bsce t=3")
    plain = groups(
        {"method": "bsce", "all": 40.0, "overrides": ["t=1"], "config_hash": "a"},
        {"method": "bsce", "all": 41.0, "config_hash": "b"},
        {"method": "ce", "all": 35.0},
    )
    assert differences(results_table(plain, against="bsce"))["ce"] == "-6.00"  # the one with nothing typed


def test_what_it_cannot_be_against_has_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^against=bsec: unknown method 'bsec': did you mean 'bsce'\?$"):
        results_table(groups(*SEEDS), against="bsec")
    with pytest.raises(ConfigError, match=r"^figure=curves and against= exclude each other$"):
        parse(["outputs", "figure=curves", "against=ce"])
