"""The HTML page in a real browser: it sorts, filters, opens the runs of a number, and changes its colours."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from records import record

from ltexp.report.page import Page, PageColumn, PageRow
from ltexp.report.records import Run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

ACTIONS = """
<script>
const seen = {};
const visible = () => [...document.querySelectorAll("tbody tr:not(.runs)")].filter((row) => !row.hidden)
  .map((row) => row.cells[0].textContent);
const heading = (number) => document.querySelectorAll("thead button")[number];
const set = (name, value) => {
  const control = document.querySelector(`[name="${name}"]`);
  control.value = value;
  control.dispatchEvent(new Event("input"));
};
const paper = () => getComputedStyle(document.body).backgroundColor;
seen.start = visible();
heading(2).click(); seen.up = visible();
heading(2).click(); seen.down = visible();
heading(0).click(); seen.names = visible();
set("dataset", "c10"); seen.filtered = visible();
seen.count = document.getElementById("count").textContent;
set("search", "mislas"); seen.both = visible();
set("search", ""); set("dataset", "");
const number = document.querySelector("td button");
number.click();
seen.open = [...document.querySelectorAll("tr.runs li")].map((item) => item.textContent);
seen.links = [...document.querySelectorAll("tr.runs a")].map((link) => link.getAttribute("href"));
seen.expanded = number.getAttribute("aria-expanded");
number.click(); seen.closed = document.querySelectorAll("tr.runs").length;
seen.before = paper(); document.getElementById("theme").click(); seen.after = paper();
seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
seen.text = document.querySelector("tbody").textContent;
const out = document.createElement("pre"); out.id = "seen"; out.textContent = JSON.stringify(seen);
document.body.append(out);
</script>
"""


def page() -> Page:
    runs = [Run(Path("/runs/one"), record(overrides=["method=mislas", "stage1.x='<b>'"], seed=3))]
    columns = [PageColumn("method", filter=True), PageColumn("dataset", filter=True)]
    columns.append(PageColumn("measured", numeric=True, digits=2, opens=True))
    rows = [
        PageRow(["ce", "c10", [9.5, None]], "full"),
        PageRow(["mislas", "c100", [47.0, 0.5]], "full", runs),
        PageRow(["mislas", "c10", [82.0, 0.25]], "shortened"),
        PageRow(["bbn </script>", "c10", None], "published-only"),
    ]
    return Page("title & more", ["a note"], columns, rows)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if BROWSER is None:
        pytest.skip("no Chromium here")
    folder = tmp_path_factory.mktemp("page")
    (folder / "page.html").write_text(page().to_html(folder).replace("</body>", ACTIONS + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile", "--dump-dom"]
    command = [BROWSER, *flags, (folder / "page.html").as_uri()]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.*?)</pre>', answer.stdout, re.DOTALL)
    assert found, answer.stderr[-2000:] + answer.stdout[-2000:]
    content = json.loads(html.unescape(found[1]))
    assert isinstance(content, dict)
    return content


def test_it_sorts_by_number_with_nothing_last(seen: dict[str, Any]) -> None:
    assert seen["start"] == ["ce", "mislas", "mislas", "bbn </script>"]
    assert seen["up"] == ["ce", "mislas", "mislas", "bbn </script>"]
    assert seen["down"] == ["mislas", "mislas", "ce", "bbn </script>"]
    assert seen["names"] == ["bbn </script>", "ce", "mislas", "mislas"]
    assert "47.00 ± 0.50" in seen["text"]


def test_it_filters_by_menu_and_by_words(seen: dict[str, Any]) -> None:
    assert sorted(seen["filtered"]) == ["bbn </script>", "ce", "mislas"]
    assert seen["count"] == "3 of 4 lines"
    assert seen["both"] == ["mislas"]


def test_a_number_opens_its_runs_with_command_record_and_links(seen: dict[str, Any]) -> None:
    (text,) = seen["open"]
    assert "seed 3, all 50.00" in text
    assert "ltexp train method=mislas" in text
    assert "<b>" in text  # as text, not as markup
    assert all(link.endswith(("/runs/one/record.json", "/runs/one/config.yaml")) for link in seen["links"])
    assert (seen["expanded"], seen["closed"]) == ("true", 0)


def test_it_has_two_colour_schemes_and_fetches_nothing(seen: dict[str, Any]) -> None:
    assert {seen["before"], seen["after"]} == {"rgb(255, 255, 255)", "rgb(22, 24, 27)"}
    assert seen["requests"] == []
