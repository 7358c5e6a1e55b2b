"""The measured tables of the pages are what the kept records say, and stand beside the printed numbers."""

import json
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from ltexp.report.records import find_runs
from ltexp.reproduce.__main__ import main
from ltexp.reproduce.recipe import changed_since

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "docs" / "records" / "cifar100_lt_100"
CIFAR10 = ROOT / "docs" / "records" / "cifar10_lt_100"
PARTS = ROOT / "docs" / "records" / "glag_parts"
TABLES = (
    ("README.md", "Published tables and figures", RECORDS),
    ("docs/reality_check.md", "CIFAR-100-LT", RECORDS),
    ("docs/reality_check.md", "CIFAR-10-LT", CIFAR10),
)
COLUMNS = ("all", "many", "medium", "few", "ece")


ROW = re.compile(r"^\| `([^`]+)` \| (.*)$", re.MULTILINE)


def kept(*folders: Path) -> dict[str, list[dict[str, Any]]]:
    """The records, one for each seed, by their method and what was set on its stages, as a row names them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(path for folder in folders or (RECORDS,) for path in folder.rglob("record.json")):
        record = json.loads(path.read_text())
        found.setdefault(" ".join([record["method"], *set_on_stages(record)]), []).append(record)
    return found


def cell(values: list[float | None]) -> str:
    """As a page shows a number: with its deviation where there are several, nothing where a group has no classes."""
    if None in values:
        return ""
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def cells_of(records: list[dict[str, Any]]) -> list[str]:
    """What a page shows of these seeds."""
    return [cell([record["metrics"][column] for record in records]) for column in COLUMNS]


def set_on_stages(record: dict[str, Any]) -> list[str]:
    """The overrides of its stages."""
    return [text for text in record["overrides"] if "stage" in text.partition("=")[0]]


def rows_of(page: str, heading: str | None = None) -> dict[str, list[str]]:
    """The cells of each row that begins with a command's words, of a page's tables or of those under a heading."""
    text = (ROOT / page).read_text()
    if heading is not None:
        text = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = ROW.findall(text)
    return {method: [cell.strip() for cell in cells.split("|")] for method, cells in found}


@pytest.mark.parametrize(("page", "heading", "folder"), TABLES)
def test_a_page_shows_the_numbers_of_the_records(page: str, heading: str, folder: Path) -> None:
    shown = {method: cells[: len(COLUMNS)] for method, cells in rows_of(page, heading).items()}
    records = kept(folder)
    assert records.keys() == shown.keys()
    for method, seeds in records.items():
        assert shown[method] == cells_of(seeds)
        assert {record["status"] for record in seeds} == {"finished"}
        assert {record["stages"][0]["epochs"] for record in seeds} == {{"dasl": 160}.get(method, 200)}  # its paper's
        assert len({record["seed"] for record in seeds}) == len(seeds)


@pytest.mark.parametrize(("page", "heading", "folder"), TABLES[1:])
def test_the_best_epoch_on_the_test_set_has_a_column_of_its_own(page: str, heading: str, folder: Path) -> None:
    assert "| method | all | many | medium | few | ECE | best on test |" in (ROOT / page).read_text()
    cells = rows_of(page, heading)
    for method, seeds in kept(folder).items():
        best = [found["all"] for record in seeds if (found := record["stages"][-1]["best_on_test"]) is not None]
        assert cells[method][len(COLUMNS)] == (cell(best) if best else "")


def test_the_records_stand_beside_the_printed_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", f"runs={RECORDS}", "dataset=cifar100_lt", "ratio=100", "backbone=resnet32", "format=csv"]
    assert main([*words, "missing=false"]) == 0
    lines = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    heads = {name: place for place, name in enumerate(lines[0])}
    found = {(line[heads["cell"]], line[heads["method"]]): line for line in lines[1:]}
    for published, method, printed in (
        ("gcl/5.2", "gcl", 48.71),
        ("mislas/3", "ce", 38.4),
        ("glag/2", "decoupling", 43.3),
    ):
        line = found[published, method]
        trained = {"decoupling": "crt"}.get(method, method)
        measured = float(line[heads["measured"]])
        assert measured == round(kept()[trained][0]["metrics"]["all"], 2)
        assert float(line[heads["difference"]]) == pytest.approx(measured - printed)
        assert "other config" not in line[heads["protocol"]]


def test_the_figure_has_a_row_for_each_record_with_the_best_at_the_top() -> None:
    lines = re.findall(r"<!-- (.*) -->", (ROOT / "docs" / "assets" / "measured.svg").read_text())
    records = sorted(kept().items(), key=lambda item: fmean(record["metrics"]["all"] for record in item[1]))
    methods = [name.partition(" ")[0] for name, _ in records]
    assert [line.partition(",")[0] for line in lines if line.partition(",")[0] in methods] == methods


def test_the_parts_of_glag_are_what_their_records_say() -> None:
    rows = rows_of("docs/methods/glag.md")
    seed1 = {name: own for name, found in kept(PARTS, RECORDS).items() if (own := [r for r in found if r["seed"] == 1])}
    of_stage1 = {word for name in seed1 for word in name.split() if word.startswith("stage1.")}
    shown = {" ".join(word for word in name.split() if word not in of_stage1): one for name, (one,) in seed1.items()}
    assert len(shown) == len(seed1) >= 10
    for name, record in shown.items():
        assert rows[name][: len(COLUMNS)] == cells_of([record])
        assert record["stages"][0]["epochs"] == 200
    assert len({record["stages"][0]["fingerprint"] for record in shown.values()}) == 1  # of one training


def test_what_was_typed_for_the_records_gives_the_same_runs_today() -> None:
    runs, _ = find_runs([ROOT / "docs" / "records"])
    assert {run.folder: changed for run in runs if (changed := changed_since(run))} == {}
